"""Rows as `collect --render` writes them, and a chat model small enough to train in a second."""

import json
from pathlib import Path
from typing import Any

from data_collection.render import _schema
from loop.trial import Json

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOVES = ("WIDTH = 16", "LR = 0.2", "WIDTH = 4", "LR = 0.05")


def prompt(tried: int = 0) -> list[Json]:
    history = "".join(f"{i}. LR: 0.1 -> 0.{i}: 1.2, discard\n" for i in range(tried))
    offered = "\n".join(f"- {move}" for move in MOVES)
    return [
        {"role": "system", "content": "You tune the settings of a training script.\n"},
        {"role": "user", "content": f"Settings now:\nLR = 0.1\nWIDTH = 8\n{history}\nPossible "
         f"changes:\n{offered}\n\nWhich one is most likely to improve val_bpb?"},
    ]  # fmt: skip


def answer(move: str) -> str:
    name, _, new = move.partition(" = ")
    old = {"LR": "0.1", "WIDTH": "8"}[name]
    return json.dumps({"reason": f"Try {name}: {old} -> {new}.", "move": move})


def said(text: str) -> list[Json]:
    return [{"role": "assistant", "content": text}]


def row(kind: str, number: int, **changes: Any) -> Json:
    """Every second one is a win with the first move; the others take the last one and lose."""
    win = number % 2 == 0
    found: Json = {
        "prompt": prompt(number % 3), "weight": 1.0, "key": f"r/{number}",
        "p_real": 0.95 if win else 0.05, "prompt_tokens": 1, "completion_tokens": 1,
        "widened": False,
    }  # fmt: skip
    if kind == "dpo":
        found |= {"chosen": said(answer(MOVES[0])), "rejected": said(answer(MOVES[3]))}
    else:
        found["completion"] = said(answer(MOVES[0] if win else MOVES[3]))
    if kind == "kto":
        found["label"] = win
    return found | changes


def write(folder: Path, kind: str, strategy: str = "menu", **splits: list[Json]) -> Path:
    """A folder of rows; a split that is not given has 8 rows, or 4 to validate on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    standard = {"train": 8, "validation": 4}
    (folder / "data").mkdir(parents=True)
    for split, count in standard.items():
        found = splits.get(split, [row(kind, i) for i in range(count)])
        if found:
            table = pa.Table.from_pylist(found, schema=_schema(kind))
            pq.write_table(table, folder / "data" / f"{split}-00000.parquet")
    (folder / "report.json").write_text(json.dumps({"render": kind, "strategy": strategy}))
    return folder


def chat_model(folder: Path) -> Path:
    """A random Llama of two narrow layers, with a tokenizer of bytes and ChatML's template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return folder
