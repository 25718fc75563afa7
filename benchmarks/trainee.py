"""Whether the built-in trainee wastes its core: against faster ways of torch, and a plain GPT.

The ways are training steps in alternation. The plain GPT (nanoGPT's, same shape, batch and text)
trains until it reaches the loss that the trainee has at the end of its budget; seconds of the
processor, on one thread each, the evaluations left out.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Bench
from benchmarks.measure import Cost, Figure, Goal, of, ratio
from loop import target
from loop.start import set_up
from loop.target import BUILT_IN
from loop.workspace import Workspace

HERE = Path(__file__).parent
RACES = 2
AT_MOST = 3.0
"""Times the trainee's own seconds that the plain GPT may take."""
RATE = 3e-3
"""Its learning rate: the best of 1e-3, 3e-3 and 1e-2."""
WITHIN: Goal = ("<=", 1.1)


def run(bench: Bench) -> Iterator[Figure]:
    """Steps, tokens a second, and the race to the same loss."""
    found = target.load(BUILT_IN, "cpu")
    set_up(found, BUILT_IN)
    space, _ = Workspace.create(BUILT_IN, bench.place / "work", "bench", found.editable)
    space.scratch(space.head(), folder := bench.place / "trainer")
    told = found.environment(found.budget, 0)
    steps = json.loads(_run(folder, told, str(HERE / "trainee_steps.py"), str(bench.rounds)))
    costs = {name: [Cost(*pair) for pair in pairs] for name, pairs in steps["ways"].items()}
    ours = costs.pop("as it is")
    for name, side in costs.items():
        note = f"compiling took {steps['compiled_in']:.0f} s" if "compiled" in name else ""
        yield ratio(f"a step as it is / {name}", ours, side, WITHIN, note)
    speeds = [steps["tokens"] / cost.processor for cost in ours]
    yield of("trains", speeds, "tokens/s", note="a second of one core, as it is")
    step = statistics.median(cost.processor for cost in ours) / steps["steps"]
    races = [_race(folder, told, seed, step) for seed in range(RACES)]
    note = f"seconds of a core; one that is not there after {AT_MOST:g} x counts as {AT_MOST:g}"
    yield of("a plain GPT to the same loss / the trainee", races, "x", (">=", 1.0), note)


def _race(folder: Path, told: dict[str, str], seed: int, step: float) -> float:
    """The plain GPT's seconds over the trainee's; `step`: what a step of the trainee takes."""
    told = told | {"AUTORESEARCH_SEED": str(seed)}
    _run(folder, told, "train.py")
    result = json.loads((folder / "result.json").read_text())
    seconds = step * result["measurements"]["num_steps"]
    target_bpb, most = str(result["metric"]["val_bpb"]), str(AT_MOST * seconds)
    plain = json.loads(_run(folder, told, str(HERE / "nanogpt.py"), target_bpb, most, str(RATE)))
    return float(min(AT_MOST, plain["processor"] / seconds))


def _run(folder: Path, told: dict[str, str], script: str, *args: str) -> str:
    """The last line that a script prints, in the trainer's folder."""
    path = f"{folder}{os.pathsep}{HERE.parent}"
    done = subprocess.run(
        [sys.executable, script, *args], cwd=folder, text=True, check=True, stdout=subprocess.PIPE,
        env=os.environ | told | {"PYTHONPATH": path},
    )  # fmt: skip
    return done.stdout.splitlines()[-1]
