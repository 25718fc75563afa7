"""One GPU for both: the brain leaves before a training, or both fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loop import gpu, ledger
from loop.__main__ import run
from loop.brains import connect
from loop.errors import UsageError
from loop.target import load
from loop.trial import Scored
from tests.ollama_server import MODEL, OllamaServer


@pytest.fixture(scope="module")
def smol() -> Iterator[Any]:
    brain = connect("llamacpp:smollm2-135m", window=2048, threads=1)
    yield brain
    brain.close()  # type: ignore[attr-defined]


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program nvidia-smi on PATH that prints what its file says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/memory\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path / "memory"


def target(tmp_path: Path, toy: Path, vram: str) -> Any:
    (toy / "target.toml").write_text(
        f'editable = "train.py"\ncommand = ["{{python}}", "train.py"]\n{vram}\n'
        '[metric]\nname = "val_bpb"\n'
    )
    return load(toy)


def test_share_wants_the_training_to_fit_beside_the_brain(
    tmp_path: Path, toy: Path, nvidia: Path
) -> None:
    nvidia.write_text("24564, 18000\n")
    gpu.check_share(target(tmp_path, toy, "vram_mb = 18000"))
    with pytest.raises(UsageError, match="takes 18001 MB, and 18000 MB are free beside the brain"):
        gpu.check_share(target(tmp_path, toy, "vram_mb = 18001"))
    with pytest.raises(UsageError, match=r"needs vram_mb in the target.toml"):
        gpu.check_share(target(tmp_path, toy, ""))
    nvidia.write_text("NVIDIA-SMI has failed\n")
    with pytest.raises(UsageError, match="no NVIDIA GPU answers"):
        gpu.check_share(target(tmp_path, toy, "vram_mb = 1"))


def test_advice_is_a_sentence_for_every_machine(
    nvidia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia.write_text("24564, 23000\n")
    assert "--gpu share for trainings of up to 19564 MB" in gpu.advice()
    nvidia.write_text("4096, 4000\n")
    assert gpu.advice().startswith("--gpu swap")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "leave --gpu out" in gpu.advice()


def test_a_brain_that_cannot_leave_cannot_be_swapped(toy: Path, tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text('{"text": "LR = 0.2"}\n')
    command = ["--target", str(toy), "--brain", f"scripted:{script}", "--gpu", "swap"]
    with pytest.raises(UsageError, match=r"scripted:.* cannot be unloaded; take an ollama: brain"):
        run([*command, "--sandbox", "none", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_swap_trains_without_the_brain_and_charges_the_time(
    smol: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with OllamaServer(smol) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        # The training itself asks the server whether the brain is loaded.
        ask = f"import urllib.request as u\nPS = u.urlopen('{server.url}/api/ps').read()\n"
        (toy / "train.py").write_text(
            ask + (toy / "train.py").read_text() + "print(f\"brains: {PS.count(b'digest')}\")\n"
        )
        run(
            [
                *("--target", str(toy), "--brain", f"ollama:{MODEL}", "--strategy", "menu"),
                *("--gpu", "swap", "--trials", "1", "--sandbox", "none", "--reply-tokens", "80"),
                *("--judge", "naive"),
                *("--out", str(tmp_path / "out")),
            ]
        )
    trials = ledger.trials(tmp_path / "out")
    scored = [t.outcome for t in trials if isinstance(t.outcome, Scored)]
    assert len(scored) >= 1 and server.events[:3] == ["load", "unload", "load"]
    for outcome in scored:
        assert outcome.measurements["brains"] == 0
        assert outcome.measurements["brain_unload_s"] > 0.1
    assert trials[0].seconds > trials[0].outcome.measurements["brain_unload_s"]  # type: ignore[union-attr]
