"""The charts of a comparison, in percent and thousandths of the plot, which a template draws.

As `eval.curve`: SVG without a script, which scales to any width while text keeps its size. An arm
has the same colour everywhere; controls are dashed, frontier arms dotted, so that colour is never
the only sign.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.curve import Axis
from eval.plan import Role

Floats = NDArray[np.float64]
DASHES: dict[Role, int] = {"prompting": 0, "adapter": 0, "control": 1, "frontier": 2}
RESAMPLES = 2_000


@dataclass(frozen=True)
class Line:
    """One arm in a plot: its number (that is its colour), dash, and runs; `band` may be empty.

    `end`: the mean where the line ends, and its interval.
    """

    index: int
    dash: int
    name: str
    n: int
    path: str
    band: str = ""
    end: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Plot:
    """Lines over `x`; `left_out`: arms without a line, and why there is none."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """One seed: heights in percent from above of the two arms' scores, and who is better."""

    seed: int
    left: float
    right: float
    better: bool


@dataclass(frozen=True)
class Pairs:
    """Every seed a line from arm `left` to arm `right`."""

    left: str
    right: str
    y: Axis
    pairs: tuple[Pair, ...]

    @property
    def won(self) -> int:
        """Seeds on which `right` is better."""
        return sum(pair.better for pair in self.pairs)


def mean_band(curves: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats] | None:
    """curves [seeds, points] -> mean and its 95 % interval, [points] each, over resampled seeds.

    Rows with a NaN are left out. None: no row is whole. One row has no interval: both its ends are
    the mean.
    """
    whole = curves[np.isfinite(curves).all(axis=1)]
    if not len(whole):
        return None
    mean = whole.mean(axis=0)
    if len(whole) == 1:
        return mean, mean, mean
    chosen = rng.integers(0, len(whole), (RESAMPLES, len(whole)))
    means = np.stack([whole[rows].mean(axis=0) for rows in chosen])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return mean, low, high


def best_so_far(
    at: Floats, best: Floats, arms: Sequence[tuple[str, Role]], x: Axis, rng: np.random.Generator
) -> Plot | None:
    """Mean of the runs with its interval; at [points], best [arms, seeds, points]. None: no run."""
    bands = [mean_band(best[row], rng) if len(at) else None for row in range(len(arms))]
    there = [band for band in bands if band is not None]
    if not there:
        return None
    y = _axis(np.concatenate([np.concatenate(band) for band in there]))
    lines = tuple(
        Line(
            index, DASHES[role], name, int(np.isfinite(best[index]).all(axis=1).sum()),
            "".join(_steps(at, band[0], x, y)),
            "".join(_area(at, band[1], band[2], x, y)) if (band[1] != band[2]).any() else "",
            (float(band[0][-1]), float(band[1][-1]), float(band[2][-1])),
        )
        for index, ((name, role), band) in enumerate(zip(arms, bands, strict=True))
        if band is not None
    )  # fmt: skip
    return Plot(x, y, lines, _missing(arms, lines))


def profiles(
    levels: Floats, shares: Sequence[tuple[Floats, int] | None], arms: Sequence[tuple[str, Role]]
) -> Plot | None:
    """Performance profiles: levels [k] upwards, for each arm (shares [k], its runs)."""
    if not len(levels) or levels[0] == levels[-1]:
        return None
    x = Axis(float(levels[0]), float(levels[-1]))
    y = Axis(0, 100, unit="%", whole=True)
    lines = tuple(
        Line(
            index, DASHES[role], name, found[1],
            "".join(_steps(levels, 100 * found[0], x, y)),
        )
        for index, ((name, role), found) in enumerate(zip(arms, shares, strict=True))
        if found is not None
    )  # fmt: skip
    return Plot(x, y, lines, _missing(arms, lines)) if lines else None


def pairs(
    left: str, right: str, seeds: Sequence[int], before: Floats, after: Floats, sign: int
) -> Pairs | None:
    """before, after [seeds]: scores of the two arms, NaN where there is none; None: no pair.

    `sign`: 1 where lower is better, else -1.
    """
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return None
    y = _axis(np.concatenate([before[both], after[both]]))
    found = tuple(
        Pair(seed, 100 - y.at(float(a)), 100 - y.at(float(b)), bool(sign * (a - b) > 0))
        for seed, a, b, there in zip(seeds, before, after, both, strict=True)
        if there
    )
    return Pairs(left, right, y, found)


def axis(at: Floats, whole: bool, seconds: bool) -> Axis:
    """The axis of what was spent."""
    most = float(at[-1]) if len(at) and at[-1] > 0 else 1.0
    for scale, unit in ((3600.0, "hours"), (60.0, "minutes")) if seconds else ():
        if most > 2 * scale:
            return Axis(0, most, scale, unit)
    return Axis(0, most, 1.0, "seconds" if seconds else "", whole)


def _axis(values: Floats) -> Axis:
    low, high = float(values.min()), float(values.max())
    room = max(0.06 * (high - low), 1e-3 * abs(low), 1e-9)
    return Axis(low - room, high + room)


def _missing(arms: Sequence[tuple[str, Role]], lines: Sequence[Line]) -> tuple[str, ...]:
    drawn = {line.name for line in lines}
    return tuple(name for name, _ in arms if name not in drawn)


def _steps(at: Floats, values: Floats, x: Axis, y: Axis) -> Iterator[str]:
    """A step line: each value holds until the next. A new command only where it moves."""
    place = _place(x, y)
    yield "M{} {}".format(*place(at[0], values[0]))
    last = place(at[0], values[0])[1]
    for where, value in zip(at[1:], values[1:], strict=True):
        across, height = place(where, value)
        if height != last:
            yield f"H{across}V{height}"
        last = height
    yield f"H{place(at[-1], values[-1])[0]}"


def _area(at: Floats, low: Floats, high: Floats, x: Axis, y: Axis) -> Iterator[str]:
    """There along `high` and back along `low`, both as steps."""
    yield from _steps(at, high, x, y)
    place = _place(x, y)
    last = place(at[-1], low[-1])[1]
    yield f"V{last}"
    for where, value in zip(at[:0:-1], low[-2::-1], strict=True):
        across, height = place(where, value)
        if height != last:
            yield f"H{across}V{height}"
        last = height
    yield f"H{place(at[0], low[0])[0]}Z"


def _place(x: Axis, y: Axis) -> Callable[[float, float], tuple[int, int]]:
    """In thousandths of the plot, from its upper left corner."""
    return lambda across, up: (
        round(10 * x.at(float(across))), round(1000 - 10 * y.at(float(up)))
    )  # fmt: skip
