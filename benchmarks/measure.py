"""Several ways to do the same, in alternation on the same machine; what is kept is their ratio.

Another process on the machine slows all sides alike when they take turns, A B A B, so a ratio means
something where seconds do not. Beside the clock's seconds stand the processor's, of this process
and of all it started: they hardly notice what else runs.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Work = Callable[[], object]
Goal = tuple[Literal["<=", ">="], float]


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock, and of the processor in this process and its dead children."""

    seconds: float
    processor: float


@dataclass(frozen=True)
class Figure:
    """One line of the table: the median of `n` rounds, and its quartiles.

    `processor`: the same ratio in processor seconds. `note`: what else a reader must know.
    """

    what: str
    n: int
    median: float
    low: float
    high: float
    unit: str = "x"
    processor: float | None = None
    goal: Goal | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None: there is no goal."""
        if self.goal is None:
            return None
        way, bound = self.goal
        return self.median <= bound if way == "<=" else self.median >= bound


def cost(work: Work) -> Cost:
    """What `work` takes, its children included once they have been waited for.

    A process that lives on tells itself: then `work` returns its Cost.
    """
    processor, began = _processor(), time.perf_counter()
    if isinstance(told := work(), Cost):
        return told
    return Cost(time.perf_counter() - began, _processor() - processor)


def alternate(sides: Mapping[str, Work], rounds: int) -> dict[str, list[Cost]]:
    """Each side `rounds` times, in turn; every second round in the other order."""
    found: dict[str, list[Cost]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            found[name].append(cost(sides[name]))
    return found


def ratio(
    what: str, ours: Sequence[Cost], theirs: Sequence[Cost], goal: Goal | None = None,
    note: str = "", units: tuple[int, int] = (1, 1),
) -> Figure:  # fmt: skip
    """`ours` over `theirs`, round by round. `units`: pieces of work in a round of either side."""
    scale = units[1] / units[0]
    pairs = list(zip(ours, theirs, strict=True))
    clock = [scale * a.seconds / b.seconds for a, b in pairs]
    busy = [scale * a.processor / b.processor for a, b in pairs if b.processor > 0]
    each = [statistics.median(c.seconds for c in side) for side in (ours, theirs)]
    said = f"{each[0] / units[0]:.3g} s against {each[1] / units[1]:.3g} s"
    note = "; ".join(filter(None, (said, note)))
    return of(what, clock, "x", goal, note, statistics.median(busy) if busy else None)


def growth(
    what: str, costs: Mapping[int, Sequence[Cost]], goal: Goal | None = None, note: str = ""
) -> Figure:
    """The exponent e of seconds ~ size^e, round by round: 1 is linear. `costs`: by size."""
    sizes = [math.log(size) for size in costs]

    def slope(seconds: Sequence[float]) -> float:
        return statistics.linear_regression(sizes, [math.log(s) for s in seconds]).slope

    rounds = list(zip(*costs.values(), strict=True))
    clock = [slope([c.seconds for c in each]) for each in rounds]
    busy = [slope([c.processor for c in each]) for each in rounds]
    said = ", ".join(
        f"{size:,}: {statistics.median(c.seconds for c in side):.3g} s"
        for size, side in costs.items()
    )
    note = "; ".join(filter(None, (said, note)))
    return of(what, clock, "", goal, note, statistics.median(busy))


def of(
    what: str, values: Sequence[float], unit: str, goal: Goal | None = None, note: str = "",
    processor: float | None = None,
) -> Figure:  # fmt: skip
    """The figure of some values of one quantity."""
    low, _, high = (
        statistics.quantiles(values, method="inclusive") if len(values) > 1 else (values[0],) * 3
    )
    return Figure(
        what, len(values), statistics.median(values), low, high, unit, processor, goal, note
    )


def _processor() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, who))
