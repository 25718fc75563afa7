"""What the harness costs a trial whose training costs next to nothing.

Our trial: a scripted brain, the edit checked, committed, run in bubblewrap under its caps, decided,
written to the fsynced ledger. Against the bare process, and against the reference loop, which has
no box and no fsync.
"""

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.harness import Bench, advance, begun, boxed, new_values, write_script, write_target
from benchmarks.measure import Figure, Goal, alternate, ratio
from benchmarks.reference_loop import ReferenceLoop, process
from loop import brains
from loop.start import RunArgs

TRIALS = 5
"""Trials of a round."""


def run(bench: Bench) -> Iterator[Figure]:
    """Two ratios for one trial."""
    target = write_target(bench.place / "target")
    values = new_values(TRIALS * (bench.rounds + 2))
    brain = write_script(bench.place / "script.jsonl", values)
    args = RunArgs(bench.place / "run", brain, target=target, judge="naive", final_seeds=0)
    command = [sys.executable, "train.py"]
    plain = write_target(bench.place / "plain")
    reference = ReferenceLoop(plain, brains.connect(brain), process(command))

    def bare() -> None:
        for _ in range(TRIALS):
            subprocess.run(command, cwd=target, capture_output=True, check=True)

    def referred() -> None:
        for _ in range(TRIALS):
            assert reference.turn() is not None, "each edit scores"

    with begun(args, boxed) as loop:
        advance(loop, TRIALS)
        referred()
        sides = {"ours": lambda: advance(loop, TRIALS), "bare": bare, "reference": referred}
        costs = alternate(sides, bench.rounds)
        assert all(trial.commit for trial in loop.position.trials), "each edit ran"
    pairs: tuple[tuple[str, str, str, Goal | None], ...] = (
        ("a trial / the reference loop's", "ours", "reference", ("<=", 1.5)),
        ("a trial / the bare process", "ours", "bare", None),
        ("the reference loop's / the bare process", "reference", "bare", None),
    )
    for what, a, b, goal in pairs:
        yield ratio(what, costs[a], costs[b], goal, units=(TRIALS, TRIALS))
