"""Training for real: trl on a tiny chat model, and on the embedded one."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from finetune import adapter, base, memory
from finetune.recipe import PRESETS
from finetune.train import run
from loop.errors import AutoresearchError, UsageError
from tests import finetune_rows as made
from tests.conftest import ROOT, outside

pytestmark = pytest.mark.slow
EMBEDDED = base.EMBEDDED["smollm2-135m"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.chat_model(tmp_path_factory.mktemp("base") / "tiny")


def train(rows: Path, tiny: Path, out: Path, *more: str) -> int:
    return run([str(rows), "--out", str(out), "--base", str(tiny), "--precision", "fp32",
                "--preset", "smollm2-cpu", "--replies", "1", "--max-steps", "2",
                *more])  # fmt: skip


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(bool((one[k] == two[k]).all()) for k in one)


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "adapter.toml").read_text())
    return found


def test_sft_then_kto(tmp_path: Path, tiny: Path) -> None:
    sft, kto = tmp_path / "sft", tmp_path / "kto"
    assert train(made.write(tmp_path / "r1", "sft"), tiny, sft) == 0
    said = about(sft)
    assert {p.name for p in sft.iterdir()} == {
        "adapter.toml", "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    assert said["base"]["digest"] == base.find(str(tiny)).digest and said["licence"] == "mit"
    assert said["strategy"] == "menu" and said["training"]["steps"] == 2
    assert said["recipe"]["rank"] == 8 and said["training"]["tokens_seen"] > 1000
    after = said["metrics"]["after"]
    assert after["wins"] == 2 and after["others"] == 2 and 0 <= after["choice"] <= 1
    assert after["choice_uniform"] == 1 / len(made.MOVES) and after["valid_n"] == 1
    assert not list(tmp_path.glob(".*")), "nothing is left beside"

    rows = made.write(tmp_path / "r2", "kto")
    assert train(rows, tiny, kto, "--method", "kto", "--start", str(sft)) == 0
    assert about(kto)["start"]["corpus"] == said["corpus"]["digest"]
    assert about(kto)["recipe"]["rank"] == 8 and not same(sft, kto)
    assert not [name for name in weights(kto) if "ref" in name], "the reference stays out"


def test_dpo_learns_to_prefer(tmp_path: Path, tiny: Path) -> None:
    rows = made.write(tmp_path / "r", "dpo")
    assert train(rows, tiny, tmp_path / "a", "--method", "dpo", "--learning-rate", "0.01",
                 "--max-steps", "8") == 0  # fmt: skip
    metrics = about(tmp_path / "a")["metrics"]
    assert metrics["after"]["margin"] > metrics["before"]["margin"]


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_a_coarse_base_still_learns_after_it_was_judged(
    tmp_path: Path, tiny: Path, precision: str
) -> None:
    rows = made.write(tmp_path / "r", "sft")
    assert train(rows, tiny, tmp_path / "a", "--precision", precision, "--max-steps", "8",
                 "--learning-rate", "0.02") == 0  # fmt: skip
    metrics = about(tmp_path / "a")["metrics"]
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 0.2


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, tiny: Path) -> None:
    rows = made.write(tmp_path / "r", "sft")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train(rows, tiny, tmp_path / name, "--seed", seed, "--held-out", "none")
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_what_is_written_is_what_was_trained(tmp_path: Path, tiny: Path) -> None:
    """peft alone, which knows nothing of us, gets the held-out loss that adapter.toml names."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finetune.evaluate import evaluate

    rows = made.write(tmp_path / "r", "sft")
    train(rows, tiny, tmp_path / "a", "--learning-rate", "0.02")
    model = AutoModelForCausalLM.from_pretrained(str(tiny))
    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "a"))
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    found = [made.row("sft", i) for i in range(4)]
    got = evaluate(wrapped, tokenizer, found, "sft", "menu", 2048, 0)
    metrics = about(tmp_path / "a")["metrics"]
    assert got["loss"] == pytest.approx(metrics["after"]["loss"], abs=1e-4)
    assert metrics["after"]["loss"] < metrics["before"]["loss"]


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_interrupted_and_resumed_it_ends_the_same(
    tmp_path: Path, tiny: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made.write(tmp_path / "r", method)
    more = ["--max-steps", "6", "--held-out", "none", "--method", method]
    if method == "kto":
        train(made.write(tmp_path / "r0", "sft"), tiny, tmp_path / "s", "--held-out", "none")
        more += ["--start", str(tmp_path / "s"), "--learning-rate", "0.01"]
    lines: list[str] = []

    def listen(text: str) -> None:
        lines.append(text)
        if text.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr("finetune.train._say", listen)
        assert train(rows, tiny, tmp_path / "a", *more) == 130
    assert "--resume" in lines[-1] and not (tmp_path / "a").exists()
    with pytest.raises(UsageError, match="go on with --resume"):
        train(rows, tiny, tmp_path / "a", *more)
    with pytest.raises(UsageError, match="had another seed"):
        train(rows, tiny, tmp_path / "a", *more, "--resume", "--seed", "9")
    assert train(rows, tiny, tmp_path / "a", *more, "--resume") == 0
    assert not (tmp_path / ".a.training").exists()
    assert train(rows, tiny, tmp_path / "b", *more) == 0
    assert about(tmp_path / "a")["training"]["steps"] == 6
    assert same(tmp_path / "a", tmp_path / "b")


def test_killed_it_goes_on_from_the_last_whole_checkpoint(tmp_path: Path, tiny: Path) -> None:
    rows = made.write(tmp_path / "r", "sft")
    more = ("--max-steps", "100", "--held-out", "none")
    args = [str(rows), "--out", str(tmp_path / "a"), "--base", str(tiny), "--precision", "fp32",
            "--preset", "smollm2-cpu", *more]  # fmt: skip
    place = tmp_path / ".a.training"
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *args], cwd=ROOT, env=outside(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not list(place.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a").exists()
    torn = place / "checkpoint-9999"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_st')
    assert run([*args, "--resume"]) == 0
    assert about(tmp_path / "a")["training"]["steps"] == 100


def test_what_does_not_fit_together_is_refused_before_training(tmp_path: Path, tiny: Path) -> None:
    sft = tmp_path / "sft"
    train(made.write(tmp_path / "r1", "sft"), tiny, sft, "--held-out", "none")
    bare = made.write(tmp_path / "r2", "kto", "bare")
    menu = made.write(tmp_path / "r3", "kto")
    kto = ("--method", "kto", "--start", str(sft))
    with pytest.raises(UsageError, match="trained for menu, the rows are for bare"):
        train(bare, tiny, tmp_path / "o", *kto)
    other = made.chat_model(tmp_path / "base2")
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(UsageError, match="not on this"):
        train(menu, other, tmp_path / "o", *kto)
    with pytest.raises(UsageError, match="exists and is not empty"):
        train(menu, tiny, sft, *kto)
    with pytest.raises(UsageError, match="is no adapter"):
        train(menu, tiny, tmp_path / "o", "--method", "kto", "--start", str(tmp_path))
    with pytest.raises(UsageError, match="nothing to resume"):
        train(menu, tiny, tmp_path / "o", *kto, "--resume")
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="not a GGUF"):
        train(menu, tmp_path / "no.gguf", tmp_path / "o", *kto)
    with pytest.raises(UsageError, match="no model"):
        train(menu, tmp_path / "r1", tmp_path / "o", *kto)
    assert not list(tmp_path.glob("o*")) and not list(tmp_path.glob(".o*"))


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, tiny: Path) -> None:
    rows = made.write(tmp_path / "r", "sft")
    with pytest.raises(AutoresearchError, match="diverged"):
        train(rows, tiny, tmp_path / "a", "--learning-rate", "1e38", "--max-steps", "4",
              "--held-out", "none")  # fmt: skip
    assert not (tmp_path / "a").exists()


