"""A llama of 60,000 random weights as a GGUF that llama.cpp and transformers both load, and
adapters of it: everything that an export does, in a second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from safetensors.numpy import save_file

from loop.brains.models import sha256

EMBEDDING, FEED_FORWARD, HEADS, KV_HEADS, BLOCKS = 64, 96, 4, 2, 2
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MODULES = {
    "self_attn.q_proj": ("attn_q", EMBEDDING, EMBEDDING),
    "self_attn.k_proj": ("attn_k", EMBEDDING, EMBEDDING * KV_HEADS // HEADS),
    "self_attn.v_proj": ("attn_v", EMBEDDING, EMBEDDING * KV_HEADS // HEADS),
    "self_attn.o_proj": ("attn_output", EMBEDDING, EMBEDDING),
    "mlp.gate_proj": ("ffn_gate", EMBEDDING, FEED_FORWARD),
    "mlp.up_proj": ("ffn_up", EMBEDDING, FEED_FORWARD),
    "mlp.down_proj": ("ffn_down", FEED_FORWARD, EMBEDDING),
}
"""Module in transformers -> (name in GGUF, in, out)."""


def write_model(path: Path, kind: str = "F32", architecture: str = "llama") -> Path:
    """The model, its matrices stored as `kind`; input and output share one matrix."""
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(1024)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = _vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    special = len(tokens) - 2
    types = [TokenType.NORMAL] * special + [TokenType.CONTROL] * 2
    writer.add_token_types(types)
    writer.add_token_merges(["a b", "h e"])
    writer.add_bos_token_id(special)
    writer.add_eos_token_id(special + 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    def matrix(name: str, inner: int, outer: int, size: float) -> None:
        values = (random.standard_normal((outer, inner)) * size).astype(np.float32)
        to = GGMLQuantizationType[kind]
        data = values if kind == "F32" else quants.quantize(values, to)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=to)

    matrix("token_embd", EMBEDDING, len(tokens), 0.3)
    writer.add_tensor("output_norm.weight", np.ones(EMBEDDING, np.float32))
    for block in range(BLOCKS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{norm}.weight", np.ones(EMBEDDING, np.float32))
        for name, inner, outer in MODULES.values():
            matrix(f"blk.{block}.{name}", inner, outer, 1.5 / inner**0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_adapter(
    folder: Path,
    base: Path,
    *,
    modules: Sequence[str] = tuple(MODULES),
    size: float = 0.1,
    rank: int = 4,
    config: dict[str, Any] | None = None,
    change: dict[str, Any] | None = None,
) -> Path:
    """A PEFT folder with random pairs. `config` changes its configuration, `change` its tensors
    (None removes one)."""
    random = np.random.default_rng(2)
    weights: dict[str, Any] = {}
    for block in range(BLOCKS):
        for module in modules:
            _, inner, outer = MODULES[module]
            stem = f"base_model.model.model.layers.{block}.{module}"
            weights[f"{stem}.lora_A.weight"] = random.standard_normal((rank, inner))
            weights[f"{stem}.lora_B.weight"] = random.standard_normal((outer, rank)) * size
    weights = {k: v.astype(np.float32) for k, v in weights.items()} | (change or {})
    folder.mkdir()
    save_file(
        {k: v for k, v in weights.items() if v is not None}, folder / "adapter_model.safetensors"
    )
    plain = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none",
        "target_modules": [name.partition(".")[2] for name in modules],
        "task_type": "CAUSAL_LM", "use_rslora": False, "base_model_name_or_path": "tiny",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(plain | (config or {})))
    (folder / "adapter.toml").write_text(
        f'base = "{base}"\nbase_digest = "{sha256(base)}"\ncorpus_hash = "c0ffee"\n'
        'strategy = "menu"\nlicence = "MIT"\n'
    )
    return folder


def write_tokenizer(folder: Path, base: Path) -> None:
    """The tokenizer of the model, as finetune has to save it: with the digits split off."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.save_pretrained(folder)


def _vocabulary() -> list[str]:
    """Bytes as GPT-2 writes them, two merged tokens, two special ones."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]
    return [*letters, "ab", "he", "<|im_start|>", "<|im_end|>"]
