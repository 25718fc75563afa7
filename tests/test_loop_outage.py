"""A brain's server that is down pauses the run; no trial is spent on it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loop import ledger
from loop import run as loop_run
from loop.__main__ import run
from loop.brains import connect, retry
from loop.errors import INTERRUPTED, BrainError
from loop.trial import Event, Rejected, Trial
from tests.loopback import Fault
from tests.ollama_server import MODEL, OllamaServer

DOWN = Fault(503, {"error": "the model is being moved"})


@pytest.fixture(scope="module")
def smol() -> Iterator[Any]:
    brain = connect("llamacpp:smollm2-135m", window=2048, threads=1)
    yield brain
    brain.close()  # type: ignore[attr-defined]


@pytest.fixture
def server(smol: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(loop_run, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with OllamaServer(smol) as found:
        monkeypatch.setenv("OLLAMA_HOST", found.url)
        found.at = "/api/chat"
        found.faults.append(Fault())  # loading goes well
        yield found


def command(toy: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--target", str(toy), "--brain", f"ollama:{MODEL}", "--strategy", "menu"),
        *(
            "--judge",
            "naive",
            "--sandbox",
            "none",
            "--reply-tokens",
            "80",
            "--out",
            str(out),
            *more,
        ),
    ]


def test_a_run_waits_for_its_brain_and_burns_no_trial(
    server: OllamaServer, toy: Path, tmp_path: Path
) -> None:
    server.faults.extend([DOWN] * (2 * retry.ATTEMPTS + 1))
    console = Console(record=True, width=200)
    assert run(command(toy, tmp_path / "out", "--trials", "1"), console) == 0
    records = list(ledger.read(tmp_path / "out"))
    events = [r for r in records if isinstance(r, Event)]
    assert [e.name for e in events] == ["brain_down"]
    assert "does not answer: status 503: the model is being moved" in events[0].data["reason"]
    assert "brain_down" in console.export_text()
    trials = [r for r in records if isinstance(r, Trial)]
    assert [t.id for t in trials] == [0, 1] and trials[1].proposal.calls


def test_patience_ends_and_the_run_can_be_resumed(
    server: OllamaServer, toy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    server.faults.extend([DOWN] * 100)
    with pytest.raises(BrainError, match=r"waited \d+ s: mend it, then --resume"):
        run(command(toy, out, "--trials", "1", "--patience", "0.1"))
    assert [t.id for t in ledger.trials(out)] == [0]
    server.faults.clear()
    assert run(["--resume", "--out", str(out)]) == 0
    assert [t.id for t in ledger.trials(out)] == [0, 1]
    assert not isinstance(ledger.trials(out)[0].outcome, Rejected)


def test_a_run_that_waits_can_be_stopped(server: OllamaServer, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server.faults.extend([DOWN] * 10_000)

    def stop_when_down() -> None:
        while not (out / "ledger.jsonl").exists() or "brain_down" not in (
            out / "ledger.jsonl"
        ).read_text("utf-8"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop_when_down, daemon=True)
    thread.start()
    try:
        assert run(command(toy, out, "--trials", "3")) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert [t.id for t in ledger.trials(out)] == [0]