def test_memory_is_refused_before_loading(tiny: Path) -> None:
    """The shape of Qwen3-4B, from its published configuration, without its weights."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    recipe = PRESETS["4b-24gb"]
    needed = memory.of_model(model, recipe, "sft", 8192, "cuda")
    assert 2e9 < needed.weights < 3e9 and needed.total < 22e9
    memory.check(needed, 22e9, recipe, 8192)
    with pytest.raises(AutoresearchError, match=r"needs about .* 6\.0 GB are free: try"):
        memory.check(needed, 6e9, recipe, 8192)
    small = memory.estimate(tiny, PRESETS["smollm2-cpu"], "sft", 100, "cpu")
    assert small.weights < 1e6


@pytest.mark.skipif(
    not (Path(os.environ.get("AUTORESEARCH_CACHE", "~/.cache/autoresearch")).expanduser()
         / "models" / EMBEDDED).is_file(),
    reason="the embedded model has not been fetched",
)  # fmt: skip
def test_ten_steps_on_the_embedded_model(tmp_path: Path) -> None:
    rows = made.write(tmp_path / "r", "sft")
    assert run([str(rows), "--out", str(tmp_path / "a"), "--preset", "smollm2-cpu",
                "--max-steps", "10", "--replies", "0", "--strategy", "menu"]) == 0  # fmt: skip
    said = adapter.read(tmp_path / "a")
    before, after = said["metrics"]["before"], said["metrics"]["after"]
    assert after["loss"] < before["loss"] - 0.1
    assert after["win_logprob"] > before["win_logprob"]
    assert said["licence"] == "apache-2.0" and said["base"]["name"] == "smollm2-135m"
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m" and not config["use_dora"]
