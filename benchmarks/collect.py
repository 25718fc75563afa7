"""Whether a large corpus can be made: rows a second, and whether a row costs more among many."""

import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

from benchmarks import ledgers
from benchmarks.harness import Bench
from benchmarks.measure import Figure, Goal, alternate, of, ratio
from data_collection.collect import run as collect

LEAST, MOST = (500, 4_000), 1_000_000
A_RUN = 10_000
"""Rows of one run at most."""
LINEAR: Goal = ("<=", 1.5)


def run(bench: Bench) -> Iterator[Figure]:
    """A row of the larger corpus over one of the smaller."""
    place = ledgers.place(bench.place)
    small, large = LEAST[0], MOST if bench.full else LEAST[1]
    try:
        runs = {rows: _runs(place / str(rows), rows) for rows in (small, large)}
        sides = {str(rows): partial(make, runs[rows], bench.place / "corpus") for rows in runs}
        costs = alternate(sides, 2 if bench.full else bench.rounds)
        what = f"collect {large:,} rows, a row / of {small:,}"
        yield ratio(what, costs[str(large)], costs[str(small)], LINEAR, units=(large, small))
        speeds = [large / cost.seconds for cost in costs[str(large)]]
        yield of(f"collect {large:,} rows", speeds, "rows/s")
    finally:
        if place != bench.place:
            shutil.rmtree(place, ignore_errors=True)


def make(runs: list[Path], out: Path) -> None:
    """The corpus of `runs`, written and thrown away."""
    with redirect_stdout(StringIO()):
        collect([*map(str, runs), "--out", str(out), "--licences", "any"])
    shutil.rmtree(out)


def _runs(place: Path, rows: int) -> list[Path]:
    sizes = [min(A_RUN, rows - first) for first in range(0, rows, A_RUN)]
    return [ledgers.write(place / f"run{n}", size) for n, size in enumerate(sizes)]
