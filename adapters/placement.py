"""An adapter's matrices under the names and in the row order of the served base.

llama.cpp's converter reorders the rows of q and k for the llama architecture (rotary pairs side by
side instead of half a head apart), so the rows of B must follow. Nothing complains when they do
not: the model is only wrong. Source: llama.cpp, convert_hf_to_gguf.py (`permute`) and
convert_lora_to_gguf.py; names by `gguf.get_tensor_name_map`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.base import Base
from adapters.peft_folder import Adapter
from loop.errors import AutoresearchError

PERMUTED = ("llama",)
PLAIN = ("gemma2", "gemma3", "qwen2", "qwen3", "qwen35")


@dataclass(frozen=True)
class Pair:
    """A [r, in] and B [out, r] of one tensor of the base, float32, rows of B as the base has
    them."""

    a: NDArray[np.float32]
    b: NDArray[np.float32]


def place(adapter: Adapter, base: Base) -> dict[str, Pair]:
    """Name of a tensor of the base -> its pair. Raises AutoresearchError where one does not fit."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    known = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    if base.architecture not in (*PERMUTED, *PLAIN):
        raise AutoresearchError(
            f"{base.path}: no adapter was ever checked on the architecture {base.architecture}; "
            f"there are: {', '.join(sorted((*PERMUTED, *PLAIN)))}"
        )
    names = get_tensor_name_map(known[base.architecture], base.blocks)
    placed = {}
    for module, (a, b) in adapter.pairs.items():
        name = f"{names.get_name(module)}.weight"
        _check(module, name, (a.shape[1], b.shape[0]), base)
        if base.architecture in PERMUTED and name.endswith((".attn_q.weight", ".attn_k.weight")):
            b = permute(b, base.heads if ".attn_q." in name else base.kv_heads)
        placed[name] = Pair(a, b)
    return placed


def permute(b: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of B [out, r], a head's halves one after the other -> its rotary pairs side by side."""
    out, rank = b.shape
    halves = b.reshape(heads, 2, out // heads // 2, rank)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(out, rank))


def _check(module: str, name: str, shape: tuple[int, int], base: Base) -> None:
    if name == "output.weight" and name not in base.tensors:
        raise AutoresearchError(
            f"{base.name} has one matrix for input and output, so an adapter of {module} would "
            "change both: train without it"
        )
    if name not in base.tensors:
        raise AutoresearchError(
            f"the adapter changes {module}, which {base.name} ({base.architecture}, {base.blocks} "
            "blocks) does not have: it is of another base; name its own with --base"
        )
    there = tuple(int(length) for length in base.tensors[name].shape)
    if shape != there:
        raise AutoresearchError(
            f"the adapter's {module} takes {shape[0]} to {shape[1]}, that of {base.name} takes "
            f"{' to '.join(map(str, there))}: it is of another base; name its own with --base"
        )
