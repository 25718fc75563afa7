"""Whether a long run stays usable: to resume it and to report on it, by its number of trials.

The figure is the time for one trial, over that in the run of a thousand: 1 is linear.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import ledgers
from benchmarks.harness import Bench
from benchmarks.measure import Figure, Goal, alternate, of, ratio
from eval import report
from loop.ledger import Ledger
from loop.position import Position

SIZES, LARGE, BASE = (10, 1_000), 100_000, 1_000
LINEAR: Goal = ("<=", 1.5)


def run(bench: Bench) -> Iterator[Figure]:
    """To resume and to report, for each size but the one that the others are measured by."""
    place = ledgers.place(bench.place)
    try:
        sizes = (*SIZES, LARGE) if bench.full else SIZES
        runs = {size: ledgers.write(place / str(size), size) for size in sizes}
        for verb, work in (("resume", resume), ("report", write_report)):
            sides = {str(size): partial(work, run) for size, run in runs.items()}
            costs = alternate(sides, 2 if bench.full else bench.rounds)
            for size in (s for s in sizes if s != BASE):
                what = f"{verb} a run of {size:,}, a trial / one of {BASE:,}"
                ours, theirs = costs[str(size)], costs[str(BASE)]
                yield ratio(what, ours, theirs, LINEAR if size > BASE else None,
                            units=(size, BASE))  # fmt: skip
            whole = costs[str(BASE)]
            yield of(f"{verb} a run of {BASE:,}", [1000 * c.seconds for c in whole], "ms")
    finally:
        if place != bench.place:
            shutil.rmtree(place, ignore_errors=True)


def resume(run: Path) -> None:
    """Until the loop knows where it stands."""
    position = Position()
    with Ledger(run) as ledger:
        for record in ledger.records:
            position.add(record)


def write_report(run: Path) -> None:
    """The page of one run."""
    report.write([run], run / "report.html")
