"""No key reaches an experiment or the disk, tried from inside an experiment."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loop.brains import connect
from loop.sandbox import working_bwrap
from tests.conftest import TRAIN, outside
from tests.loopback import Fault
from tests.test_loop_brains_servers import Proxy

KEY = "sk-test-7d793037a0760186574b0282f2f435e7"

THIEF = """
import glob, os, re
KEY = b"7d793037" + b"a0760186574b0282f2f435e7"  # in two parts, so that it does not find itself
FOUND, TRIED = 0, 0
for place in glob.glob("/proc/[0-9]*"):
    if place == f"/proc/{os.getpid()}":
        continue
    try:
        TRIED += 1
        FOUND += KEY in open(f"{place}/environ", "rb").read()
    except OSError:
        pass
    try:
        memory = open(f"{place}/mem", "rb", 0)
        for line in open(f"{place}/maps"):
            start, end, mode = re.match(r"(\\w+)-(\\w+) (\\S+)", line).groups()
            if not mode.startswith("rw") or int(end, 16) - int(start, 16) > 2**28:
                continue
            try:
                memory.seek(int(start, 16))
                FOUND += KEY in memory.read(int(end, 16) - int(start, 16))
            except (OSError, OverflowError):
                pass
    except OSError:
        pass
FOUND += KEY in " ".join(f"{k}={v}" for k, v in os.environ.items()).encode()
print(f"found: {FOUND}")
print(f"tried: {TRIED}")
"""

PARENT = """
import os, subprocess, sys
from pathlib import Path
from loop import secrets
from loop.experiment import Limits, Runner
from loop.sandbox import Box
from loop.target import load
folder = Path(sys.argv[1])
if sys.argv[2] == "plain":
    sys.exit(subprocess.run([sys.executable, folder / "train.py"], env={}).returncode)
secrets.hide()
assert os.environ["OPENAI_API_KEY"]  # the loop itself goes on to have it
outcome, _ = Runner(load(folder), Box(), Limits(60)).run(folder, {}, folder / "log")
print("found:", outcome.measurements["found"])
print("tried:", outcome.measurements["tried"])
"""


@pytest.fixture(scope="module")
def smol() -> Iterator[Any]:
    brain = connect("llamacpp:smollm2-135m", window=2048, threads=1)
    yield brain
    brain.close()  # type: ignore[attr-defined]


def thief(folder: Path) -> Path:
    (folder / "train.py").write_text(TRAIN + THIEF)
    return folder


@pytest.mark.parametrize("kind", ["experiment", "plain"])
def test_an_experiment_without_a_sandbox_cannot_look_into_the_loop(toy: Path, kind: str) -> None:
    """The same program, run as a plain child of a process that hides nothing, finds the key."""
    command = [sys.executable, "-c", PARENT, str(thief(toy)), kind]
    done = subprocess.run(
        command, env=outside(OPENAI_API_KEY=KEY), capture_output=True, text=True, check=True
    )
    said = dict(line.split(": ") for line in done.stdout.splitlines() if ": " in line)
    assert float(said["tried"]) >= 1
    assert (float(said["found"]) > 0) == (kind == "plain"), said


def test_the_loop_refuses_to_run_without_a_sandbox_while_it_has_a_key(
    toy: Path, tmp_path: Path
) -> None:
    command = ["-m", "loop", "--sandbox", "none", "--strategy", "random_edit", "--trials", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--target", str(toy), "--out", str(tmp_path / "out")],
        env=outside(OPENAI_API_KEY=KEY), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "OPENAI_API_KEY" in done.stderr and KEY not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not working_bwrap(), reason="bubblewrap does not work here")
def test_no_key_reaches_disk_or_terminal_or_an_experiment(
    toy: Path, tmp_path: Path, smol: Any
) -> None:
    """A run with a key, in which a server repeats the key to us and experiments look for it."""
    out = tmp_path / "out"
    with Proxy(smol, KEY) as server:
        echo = Fault(400, {"error": {"message": f"I was given {KEY} and dislike it"}})
        command = [
            *("-m", "loop", "--target", str(thief(toy)), "--brain", "openai:smol"),
            *("--base-url", f"{server.url}/v1", "--strategy", "menu", "--reply-tokens", "80"),
            *("--sandbox", "bwrap", "--out", str(out), "--judge", "naive"),
        ]
        env = outside(OPENAI_API_KEY=KEY, NO_PROXY="127.0.0.1", PYTHONDONTWRITEBYTECODE="1")

        def go(*more: str) -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                [sys.executable, *command, *more], env=env, capture_output=True, text=True,
                check=False,
            )  # fmt: skip

        done = go("--trials", "1")
        assert done.returncode == 0, done.stderr
        server.faults.extend([echo] * 9)
        refused = go("--trials", "2", "--resume")
    assert refused.returncode == 1 and "dislike it" in refused.stderr
    said = done.stdout + done.stderr + refused.stdout + refused.stderr
    assert KEY not in said
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]
    logs = (out / "logs" / "0.log").read_text()
    assert "found: 0" in logs and "tried: 0" not in logs
    assert os.environ.get("OPENAI_API_KEY") != KEY
