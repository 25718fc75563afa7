"""What an adapter folder may hold, and the line that says why another is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.peft_folder import read, read_card
from loop.errors import AutoresearchError, UsageError
from tests.tiny_model import BLOCKS, EMBEDDING, MODULES, write_adapter, write_model

STEM = "base_model.model.model.layers.0.self_attn.q_proj"
NAN = np.full((4, EMBEDDING), np.nan, np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "tiny.gguf")


def test_pairs_scale_and_card(tmp_path: Path, base: Path) -> None:
    adapter = read(write_adapter(tmp_path / "a", base, config={"lora_alpha": 8}))
    assert len(adapter.pairs) == BLOCKS * len(MODULES)
    a, b = adapter.pairs["model.layers.1.mlp.down_proj"]
    assert a.shape == (4, MODULES["mlp.down_proj"][1])
    assert b.shape == (EMBEDDING, 4)
    assert (adapter.rank, adapter.scale, adapter.is_zero) == (4, 2.0, False)
    assert (adapter.card.strategy, adapter.card.corpus_hash) == ("menu", "c0ffee")


def test_rank_stabilised_scale(tmp_path: Path, base: Path) -> None:
    adapter = read(write_adapter(tmp_path / "a", base, config={"use_rslora": True}))
    assert adapter.scale == 4 / math.sqrt(4)


def test_bfloat16_weights(tmp_path: Path, base: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_adapter(tmp_path / "a", base)
    weights = folder / "adapter_model.safetensors"
    rounded = {name: t.to(torch.bfloat16) for name, t in load_file(weights).items()}
    save_file(rounded, weights)
    a, _ = read(folder).pairs["model.layers.0.self_attn.q_proj"]
    assert np.array_equal(a, rounded[f"{STEM}.lora_A.weight"].float().numpy())


@pytest.mark.parametrize(
    ("config", "change", "complaint"),
    [
        ({"use_dora": True}, None, "use_dora = true cannot be served: train without it"),
        ({"modules_to_save": ["lm_head"]}, None, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, None, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, None, "alpha_pattern"),
        ({"bias": "all"}, None, "bias"),
        ({"init_lora_weights": "pissa"}, None, "init_lora_weights"),
        ({"of_a_newer_peft": 1}, None, "of_a_newer_peft"),
        ({"peft_type": "IA3"}, None, "IA3 of rank 4"),
        ({"r": 8}, None, "rank is 8"),
        ({}, {f"{STEM}.lora_A.weight": NAN}, "NaN"),
        ({}, {f"{STEM}.lora_B.weight": None}, "has A or B alone"),
        ({}, {"base_model.model.model.embed_tokens.lora_embedding_A": NAN}, "embed_tokens"),
        (
            {},
            {STEM.replace("self_attn.q_proj", "linear_attn.out_proj") + ".lora_A.weight": NAN},
            "linear attention",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    tmp_path: Path, base: Path, config: dict[str, Any], change: dict[str, Any], complaint: str
) -> None:
    folder = write_adapter(tmp_path / "a", base, config=config, change=change)
    with pytest.raises(AutoresearchError, match=complaint) as caught:
        read(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"adapter_config\.json: No such file"):
        read(tmp_path)


def test_damaged_files(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(tmp_path / "a", base)
    (folder / "adapter_model.safetensors").write_bytes(b"\x08" * 100)
    with pytest.raises(AutoresearchError, match="safetensors cannot be read"):
        read(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(AutoresearchError, match="no PEFT configuration"):
        read(folder)


def test_card_as_finetune_writes_it(tmp_path: Path) -> None:
    (tmp_path / "adapter.toml").write_text(
        'strategy = "bare"\nlicence = "MIT"\n[base]\nname = "b"\ndigest = "d"\n'
        '[corpus]\ndigest = "c"\n[recipe]\nrank = 8\n'
    )
    card = read_card(tmp_path)
    assert (card.base, card.base_digest, card.corpus_hash) == ("b", "d", "c")
    assert card.recipe == {"rank": 8}


def test_card_that_lacks_something(tmp_path: Path) -> None:
    (tmp_path / "adapter.toml").write_text('licence = "MIT"\n[base]\nname = "b"\ndigest = "d"\n')
    with pytest.raises(AutoresearchError, match="lacks the text 'corpus_hash'"):
        read_card(tmp_path)
