"""Our side of a benchmark: a trivial target, and a run of the real loop that stops when told."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loop import start, warm
from loop.experiment import Limits
from loop.experiment import Runner as Boxed
from loop.ledger import Ledger
from loop.run import Loop, Runner
from loop.sandbox import open_box
from loop.start import RunArgs
from loop.target import Target

TRAIN = """\
import time

LR = 0.5
MORE = 1

time.sleep(0.03)
print("---")
print(f"val_bpb: {1 + LR + MORE / 1000:.6f}")
print("peak_vram_mb: 0")
"""
"""With the interpreter's start about 0.05 s. A higher LR is worse, so every trial is set back."""
TARGET = """\
editable = "train.py"
command = ["{python}", "train.py"]
[metric]
name = "val_bpb"
[fixed]
[knobs]
LR = { low = 0.1, high = 1000.0, scale = "log", step = 2.0 }
"""


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given. `place`: a folder of its own. `full`: the large sizes too."""

    place: Path
    rounds: int
    full: bool


def write_target(folder: Path) -> Path:
    """The trivial target: three small files, no audit."""
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "target.toml").write_text(TARGET)
    (folder / "program.md").write_text("Make val_bpb small.\n")
    return folder


def write_script(path: Path, replies: Sequence[str]) -> str:
    """Name of the scripted brain that gives `replies` in turn."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in replies))
    return f"scripted:{path}"


def new_values(count: int) -> list[str]:
    """So many edits of the trivial target, each a new program and worse than the first."""
    return [f"LR = {1 + number / 1000:.3f}" for number in range(count)]


@contextmanager
def begun(args: RunArgs, runner: Callable[[Target], Runner]) -> Iterator[Loop]:
    """The run of `args`, which `advance` turns. `runner`: what measures its trials."""
    prepared = start.prepare(args)
    strategy, brain = start.strategy(args, 0)
    with Ledger(args.out) as ledger:
        loop = Loop(
            start.settings(prepared),
            strategy=strategy,
            judge=start.judge(args, prepared.target, prepared.budget),
            runner=runner(prepared.target),
            workspace=prepared.workspace,
            ledger=ledger,
        )
        try:
            yield loop
        finally:
            if close := getattr(brain, "close", None):
                close()


def boxed(target: Target) -> Boxed:
    """The runner of `autoresearch run`: in bubblewrap. Raises SandboxError."""
    return Boxed(target, open_box("auto"), Limits(target.timeout_s))


def advance(loop: Loop, trials: int) -> None:
    """So many trials more, after the baseline if that is not measured yet."""
    done = max(0, loop.position.next_id - 1)
    loop.settings = replace(loop.settings, trials=done + trials)
    loop.run()


@contextmanager
def ways(target: Target) -> Iterator[dict[str, Runner]]:
    """How a trial may be run here: `cold`, or `warm` from a worker that has imported torch."""
    box, limits = open_box("auto"), Limits(target.timeout_s)
    found: dict[str, Runner] = {"cold": Boxed(target, box, limits)}
    worker = warm.worker(target, box, lambda _: None)
    if worker:
        found["warm"] = Boxed(target, box, limits, worker)
    try:
        yield found
    finally:
        if worker:
            worker.close()
