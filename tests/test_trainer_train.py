"""The trainee as a process: what it prints and leaves, its budgets, its second-box evaluation."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

TRAINER = Path(__file__).parent.parent / "trainer"
CACHE = Path(os.environ.get("AUTORESEARCH_CACHE") or "~/.cache/autoresearch").expanduser()
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith("AUTORESEARCH_")}
SOURCE = (TRAINER / "train.py").read_text()
TARGET = tomllib.loads((TRAINER / "target.toml").read_text())
CPU = tomllib.loads((TRAINER / "profiles" / "cpu.toml").read_text())
Done = subprocess.CompletedProcess[str]


def trainer(folder: Path, *command: str, **settings: object) -> Done:
    """Run `python *command` in a trainer folder with AUTORESEARCH_<NAME> set from `settings`."""
    environ = {f"AUTORESEARCH_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**PLAIN, "AUTORESEARCH_CACHE": str(CACHE), **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def train(out: Path, folder: Path = TRAINER, **settings: object) -> Done:
    return trainer(folder, "train.py", **{"out": out, "budget": "3e9flops", **settings})


def result(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "result.json").read_text())
    return loaded


def evaluate(weights: Path, split: str) -> dict[str, Any]:
    done = trainer(TRAINER, "prepare.py", "evaluate", "--weights", str(weights), "--split", split)
    assert done.returncode == 0, done.stderr
    line: dict[str, Any] = json.loads(done.stdout)
    return line


def knobs(source: str = SOURCE) -> dict[str, Any]:
    """Every module-level ALL_CAPS = literal."""
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def edited(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    """A copy of the trainer in which train.py has been edited."""
    folder = tmp_path / "trainer"
    shutil.copytree(TRAINER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = SOURCE
    for old, new in replacements:
        assert old in source, f"train.py no longer holds {old!r}"
        source = source.replace(old, new)
    (folder / "train.py").write_text(source)
    return folder


@pytest.fixture(scope="session", autouse=True)
def prepared() -> None:
    done = trainer(TRAINER, "prepare.py")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one short experiment that saw only the files it may see."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "texts" / "kjv").mkdir(parents=True)
    for path in CPU["files"]["train"]:
        source = Path(path.format(cache=CACHE, text="kjv"))
        shutil.copy(source, cache / "texts" / "kjv" / source.name)
    out = tmp_path_factory.mktemp("out")
    done = train(out, cache=cache)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_summary_block_is_karpathys(trained: tuple[Path, str]) -> None:
    block = trained[1].partition("\n---\n")[2].splitlines()
    assert [line.split(":")[0] for line in block] == [
        *("val_bpb", "training_seconds", "total_seconds", "peak_vram_mb", "mfu_percent"),
        *("total_tokens_M", "num_steps", "num_params_M", "depth"),
    ]
    printed = float(block[0].split()[1])
    assert printed == pytest.approx(result(trained[0])["metric"]["val_bpb"], abs=1e-6)
    assert 2 < printed < 8


def test_the_result_says_what_was_spent(trained: tuple[Path, str]) -> None:
    measured = result(trained[0])["measurements"]
    assert 3e9 <= measured["flops"] < 3e9 + measured["flops"] / measured["num_steps"] * 1.01
    assert measured["seed"] == 0
    assert measured["budget"] == "3e+09flops"
    curve = measured["curve"]
    assert curve[0][0] == 0.0
    assert curve[-1][1] < curve[0][1], "the training loss did not fall"


@pytest.mark.slow
def test_a_second_box_measures_what_training_reported(trained: tuple[Path, str]) -> None:
    out, _ = trained
    line = evaluate(out / "weights.safetensors", "val")
    assert line["bytes"] == CPU["data"]["eval_tokens"]
    assert line["bpb"] == result(out)["metric"]["val_bpb"]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["audit", "test"])
def test_the_deciding_bytes_are_others(trained: tuple[Path, str], split: str) -> None:
    line = evaluate(trained[0] / "weights.safetensors", split)
    assert line["split"] == split
    assert line["bpb"] != result(trained[0])["metric"]["val_bpb"]
    assert line["bpb"] == pytest.approx(result(trained[0])["metric"]["val_bpb"], rel=0.1)


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    weights, witness = tmp_path / "weights.safetensors", tmp_path / "unpickled"
    weights.write_bytes(f"cpathlib\nPath.touch\n(cpathlib\nPath\n(V{witness}\ntRtR.".encode())
    done = trainer(TRAINER, "prepare.py", "evaluate", "--weights", str(weights), "--split", "val")
    assert done.returncode == 1
    assert "does not fit build_model" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not witness.exists()


@pytest.mark.slow
def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    folder = edited(tmp_path, ("(past < 0) | (past >= window)", "past >= window"))
    assert train(tmp_path, folder, budget="3e10flops").returncode == 0
    weights = str(tmp_path / "weights.safetensors")
    done = trainer(folder, "prepare.py", "evaluate", "--weights", weights, "--split", "val")
    assert done.returncode == 1
    assert "sees later tokens" in done.stderr


@pytest.mark.slow
def test_flops_make_a_busy_and_an_idle_machine_agree(
    tmp_path: Path, trained: tuple[Path, str]
) -> None:
    burn = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(burn) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        done = train(tmp_path, threads=1)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done.returncode == 0, done.stderr
    here, there = (result(out)["metric"]["val_bpb"] for out in (tmp_path, trained[0]))
    assert here == pytest.approx(there, abs=1e-6)


@pytest.mark.slow
def test_seeds_differ(tmp_path: Path, trained: tuple[Path, str]) -> None:
    assert train(tmp_path, seed=1).returncode == 0
    assert result(tmp_path)["metric"]["val_bpb"] != result(trained[0])["metric"]["val_bpb"]


@pytest.mark.slow
def test_a_wall_clock_budget_counts_training_only(tmp_path: Path) -> None:
    done = train(tmp_path, budget="0.5s")
    assert done.returncode == 0, done.stderr
    measured = result(tmp_path)["measurements"]
    assert measured["training_seconds"] >= 0.5
    assert measured["flops"] > 0
    parts = measured["training_seconds"] + measured["startup_seconds"] + measured["eval_seconds"]
    assert measured["total_seconds"] >= parts - 0.1


def test_a_diverging_loss_ends_with_one_line(tmp_path: Path) -> None:
    folder = edited(tmp_path, ("MATRIX_LR = 0.03", "MATRIX_LR = 1e38"))
    done = train(tmp_path, folder)
    assert done.returncode == 1
    assert "diverged" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "result.json").exists()


def test_an_impossible_knob_says_so(tmp_path: Path) -> None:
    folder = edited(tmp_path, ("SHORT_WINDOW = 64", "SHORT_WINDOW = 100"))
    done = train(tmp_path, folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "AssertionError: SHORT_WINDOW must divide 256"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": "5 minutes"}, "write 300s or 2e11flops"),
        ({"budget": "0s"}, "write 300s or 2e11flops"),
        ({"profile": "tpu"}, "choose one of: 24gb, cpu, h100"),
        ({"variant": "latin"}, "choose one of: kjv, stdlib"),
        ({"seed": "one"}, "AUTORESEARCH_SEED='one' is not an integer"),
    ],
)
def test_a_bad_setting_is_one_line(settings: dict[str, str], words: str) -> None:
    done = trainer(TRAINER, "prepare.py", **settings)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unprepared_text_says_what_to_run(tmp_path: Path) -> None:
    done = train(tmp_path, cache=tmp_path / "empty")
    assert done.returncode == 1
    assert "run: python prepare.py" in done.stderr.splitlines()[-1]


WINDOWS = """
import torch, train
torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 3, 64, 8)
at = torch.arange(64)
for window in (8, 16, 32, 64):
    past = at[:, None] - at
    seen = (past >= 0) & (past < window)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(train.attend(q, k, v, window), wanted)
