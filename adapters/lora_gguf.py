"""An adapter as a GGUF LoRA, which llama.cpp applies to its base while it runs.

Keys `general.type` = adapter, `general.architecture` of the base, `adapter.type` = lora,
`adapter.lora.alpha`; tensors `NAME.lora_a` [r, in] and `NAME.lora_b` [out, r], float32. llama.cpp
multiplies by alpha / r. Source: llama.cpp, src/llama-adapter.cpp and convert_lora_to_gguf.py.
"""

from pathlib import Path

from adapters.base import Base
from adapters.peft_folder import Adapter
from adapters.placement import place


def write(adapter: Adapter, base: Base, out: Path) -> None:
    """Write `out`. Raises AutoresearchError where adapter and base do not fit."""
    from gguf import GGUFWriter

    placed = place(adapter, base)
    writer = GGUFWriter(out, base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # scale = alpha / r, whatever rule made it: rank-stabilised LoRA needs nothing else.
    writer.add_float32("adapter.lora.alpha", adapter.scale * adapter.rank)
    for name, pair in placed.items():
        writer.add_tensor(f"{name}.lora_a", pair.a)
        writer.add_tensor(f"{name}.lora_b", pair.b)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
