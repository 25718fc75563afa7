"""Exports to Ollama, by its protocol on loopback; what it serves comes from llama.cpp."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters import chatml, export
from adapters.__main__ import run
from adapters.base import open_base
from adapters.gates import Gate
from adapters.ollama import parameters
from adapters.peft_folder import Adapter, read
from loop.errors import AutoresearchError, UsageError
from tests.loopback import Fault, Loopback, unused_port
from tests.ollama_store import OllamaStore
from tests.tiny_model import write_adapter, write_model, write_tokenizer


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaStore]:
    (tmp_path / "blobs").mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with OllamaStore(tmp_path / "blobs") as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.port}")
        yield server


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return read(write_adapter(tmp_path / "mine", write_model(tmp_path / "tiny.gguf")))


def sent(adapter: Adapter, model: str = "mine", base: str = "", **options: Any) -> list[Gate]:
    told: list[Gate] = []
    options = {"unchecked": True} | options
    export.to_ollama(adapter, export.base_of(adapter, base), model, told.append, **options)
    return told


# Fast: without the gates


def test_a_merged_model_says_its_window_its_stop_and_its_template(
    store: OllamaStore, adapter: Adapter
) -> None:
    sent(adapter, window=512)
    assert list(store.models) == ["mine:latest"]
    model = store.models["mine:latest"]
    assert model["parameters"] == {"num_ctx": 512, "stop": ["<|im_end|>", "<|im_start|>"]}
    assert model["template"].startswith("{{ range $i, $m := .Messages }}{{ if and (eq $i 0) (ne $m")
    assert "Be brief." in model["template"]
    made = open_base(str(store.blob(model["files"]["model.gguf"])))
    assert made.tensors.keys() == export.base_of(adapter).tensors.keys()
    assert not list(adapter.path.glob(".scratch*"))
    assert export.recorded(adapter.path)[-1]["where"] == "mine"


def test_a_model_that_ollama_has_lends_its_file_template_and_parameters(
    store: OllamaStore, adapter: Adapter, tmp_path: Path
) -> None:
    digest = "sha256:" + export.base_of(adapter).digest
    store.blob(digest).write_bytes((tmp_path / "tiny.gguf").read_bytes())
    kept = {"temperature": 0.6, "stop": ["END", "<|im_end|>"], "num_ctx": 100}
    store.models["base:1b"] = {
        "files": {"m": digest}, "template": "T", "system": "S", "parameters": kept,
    }  # fmt: skip
    sent(adapter, base="ollama:base:1b")
    model = store.models["mine:latest"]
    assert (model["template"], model["system"]) == ("T", "S")
    assert model["parameters"] == kept | {"num_ctx": 1024}


@pytest.mark.parametrize(
    ("version", "served"),
    [("0.29.9", False), ("0.30.0", True), ("0.34.0", True), ("0.34.1", False), ("0.35.0", False)],
)
def test_the_adapter_form_is_for_the_versions_that_serve_it(
    store: OllamaStore, adapter: Adapter, version: str, served: bool
) -> None:
    store.version = version
    if not served:
        with pytest.raises(AutoresearchError, match=f"Ollama {version} serves no GGUF LoRA"):
            sent(adapter, form="lora-gguf")
        assert not store.models
        return
    sent(adapter, form="lora-gguf")
    model = store.models["mine:latest"]
    assert list(model["files"].values()) == ["sha256:" + export.base_of(adapter).digest]
    assert list(model["adapters"]) == ["adapter.gguf"]


@pytest.mark.parametrize("path", ["/api/create", "/api/copy"])
def test_a_second_export_replaces_the_first_or_leaves_it(
    store: OllamaStore, adapter: Adapter, path: str
) -> None:
    sent(adapter)
    first = store.models["mine:latest"]
    store.at = path
    store.faults.append(Fault(500, {"error": "out of memory"}))
    with pytest.raises(AutoresearchError, match="refuses: out of memory"):
        sent(adapter, window=300)
    assert store.models == {"mine:latest": first}
    sent(adapter, window=300)
    assert list(store.models) == ["mine:latest"]
    assert store.models["mine:latest"]["parameters"]["num_ctx"] == 300


def test_out_of_disk(store: OllamaStore, adapter: Adapter) -> None:
    sent(adapter)
    store.full = True
    before = dict(store.models)
    with pytest.raises(AutoresearchError, match=r"no space left on device; make room there"):
        sent(adapter)
    assert store.models == before


def test_too_old(store: OllamaStore, adapter: Adapter) -> None:
    store.version = "0.5.4"
    with pytest.raises(AutoresearchError, match=r"Ollama 0\.5\.4 cannot create .*update"):
        sent(adapter)


def test_absent(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{unused_port()}")
    with pytest.raises(AutoresearchError, match=r"no Ollama answers at .*ollama serve") as caught:
        sent(adapter)
    assert "\n" not in str(caught.value)


def test_something_else_listens(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Loopback):
        def answer(self, method: str, path: str, body: Any, headers: Any) -> Any:
            return 200, ["not", "ollama"]

    with Other() as other:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{other.port}")
        with pytest.raises(AutoresearchError, match="is not Ollama"):
            sent(adapter)


def test_a_base_that_ollama_does_not_have(store: OllamaStore, adapter: Adapter) -> None:
    with pytest.raises(AutoresearchError, match="'nobody' not found; see: ollama list"):
        sent(adapter, base="ollama:nobody")


def test_parameters_are_read_as_show_prints_them() -> None:
    text = 'num_ctx                        4096\nstop    "<|a|>"\nstop    "<|b|>"\nmirostat_tau 0.5'
    assert parameters({"parameters": text}) == {
        "num_ctx": 4096, "stop": ["<|a|>", "<|b|>"], "mirostat_tau": 0.5,
    }  # fmt: skip
    assert parameters({}) == {}


def test_templates_that_are_not_chatml_are_left_alone() -> None:
    ask = f"<|im_start|>user\n{chatml.PROBE}<|im_end|>\n<|im_start|>assistant\n"
    plain = chatml.from_rendering(ask)
    assert plain is not None and "if and" not in plain
    thinking = chatml.from_rendering(ask + "<think>\n\n</think>\n\n")
    assert thinking is not None and thinking.endswith("assistant\n<think>\n\n</think>\n\n")
    assert chatml.from_rendering(f"<start_of_turn>user\n{chatml.PROBE}<end_of_turn>\n") is None
    assert chatml.from_rendering("{{ x }}" + ask) is None


@pytest.mark.parametrize(
    "argv",
    [
        ("export", "A", "--to", "ollama", "--out", "x"),
        ("export", "A", "--name", "x"),
        ("export", "A", "--form", "adapter"),
        ("export", "A", "--to", "onnx"),
        ("check",),
    ],
)
def test_wrong_usage(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_verb_says_which_there_are() -> None:
    with pytest.raises(UsageError, match="'publish'; there are: check, export, list"):
        run(["publish"])


# Slow: with the gates


@pytest.mark.slow
@pytest.mark.parametrize("form", list(export.FORMS))
def test_what_ollama_serves_is_what_was_checked(
    store: OllamaStore, adapter: Adapter, tmp_path: Path, form: str
) -> None:
    store.version = "0.33.0"
    write_tokenizer(adapter.path, tmp_path / "tiny.gguf")
    told = sent(adapter, form=form, unchecked=False)
    assert [gate.name for gate in told if gate.passed] == [gate.name for gate in told]
    assert {"a effect (Ollama)", "b prompt (Ollama)"} <= {gate.name for gate in told}
    first = dict(store.models)

    store.wrong = "\n"  # as a template that ends otherwise would render
    with pytest.raises(AutoresearchError, match=r"gate failed: b prompt \(Ollama\)"):
        sent(adapter, form=form, unchecked=False)
    assert store.models == first

    store.wrong, store.old = "", True
    told = sent(adapter, form=form, unchecked=False)
    assert [g.name for g in told if g.passed is None] == ["a effect (Ollama)", "b prompt (Ollama)"]