g = torch.randn(5, 24, 8)
s = torch.linalg.svdvals(train.orthogonal(g))
assert s.min() > 0.3 and s.max() < 1.3, (s.min(), s.max())
"""


@pytest.mark.slow
def test_chunked_windows_equal_masked_attention_and_muon_orthogonalises() -> None:
    done = trainer(TRAINER, "-c", WINDOWS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "importing train.py must do nothing"


ON_PAPER = """
import types
import torch
import train
F = torch.nn.functional

def varlen_attn(q, k, v, ends_q, ends_k, max_q, max_k, *, window_size):
    # what torch.nn.attention.varlen computes on a GPU, for sequences of one length
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16, (q.dtype, k.dtype, v.dtype)
    assert ends_q.tolist() == ends_k.tolist() == list(range(0, len(q) + 1, max_q))
    past = torch.arange(max_q)[:, None] - torch.arange(max_q)
    left, right = window_size
    seen = (past >= -right) & ((past <= left) | (left < 0))
    q, k, v = (z.unflatten(0, (-1, max_q)).transpose(1, 2) for z in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(0, 1)

source = open("train.py").read()
for old, new in {".is_cuda": ".is_cpu", 'autocast("cuda"': 'autocast("cpu"'}.items():
    assert old in source
    source = source.replace(old, new)
paper = types.ModuleType("paper")
exec(source, vars(paper))
paper.varlen_attn = varlen_attn
x = torch.randint(256, (2, 256), generator=torch.Generator().manual_seed(0))
losses = []
for module in (train, paper):
    torch.manual_seed(0)
    model = module.build_model(256, 256)
    optimizer = module.Optimizer(model)
    for _ in range(5):
        logits = model(x)
        assert logits.dtype == torch.float32
        loss = F.cross_entropy(logits.flatten(0, 1), x.flatten())
        loss.backward()
        optimizer.step(1.0)
        model.zero_grad()
    losses.append(loss.item())
assert losses[0] < 4 and abs(losses[0] - losses[1]) < 0.03, losses
"""


@pytest.mark.slow
def test_the_path_of_a_gpu_computes_the_same_in_bfloat16() -> None:
    done = trainer(TRAINER, "-c", ON_PAPER)
    assert done.returncode == 0, done.stderr


def test_every_knob_has_a_space_that_holds_its_starts() -> None:
    assert set(knobs()) == set(TARGET["knobs"])
    for path in TARGET["profiles"].values():
        profile = tomllib.loads((TRAINER / path).read_text())
        spaces = {**TARGET["knobs"], **profile["knobs"]}
        for variant in profile["variants"].values():
            start = {**knobs(), **profile["start"], **variant.get("start", {})}
            assert set(start) == set(knobs())
            for name, value in start.items():
                space = spaces[name]
                held = value in space.get("choices", ()) or (
                    "low" in space and space["low"] <= value <= space["high"]
                )
                assert held, f"{path}: {name} = {value} lies outside {space}"
                assert type(value) is type(knobs()[name]), f"{path}: {name} changes its type"


BUILD = """
import json, sys, torch, train
for values, seq_len in json.loads(sys.argv[1]):
    vars(train).update(values)
    with torch.device("meta"):
        model = train.build_model(64, seq_len)
        logits = model(torch.zeros(1, seq_len, dtype=torch.long))
    assert logits.shape == (1, seq_len, 64)
    assert len(model.blocks) == train.DEPTH
"""


@pytest.mark.slow
def test_every_start_of_every_profile_builds() -> None:
    starts = []
    for path in TARGET["profiles"].values():
        profile = tomllib.loads((TRAINER / path).read_text())
        for variant in profile["variants"].values():
            values = {**knobs(), **profile["start"], **variant.get("start", {})}
            starts.append((values, {**profile["data"], **variant.get("data", {})}["seq_len"]))
    assert len(CPU["variants"]) >= 6
    done = trainer(TRAINER, "-c", BUILD, json.dumps(starts))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_small_model_can_read_it() -> None:
    assert len(SOURCE.splitlines()) <= 200
    assert count_tokens(SOURCE) <= 3000
    assert count_tokens((TRAINER / "program.md").read_text()) < 250


def count_tokens(text: str) -> int:
    """SmolLM2's count where its GGUF is here; else the share that it gave train.py."""
    model = CACHE / "models" / "smollm2-135m.q8_0.gguf"
    if not model.is_file():
        return round(len(text) / 2.75 if "import torch" in text else len(text) / 3.5)
    from gguf import GGUFReader
    from tokenizers import Tokenizer, models, pre_tokenizers

    fields = GGUFReader(model).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return len(tokenizer.encode(text).ids)


def test_the_hashes_of_the_fixed_files_are_current() -> None:
    paths = [*TRAINER.glob("*.py"), *TRAINER.glob("profiles/*.toml"), TRAINER / "program.md"]
    names = {path.relative_to(TRAINER).as_posix() for path in paths}
    names -= {"train.py", "measure.py", "forked.py"}
    right = {n: hashlib.sha256((TRAINER / n).read_bytes()).hexdigest() for n in sorted(names)}
    lines = "\n".join(f'"{name}" = "{digest}"' for name, digest in right.items())
    assert TARGET["fixed"] == right, f"write into target.toml:\n[fixed]\n{lines}"


def test_what_train_imports_is_torch_and_the_fixed_file() -> None:
    imported = re.findall(r"^\s*(?:from|import) (\w+)", SOURCE, re.MULTILINE)
    assert set(imported) == {"torch", "run"}
