"""Whether a long run stays usable: to resume it and to report on it, by its number of trials.

Small sizes show the time of one trial over that in a run of a thousand; `--full` shows the exponent
of growth from a thousand to a hundred thousand: 1 is linear.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import ledgers
from benchmarks.harness import Bench
from benchmarks.measure import Figure, Goal, alternate, growth, of, ratio
from eval import report
from loop.ledger import Ledger
from loop.position import Position

SMALL, BASE, LARGE = 10, 1_000, (10_000, 100_000)
LINEAR: Goal = ("<=", 1.1)


def run(bench: Bench) -> Iterator[Figure]:
    """To resume and to report, for each size."""
    sizes = (SMALL, BASE, *LARGE) if bench.full else (SMALL, BASE)
    runs = {size: ledgers.write(bench.place / str(size), size) for size in sizes}
    for verb, work in (("resume", resume), ("report", write_report)):
        sides = {str(size): partial(work, run) for size, run in runs.items()}
        found = alternate(sides, 2 if bench.full else bench.rounds)
        costs = {size: found[str(size)] for size in sizes}
        what = f"{verb} a run of {SMALL:,}, a trial / one of {BASE:,}"
        yield ratio(what, costs[SMALL], costs[BASE], units=(SMALL, BASE))
        yield of(f"{verb} a run of {BASE:,}", [1000 * c.seconds for c in costs[BASE]], "ms")
        if bench.full:
            del costs[SMALL]  # what a command costs at any size would flatten the growth
            yield growth(f"{verb}: exponent from {BASE:,} to {LARGE[-1]:,} trials", costs, LINEAR)


def resume(run: Path) -> None:
    """Until the loop knows where it stands."""
    position = Position()
    with Ledger(run) as ledger:
        for record in ledger.records:
            position.add(record)


def write_report(run: Path) -> None:
    """The page of one run."""
    report.write([run], run / "report.html")
