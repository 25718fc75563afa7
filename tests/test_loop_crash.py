"""Kill -9 at random moments: no finished trial is lost or repeated, and every resume succeeds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loop.errors import LedgerError
from loop.ledger import LEDGER, Ledger, trials
from loop.trial import Measurement, Metric, Scored, Trial
from tests.conftest import git, outside

KILLS = 50
REPLIES = 1200


def begin(out: Path, toy: Path, script: Path, *more: str) -> "subprocess.Popen[str]":
    """`run` without an end, in a process group of its own; resumed where there is a run."""
    flags = ["--resume", "--out", str(out)]
    if not (out / "run.toml").exists():
        shutil.rmtree(out, ignore_errors=True)  # killed before there was a run: nothing to lose
        flags = ["--target", str(toy), "--brain", f"scripted:{script}", "--out", str(out)]
        flags += ["--sandbox", "none", "--judge", "naive", "--final-seeds", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "loop", *flags, *more], env=outside(), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def lines(out: Path) -> list[bytes]:
    """The whole lines of the ledger."""
    path = out / LEDGER
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


@pytest.mark.slow
def test_fifty_kills_lose_nothing(toy: Path, tmp_path: Path, scripted: Callable[..., Path]) -> None:
    replies = [f"LR = {1 + number / 1000}" for number in range(1, REPLIES)]
    script = scripted(*replies)
    rng, out, refused = random.Random(4), tmp_path / "r", list[str]()
    lost = 0
    for _ in range(KILLS):
        before = lines(out)
        process = begin(out, toy, script)
        try:
            process.wait(timeout=rng.uniform(0.3, 3.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            refused.append(said)
        after = lines(out)
        lost += sum(line not in after for line in before)
        assert after[: len(before)] == before, "what was written has changed"
    process = begin(out, toy, script, "--trials", str(len(lines(out)) + 3))
    assert process.communicate()[1] == "" and process.returncode == 0
    assert (lost, refused) == (0, [])
    done = trials(out)
    assert len(done) > KILLS // 5, "the kills came before anything could be done"
    assert [trial.id for trial in done] == list(range(len(done)))
    answers = [trial.proposal.answer for trial in done[1:]]
    assert answers == replies[: len(answers)]
    for trial in done:
        if trial.commit:
            found = git(out / "work", "rev-parse", f"refs/trials/{trial.id}").strip()
            assert found == trial.commit


def test_a_clock_that_jumps_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits and pauses go by the monotonic clock: no room reads another to decide anything."""
    from loop.experiment import Limits, Runner
    from loop.sandbox import Box
    from loop.target import Target

    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 10**6 * (time.monotonic() % 2 - 1))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "train.py").write_text("import time; time.sleep(1); print('val_bpb: 1')")
    target = Target("t", tmp_path / "s", "train.py", ("{python}", "train.py"), "val_bpb")
    outcome, seconds = Runner(target, Box(), Limits(20)).run(tmp_path / "s", {}, tmp_path / "log")
    assert isinstance(outcome, Scored) and 0 < seconds < 20


def test_times_of_records_need_not_rise(tmp_path: Path) -> None:
    """A clock set back between two records is no corruption."""
    late = Measurement(0, "noise", 1, "2030-01-01T00:00:00+00:00", 1.0, Scored(Metric("m", 1.0)))
    early = Measurement(0, "noise", 2, "1970-01-01T00:00:00+00:00", 1.0, Scored(Metric("m", 1.0)))
    with Ledger(tmp_path / "r") as ledger:
        ledger.append(late)
        ledger.append(early)
    with Ledger(tmp_path / "r") as ledger:
        assert ledger.records == [late, early]
        with pytest.raises(LedgerError, match="written by process"):
            Ledger(tmp_path / "r")
    assert not [r for r in ledger.records if isinstance(r, Trial)]
