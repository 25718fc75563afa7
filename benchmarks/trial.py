"""A whole trial of the built-in cpu trainee, its audit included, against `python train.py` alone.

Both spend the same FLOPs on the same file and seed, on one thread. The fresh process is what one
would run by hand: no box, no second look at the score.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.harness import Bench, ways
from benchmarks.measure import Figure, Goal, Work, alternate, ratio
from loop import target
from loop.budget import Budget
from loop.run import Runner
from loop.start import set_up
from loop.target import BUILT_IN
from loop.trial import Scored
from loop.workspace import Workspace

GOAL: Goal = ("<=", 0.7)


def run(bench: Bench) -> Iterator[Figure]:
    """A ratio for each way to run a trial: cold, and from the warm worker where there is one."""
    found = target.load(BUILT_IN, "cpu")
    set_up(found, BUILT_IN)
    space, _ = Workspace.create(BUILT_IN, bench.place / "work", "bench", found.editable)
    found = replace(found, folder=space.folder)
    budget = found.budget or Budget.parse("2e11flops")
    told = found.environment(budget, 0)

    def copy(name: str) -> Path:
        space.scratch(space.head(), folder := bench.place / name)
        return folder

    def fresh() -> None:
        subprocess.run([sys.executable, "train.py"], cwd=copy("fresh"), env=os.environ | told,
                       capture_output=True, check=True)  # fmt: skip

    def whole(name: str, runner: Runner) -> None:
        outcome, _ = runner.run(copy(name), told, bench.place / f"{name}.log")
        assert isinstance(outcome, Scored), f"the target as it is scores: {outcome}"

    with ways(found) as runners:
        sides: dict[str, Work] = {n: partial(whole, n, r) for n, r in runners.items()}
        costs = alternate({"fresh": fresh} | sides, bench.rounds)
    for name in runners:
        what = f"a whole {name} trial, audit included / a fresh process"
        yield ratio(what, costs[name], costs["fresh"], GOAL, f"{budget.amount:.3g} {budget.unit}")
