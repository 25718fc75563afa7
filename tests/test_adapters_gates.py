"""The gates pass for what is right and fail for what is wrong, measured on logits."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters import export, gates, lora_gguf, placement
from adapters.base import open_base
from adapters.gates import Change, Gate
from adapters.peft_folder import Adapter, read
from adapters.served import serve
from adapters.trained import Trained
from loop.errors import AutoresearchError
from tests.conftest import ROOT, call, outside
from tests.tiny_model import write_adapter, write_model, write_tokenizer

EXACT = 0.02
"""Nats: the tiny model has float32 weights, so llama.cpp and torch differ by next to nothing."""


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    model = write_model(tmp_path / "tiny.gguf")
    folder = write_adapter(tmp_path / "adapter", model)
    write_tokenizer(folder, model)
    return read(folder)


def checked(adapter: Adapter, form: str) -> tuple[dict[str, Gate], str]:
    """Every gate by name, and what the failure says."""
    told: list[Gate] = []
    try:
        export.check(adapter, export.base_of(adapter), form, told.append)
    except AutoresearchError as error:
        return {gate.name: gate for gate in told}, str(error)
    return {gate.name: gate for gate in told}, ""


def change(served: float, torch: float) -> Change:
    """Every entry moves by so much."""

    def full(value: float) -> NDArray[np.float32]:
        return np.full((2, 3), value, np.float32)

    return Change(full(served), full(torch), np.ones((2, 3), np.bool_))


# Fast: the rules


@pytest.mark.parametrize(
    ("served", "torch", "passed"),
    [(1.0, 1.0, True), (1.08, 1.0, True), (1.3, 1.0, False), (0.0, 0.1, False), (-1.0, 1.0, False)],
)
def test_the_effect_may_err_by_rounding_and_a_share(
    served: float, torch: float, passed: bool
) -> None:
    assert gates.effect_gate("a", change(served, torch)).passed is passed


@pytest.mark.parametrize(
    ("served", "torch", "zero", "passed"),
    [(1.0, 1.0, False, True), (0.0, 1.0, False, False), (0.0, 0.0, True, True),
     (1.0, 0.0, True, False)],
)  # fmt: skip
def test_an_adapter_must_be_alive_unless_it_is_zero(
    served: float, torch: float, zero: bool, passed: bool
) -> None:
    assert gates.alive_gate(change(served, torch), zero).passed is passed


def test_versions_are_compared_as_numbers() -> None:
    assert gates.number("0.34.1-rc0") == (0, 34, 1)
    assert gates.number("0.9.10") < gates.number("0.30.0")
    assert gates.number("2.13.0+cpu") > gates.number("2.11")


def test_an_adapter_of_a_newer_peft_is_told(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    folder = write_adapter(tmp_path / "a", model, config={"peft_version": "99.1.0"})
    gate = gates.versions_gate(read(folder), open_base(str(model)))
    assert gate.passed is False
    assert "99.1.0, which wrote the adapter" in gate.said


# Slow: torch beside llama.cpp


@pytest.mark.slow
@pytest.mark.parametrize("form", list(export.FORMS))
def test_all_gates_pass_and_fail_when_the_permutation_is_removed(
    adapter: Adapter, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, failure = checked(adapter, form)
    assert not failure
    assert all(gate.passed for gate in found.values())
    for name in ("a effect", "a effect of a random q/k adapter"):
        assert found[name].figures["torch"] > 1
        assert found[name].figures["error"] < EXACT

    monkeypatch.setattr(placement, "permute", lambda b, heads: b)
    found, failure = checked(adapter, form)
    assert failure.startswith("gate failed: a effect, a effect of a random q/k adapter; nothing")
    assert found["a effect of a random q/k adapter"].figures["error"] > 50 * EXACT
    assert found["b prompt"].passed and found["c alive"].passed, "they cannot see it"


@pytest.mark.slow
def test_a_wrong_scale_fails(adapter: Adapter) -> None:
    found, failure = checked(dataclasses.replace(adapter, scale=2 * adapter.scale), "lora-gguf")
    assert "gate failed: a effect;" in failure
    assert found["a effect of a random q/k adapter"].passed, "it has its own scale"


@pytest.mark.slow
def test_another_tokenizer_fails_and_says_where(adapter: Adapter, tmp_path: Path) -> None:
    """transformers forgets that this tokenizer splits digits off, so blanks before one differ."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf").save_pretrained(adapter.path)
    tokenizer = AutoTokenizer.from_pretrained(adapter.path)
    tokenizer.chat_template = tokenizer.chat_template.replace("Be brief.", "Be brief!")
    tokenizer.save_pretrained(adapter.path)
    found, failure = checked(adapter, "lora-gguf")
    assert "gate failed: b prompt;" in failure
    assert "conversation 0 differs from token" in found["b prompt"].said


