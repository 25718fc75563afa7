"""Whether a large corpus can be made: rows a second, and whether a row costs more among many.

`--full` collects up to a million rows, once each size: an hour and more.
"""

import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

from benchmarks import ledgers
from benchmarks.harness import Bench
from benchmarks.measure import Figure, Goal, alternate, growth, of
from data_collection.collect import run as collect

SOME, MANY = (500, 4_000), (1_000, 10_000, 100_000, 1_000_000)
A_RUN = 10_000
"""Rows of one run at most."""
LINEAR: Goal = ("<=", 1.1)


def run(bench: Bench) -> Iterator[Figure]:
    """The exponent of its growth, and the speed at the largest size."""
    sizes = MANY if bench.full else SOME
    runs = {rows: _runs(bench.place / str(rows), rows) for rows in sizes}
    sides = {str(rows): partial(make, runs[rows], bench.place / "corpus") for rows in sizes}
    found = alternate(sides, 1 if bench.full else bench.rounds)
    costs = {rows: found[str(rows)] for rows in sizes}
    yield growth(f"collect: exponent from {sizes[0]:,} to {sizes[-1]:,} rows", costs, LINEAR)
    speeds = [sizes[-1] / cost.seconds for cost in costs[sizes[-1]]]
    yield of(f"collect {sizes[-1]:,} rows", speeds, "rows/s")


def make(runs: list[Path], out: Path) -> None:
    """The corpus of `runs`, written and thrown away."""
    with redirect_stdout(StringIO()):
        collect([*map(str, runs), "--out", str(out), "--licences", "any"])
    shutil.rmtree(out)


def _runs(place: Path, rows: int) -> list[Path]:
    sizes = [min(A_RUN, rows - first) for first in range(0, rows, A_RUN)]
    return [ledgers.write(place / f"run{n}", size) for n, size in enumerate(sizes)]
