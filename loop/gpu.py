"""One GPU for the brain and the training: side by side (`share`) or in turn (`swap`).

`share` is checked before the run: what the target says it needs (`vram_mb`) must be free beside the
loaded brain. `swap` unloads the brain before each training, waits until it is gone, and lets it
load again when it is next asked. Both times are charged: unloading to the experiment (and told in
its measurements as `brain_unload_s`), loading to the reply that waits for it.
"""

import dataclasses
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from loop.audit import Split
from loop.brain import Brain
from loop.errors import UsageError
from loop.experiment import Runner
from loop.hopeless import Rival
from loop.target import Target
from loop.trial import Outcome, Scored

GPU = ("", "share", "swap")
BRAIN_MB = 5000
"""A 4B model in 4 to 5 bits with a window of 8,192 tokens, by llama.cpp's own account."""


@runtime_checkable
class Swappable(Protocol):
    """A brain whose memory can be had and given back. `chat` loads it by itself."""

    def load(self) -> None: ...

    def unload(self) -> None: ...


@dataclass(frozen=True)
class SwappingRunner(Runner):
    """A runner before which the brain leaves the GPU."""

    brain: Swappable = field(kw_only=True)

    def run(
        self, folder: Path, env: dict[str, str], log: Path, split: Split = "audit",
        rival: Rival | None = None,
    ) -> tuple[Outcome, float]:  # fmt: skip
        """As `Runner.run`; the seconds include those of the unloading."""
        began = time.monotonic()
        self.brain.unload()
        freed = time.monotonic() - began
        outcome, seconds = super().run(folder, env, log, split, rival)
        return _noted(outcome, freed), seconds + freed


def arrange(mode: str, runner: Runner, brain: Brain | None) -> Runner:
    """`runner`, or with `swap` one that unloads `brain` first."""
    if mode != "swap" or not isinstance(brain, Swappable):
        return runner
    return SwappingRunner(**vars(runner), brain=brain)


def check_swap(brain: Brain) -> None:
    """Raises UsageError for a brain whose memory cannot be had back."""
    if not isinstance(brain, Swappable):
        raise UsageError(f"--gpu swap: {brain.name} cannot be unloaded; take an ollama: brain")


def check_share(target: Target) -> None:
    """Raises UsageError unless the target's `vram_mb` are free beside what is loaded now."""
    if not target.vram_mb:
        raise UsageError(
            "--gpu share needs vram_mb in the target.toml or its profile, the memory that a "
            "training may take; write it there, or take --gpu swap"
        )
    free = free_mb()
    if free is None:
        raise UsageError("--gpu share: no NVIDIA GPU answers (nvidia-smi); leave --gpu out")
    if free < target.vram_mb:
        raise UsageError(
            f"--gpu share: a training takes {target.vram_mb} MB, and {free} MB are free beside the "
            "brain; take --gpu swap, a smaller brain or window, or a smaller profile"
        )


def free_mb() -> int | None:
    """Free memory of the first GPU in MB (2**20 bytes), or None without one."""
    figures = _memory()
    return figures[1] if figures else None


def advice() -> str:
    """Which of the two suits this machine, in a sentence."""
    figures = _memory()
    if figures is None:
        return "no NVIDIA GPU: leave --gpu out"
    total, free = figures
    beside = total - BRAIN_MB
    if beside <= 0:
        return f"--gpu swap: a 4B brain (about {BRAIN_MB} MB) takes the whole {total} MB"
    return (
        f"--gpu share for trainings of up to {beside} MB beside a 4B brain (about {BRAIN_MB} MB), "
        f"--gpu swap above; {free} of {total} MB are free now"
    )


def _memory() -> tuple[int, int] | None:
    """(total, free) MB of the first GPU, by nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run([program, *query], capture_output=True, text=True, timeout=20)
        total, free = (int(part) for part in said.stdout.split(","))
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return total, free


def _noted(outcome: Outcome, seconds: float) -> Outcome:
    if not isinstance(outcome, Scored):
        return outcome
    measured = outcome.measurements | {"brain_unload_s": round(seconds, 3)}
    return dataclasses.replace(outcome, measurements=measured)
