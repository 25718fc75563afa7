"""An adapter merged into the served base: W + scale * B @ A where it acts, the rest byte for byte.

What changes is written as Q8_0, or in its own type if that is a finer one: 4 bits would round much
of an adapter away. So would 8 bits, if they rounded to the nearest: the weights of a Q8_0 base lie
on the grid already, and an adapter that moves them by less than half a step, as one of few
training steps does, would vanish. So rounding is by chance, up as often as the value is near to
the upper step (Gupta et al. 2015, arXiv 1502.02551), which keeps the sum. The chance is drawn from
the tensor's name: an export can be repeated to the bit. Metadata, tokenizer, chat template and all
other tensors stay as they are. Layout: GGUF version 3 (ggml, docs/gguf.md).
"""

import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from adapters.base import Base
from adapters.peft_folder import Adapter
from adapters.placement import Pair, place
from loop.errors import AutoresearchError

FINER = ("F32", "F16", "BF16")
BLOCK, BLOCK_BYTES = 32, 34


def write(adapter: Adapter, base: Base, out: Path) -> None:
    """Write `out`. Raises AutoresearchError where adapter and base do not fit."""
    placed = {
        name: pair for name, pair in place(adapter, base).items() if pair.a.any() and pair.b.any()
    }
    reader = base.reader
    with out.open("wb") as file:
        file.write(_head(reader, {name: _kind(base.tensors[name]) for name in placed}))
        for tensor in reader.tensors:
            _pad(file, reader.alignment)
            if pair := placed.get(tensor.name):
                file.write(_merged(tensor, pair, adapter.scale))
            else:
                file.write(tensor.data.tobytes())
        _pad(file, reader.alignment)


def _head(reader: Any, kinds: dict[str, Any]) -> bytes:
    """Everything before the data: metadata as it is, then the tensors with their new places."""
    head, offset = bytearray(reader.data[: reader.tensors[0].field.offset].tobytes()), 0
    for tensor in reader.tensors:
        kind = kinds.get(tensor.name, tensor.tensor_type)
        same = kind == tensor.tensor_type
        size = tensor.n_bytes if same else tensor.n_elements // BLOCK * BLOCK_BYTES
        name, shape = tensor.name.encode(), [int(length) for length in tensor.shape]
        head += struct.pack("<Q", len(name)) + name
        head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += int(size) + -int(size) % reader.alignment
    return bytes(head)


def _kind(tensor: Any) -> Any:
    from gguf import GGMLQuantizationType

    own = tensor.tensor_type
    # A quantised row is a multiple of 32 long, so that it can become Q8_0.
    return own if own.name in FINER else GGMLQuantizationType.Q8_0


def _merged(tensor: Any, pair: Pair, scale: float) -> bytes:
    from gguf import quants

    try:
        weight = quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise AutoresearchError(
            f"{tensor.name} is {tensor.tensor_type.name}, which cannot be read back: give a base "
            "in Q8_0, Q4_K_M or F16 with --base"
        ) from None
    weight = (weight + np.float32(scale) * (pair.b @ pair.a)).astype(np.float32)
    if tensor.tensor_type.name in FINER:
        return bytes(quants.quantize(weight, tensor.tensor_type).tobytes())
    return q8_0(weight, zlib.crc32(tensor.name.encode()))


def q8_0(weight: NDArray[np.float32], seed: int) -> bytes:
    """Blocks of 32 weights as a scale (f16) and 32 signed bytes, rounded by chance."""
    blocks = weight.reshape(-1, BLOCK)
    step = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    chance = np.random.default_rng(seed).random(blocks.shape, dtype=np.float32)
    # Where the step is 0, so is the block.
    steps = blocks / np.maximum(step.astype(np.float32), np.finfo(np.float16).smallest_subnormal)
    levels = np.clip(np.floor(steps + chance), -127, 127).astype(np.int8)
    return np.concatenate([step.view(np.uint8), levels.view(np.uint8)], axis=1).tobytes()


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
