"""Adapter files: what is written, what is left alone, and what does not fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, quants
from numpy.typing import NDArray

from adapters import export, lora_gguf, merge
from adapters.base import Base, open_base
from adapters.peft_folder import Adapter, read
from adapters.placement import permute, place
from adapters.publish import unfinished
from loop.errors import AutoresearchError, UsageError
from tests.tiny_model import EMBEDDING, HEADS, MODULES, write_adapter, write_model

Q, V = "self_attn.q_proj", "self_attn.v_proj"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf", "Q8_0")


def made(tmp_path: Path, model: Path, **options: Any) -> tuple[Adapter, Base]:
    return read(write_adapter(tmp_path / "adapter", model, **options)), open_base(str(model))


def weights(path: Path) -> dict[str, NDArray[np.float32]]:
    return {t.name: quants.dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}


# Row order


def rotated(x: NDArray[Any], pairs: Sequence[tuple[int, int]], at: int) -> NDArray[Any]:
    """One head [d] turned by rotary embedding at position `at`, pair i by 10000^(-2i/d)."""
    out = x.copy()
    for i, (one, two) in enumerate(pairs):
        angle = at * 10000.0 ** (-2 * i / len(x))
        c, s = np.cos(angle), np.sin(angle)
        out[one], out[two] = x[one] * c - x[two] * s, x[one] * s + x[two] * c
    return out


def test_permuted_rows_give_llama_cpps_rotation_the_same_scores() -> None:
    """transformers pairs a head's halves, llama.cpp neighbours: the scores must be equal."""
    random, d = np.random.default_rng(0), EMBEDDING // HEADS
    q, k = (random.standard_normal((EMBEDDING, 1)).astype(np.float32) for _ in range(2))
    halves = [(i, i + d // 2) for i in range(d // 2)]
    neighbours = [(2 * i, 2 * i + 1) for i in range(d // 2)]

    def score(q: NDArray[Any], k: NDArray[Any], pairs: Sequence[tuple[int, int]]) -> NDArray[Any]:
        heads = zip(q.reshape(HEADS, d), k.reshape(HEADS, d), strict=True)
        return np.array([rotated(a, pairs, 7) @ rotated(b, pairs, 3) for a, b in heads])

    true = score(q, k, halves)
    served = score(permute(q, HEADS), permute(k, HEADS), neighbours)
    assert np.allclose(true, served, atol=1e-5)
    assert not np.allclose(true, score(q, k, neighbours), atol=0.1)


@pytest.mark.parametrize(("architecture", "moved"), [("llama", True), ("qwen3", False)])
def test_only_llama_moves_rows_and_only_those_of_q_and_k(
    tmp_path: Path, architecture: str, moved: bool
) -> None:
    model = write_model(tmp_path / "tiny.gguf", architecture=architecture)
    adapter, base = made(tmp_path, model)
    placed = place(adapter, base)
    for module, (name, _, _) in MODULES.items():
        b = adapter.pairs[f"model.layers.1.{module}"][1]
        same = np.array_equal(placed[f"blk.1.{name}.weight"].b, b)
        assert same != (moved and name in ("attn_q", "attn_k")), name


# Merging


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_merge_adds_the_adapter_and_leaves_the_rest_byte_for_byte(
    tmp_path: Path, kind: str
) -> None:
    model = write_model(tmp_path / "tiny.gguf", kind)
    adapter, base = made(tmp_path, model, modules=[V], config={"lora_alpha": 8})
    out = tmp_path / "merged.gguf"
    merge.write(adapter, base, out)
    before, after = GGUFReader(model), GGUFReader(out)
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    start = before.tensors[0].field.offset
    assert before.data[:start].tobytes() == after.data[:start].tobytes()
    plain, merged = weights(model), weights(out)
    for old, new in zip(before.tensors, after.tensors, strict=True):
        if "attn_v" not in old.name:
            assert old.tensor_type == new.tensor_type
            assert old.data.tobytes() == new.data.tobytes(), old.name
            continue
        assert new.tensor_type.name == (kind if kind in merge.FINER else "Q8_0")
        a, b = adapter.pairs[f"model.layers.{old.name.split('.')[1]}.{V}"]
        wanted = plain[old.name] + 2.0 * b @ a
        error = np.abs(merged[old.name] - wanted).max() / np.abs(wanted).max()
        assert error < {"F32": 1e-6, "F16": 1e-3}.get(kind, 9e-3)


def test_an_adapter_below_half_a_step_survives_the_merge(tmp_path: Path, model: Path) -> None:
    """Rounded to the nearest step, as the same base was, nothing of it would be left."""
    adapter, base = made(tmp_path, model, size=2e-5)
    merge.write(adapter, base, tmp_path / "merged.gguf")
    plain, merged = weights(model), weights(tmp_path / "merged.gguf")
    kept = lost = total = 0.0
    for name, pair in place(adapter, base).items():
        delta = adapter.scale * pair.b @ pair.a
        nearest = quants.quantize(plain[name] + delta, base.tensors[name].tensor_type)
        rounded = quants.dequantize(nearest, base.tensors[name].tensor_type)
        kept += float(np.sum((merged[name] - plain[name]) * delta))
        lost += float(np.sum((rounded - plain[name]) * delta))
        total += float(np.sum(delta**2))
    assert lost / total < 0.1
    assert abs(kept / total - 1) < 0.2


def test_a_merge_is_repeatable(tmp_path: Path, model: Path) -> None:
    adapter, base = made(tmp_path, model)
    for name in ("one", "two"):
        merge.write(adapter, base, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_adapter_of_zeros_changes_no_byte(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", "Q4_1")
    adapter, base = made(tmp_path, model, size=0.0)
    merge.write(adapter, base, tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == model.read_bytes()


def test_lora_gguf_says_what_llama_cpp_reads(tmp_path: Path, model: Path) -> None:
    adapter, base = made(tmp_path, model, config={"use_rslora": True, "lora_alpha": 6})
    lora_gguf.write(adapter, base, tmp_path / "lora.gguf")
    reader = GGUFReader(tmp_path / "lora.gguf")
    said = {k: f.contents() for k, f in reader.fields.items()}
    assert (said["general.type"], said["adapter.type"]) == ("adapter", "lora")
    assert said["general.architecture"] == "llama"
    assert said["adapter.lora.alpha"] == pytest.approx(6 * 4**0.5)
    shapes = {t.name: [int(n) for n in reversed(t.shape)] for t in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.lora_a"] == [4, MODULES["mlp.down_proj"][1]]
    assert shapes["blk.0.ffn_down.weight.lora_b"] == [EMBEDDING, 4]
    assert len(shapes) == 2 * len(adapter.pairs)


# What does not fit


def stems(module: str, inner: int, outer: int) -> dict[str, Any]:
    stem = f"base_model.model.{module}"
    return {
        f"{stem}.lora_A.weight": np.ones((4, inner), np.float32),
        f"{stem}.lora_B.weight": np.ones((outer, 4), np.float32),
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (stems("model.layers.9.self_attn.q_proj", 64, 64), "2 blocks.*another base"),
        (stems("model.layers.0.self_attn.q_proj", 32, 64), "takes 32 to 64.*64 to 64"),
        (stems("lm_head", 64, 260), "one matrix for input and output"),
        (stems("model.layers.0.block_sparse_moe.gate", 64, 8), "does not have"),
    ],
)
def test_an_adapter_of_another_base(
    tmp_path: Path, model: Path, change: dict[str, Any], complaint: str
) -> None:
    adapter, base = made(tmp_path, model, change=change)
    with pytest.raises(AutoresearchError, match=complaint):
        merge.write(adapter, base, tmp_path / "merged.gguf")


def test_an_architecture_nobody_checked(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf", architecture="olmo2")
    adapter, base = made(tmp_path, model)
    with pytest.raises(AutoresearchError, match="architecture olmo2; there are: gemma2"):
        place(adapter, base)


def test_the_base_must_be_the_one_that_was_adapted(tmp_path: Path, model: Path) -> None:
    adapter, _ = made(tmp_path, model)
    assert export.base_of(adapter).path == model
    other = write_model(tmp_path / "other.gguf", "F16")
    with pytest.raises(AutoresearchError, match=r"not .*other\.gguf"):
        export.base_of(adapter, str(other))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"GGUF", "not a GGUF file"),
        (b"no model", "not a GGUF file"),
        (None, "cannot read the base"),
    ],
)
def test_a_base_that_is_none(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "base.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((AutoresearchError, UsageError), match=complaint):
        open_base(str(path))


def test_a_base_cut_short(tmp_path: Path, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-4096])
    with pytest.raises(AutoresearchError, match="damaged"):
        open_base(str(model))


# Appearing whole or not at all


def test_an_interrupted_export_leaves_the_previous_file(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    out.write_bytes(b"previous")
    with pytest.raises(KeyboardInterrupt), unfinished(out) as beside:
        beside.write_bytes(b"half")
        raise KeyboardInterrupt
    assert out.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_is_one_line_and_leaves_the_previous_file(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    out.write_bytes(b"previous")
    with (
        pytest.raises(AutoresearchError, match=r"x\.gguf: No space left on device"),
        unfinished(out) as beside,
    ):
        beside.write_bytes(b"half")
        Path("/dev/full").write_bytes(b"x" * 100_000)
    assert out.read_bytes() == b"previous"


def test_two_exports_at_once(tmp_path: Path) -> None:
    with unfinished(tmp_path / "x.gguf") as beside:
        beside.write_bytes(b"whole")
        with (
            pytest.raises(AutoresearchError, match="another export"),
            unfinished(tmp_path / "x.gguf"),
        ):
            pass
    assert (tmp_path / "x.gguf").read_bytes() == b"whole"
