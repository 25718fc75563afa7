"""What the tests share: a target that takes a tenth of a second, a script of replies, the command.

Everything runs for real: real processes, real git, the scripted brain as the one double.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loop.trial import (
    Call,
    Context,
    Decision,
    Edit,
    KnobChange,
    Message,
    Metric,
    Outcome,
    Proposal,
    Reply,
    Scored,
    Trial,
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has what it starts in the background ignore Ctrl-C, and every child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parent.parent
PLAIN = ("--sandbox", "none", "--judge", "naive", "--final-seeds", "0")

TRAIN = """\
# a tiny trainer in Karpathy's format
LR = 0.1
WIDTH = 8
NAME = "x"


def loss():
    return 1.0 + abs(LR - 0.4) + abs(WIDTH - 32) / 100


print("---")
print(f"val_bpb: {loss():.6f}")
print("peak_vram_mb: 1024")
"""


def outside(**extra: str) -> dict[str, str]:
    """The environment of a command: ours without anything that looks like a key."""
    kept = {k: v for k, v in os.environ.items() if not any(m in k for m in ("KEY", "TOKEN"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"} | extra


def call(module: str, *args: object, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        capture_output=True, text=True, env=outside(**env), timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def run_cli() -> Cli:
    """`python -m autoresearch ARGS`, as a person types it."""
    return lambda *args, **env: call("autoresearch", *args, **env)


@pytest.fixture
def run_loop() -> Cli:
    """`python -m loop ARGS`: the verb `run` without the report after it, plain and quick."""
    return lambda *args, **env: call("loop", *PLAIN, *args, **env)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A folder in Karpathy's format: train.py, prepare.py, program.md, and no target.toml."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    (folder / "prepare.py").write_text("x = 1\n")
    (folder / "program.md").write_text("Make it small.\n")
    return folder


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Path]:
    """(reply, ...) -> the file of a scripted brain."""

    def write(*texts: str) -> Path:
        path = tmp_path / "script.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    return write


def git(folder: Path, *args: str) -> str:
    """Plain git in `folder`, without the reader's configuration."""
    identity = {
        f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *args], cwd=folder, capture_output=True, text=True, check=True,
        env=clean | identity,
    ).stdout  # fmt: skip


def a_trial(
    number: int = 0,
    outcome: Outcome | None = None,
    verdict: str = "",
    description: str = "",
    parts: tuple[str, ...] = ("hello",),
    code_hash: str = "",
) -> Trial:
    """A trial as the loop would record it: the baseline by default."""
    bpb = Metric("val_bpb", 1.5 - number / 100)
    outcome = outcome or Scored(bpb, {"peak_vram_mb": 2048.0})
    decided = verdict or ("baseline" if number == 0 else "discard")
    edit = Edit("--- a\n+++ b\n", (KnobChange("LR", "0.1", "0.2"),), "f" * 64, code_hash)
    calls = (Call((Message("user", parts),), (Reply("LR = 0.2"),), 0.7, 512, number),)
    return Trial(
        id=number,
        run="r",
        parent=None if number == 0 else 0,
        commit="c" * 40,
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        context=Context("a" * 64, None if number == 0 else 0, bpb if number else None, "bare", "h"),
        proposal=Proposal(description or f"trial {number}", calls, edit=edit),
        outcome=outcome,
        decision=Decision(decided, "naive", "because"),  # type: ignore[arg-type]
    )