@pytest.mark.slow
def test_a_zero_adapter_passes_as_zero(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", "Q8_0")
    folder = write_adapter(tmp_path / "zero", model, size=0.0)
    write_tokenizer(folder, model)
    found, failure = checked(read(folder), "merged-gguf")
    assert not failure
    assert found["a effect"].figures["served"] == 0
    assert "zero in torch" in found["c alive"].said


@pytest.mark.slow
def test_a_failed_gate_leaves_the_previous_file(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from adapters.__main__ import run

    out = adapter.path / "merged.gguf"
    assert run(["export", str(adapter.path)]) == 0
    before = out.read_bytes()
    monkeypatch.setattr(placement, "permute", lambda b, heads: b)
    with pytest.raises(AutoresearchError, match="gate failed"):
        run(["export", str(adapter.path)])
    assert out.read_bytes() == before
    assert not list(adapter.path.glob(".*"))
    assert [line["form"] for line in export.recorded(adapter.path)] == ["merged-gguf"]
    assert "FAILED a effect: changes" in capsys.readouterr().out


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_the_previous_file(adapter: Adapter) -> None:
    out, beside = adapter.path / "lora.gguf", adapter.path / ".lora.unfinished.gguf"
    out.write_bytes(b"previous")
    command = [sys.executable, "-m", "adapters", "export", str(adapter.path), "--to", "lora-gguf"]
    process = subprocess.Popen(command, cwd=ROOT, env=outside())
    until = time.monotonic() + 100
    while not beside.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert out.read_bytes() == b"previous"
    done = call("adapters", "export", adapter.path, "--to", "lora-gguf", "--unchecked")
    assert done.returncode == 0, done.stderr
    assert "not measured: --unchecked" in done.stdout
    assert out.read_bytes()[:4] == b"GGUF"
    assert not beside.exists()
    listed = call("adapters", "list", adapter.path.parent)
    assert "lora-gguf: " in listed.stdout


@pytest.mark.slow
def test_the_embedded_model_with_a_random_qk_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_base("smollm2-135m")
    like = read(write_adapter(tmp_path / "like", write_model(tmp_path / "tiny.gguf")))
    gates.random_adapter(like, base, tmp_path / "random")
    random = read(tmp_path / "random")
    with serve(base, base.path) as engine:
        prompts = gates.positions(engine.render, engine.tokens)[::4]
        plain = np.stack([engine.logprobs(ids) for ids in prompts])
    trained = Trained(base)
    without, with_it = trained.logprobs(prompts), trained.logprobs(prompts, random.path)
    counts = np.maximum(without, with_it) > np.log(gates.PROBABLE)

    def gate() -> Gate:
        lora_gguf.write(random, base, tmp_path / "lora.gguf")
        with serve(base, base.path, tmp_path / "lora.gguf") as engine:
            served = np.stack([engine.logprobs(ids) for ids in prompts])
        return gates.effect_gate("a", Change(served - plain, with_it - without, counts))

    right = gate()
    monkeypatch.setattr(placement, "permute", lambda b, heads: b)
    wrong = gate()
    assert right.passed and not wrong.passed
    assert wrong.figures["error"] > 4 * right.figures["error"]


def test_the_slope_sees_a_wrong_scale_below_the_rounding() -> None:
    """A change of 0.05 nat under a rounding of 0.13, as an adapter of few steps has it."""
    random = np.random.default_rng(0)
    torch = (random.standard_normal((16, 200)) * 0.05).astype(np.float32)
    noise = (random.standard_normal((16, 200)) * 0.13).astype(np.float32)
    counts = np.ones(torch.shape, np.bool_)
    right = gates.effect_gate("a", Change(torch + noise, torch, counts))
    wrong = gates.effect_gate("a", Change(2 * torch + noise, torch, counts))
    assert right.passed and wrong.passed is False
    assert wrong.figures["error"] < wrong.figures["allowed"], "the slope alone sees it"
