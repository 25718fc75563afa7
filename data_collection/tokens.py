"""Counting tokens with a tokenizer that is on the disk; nothing is downloaded."""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from loop.errors import UsageError


def load(path: Path) -> Callable[[str], int]:
    """The counter of the tokenizer at `path`: tokenizer.json, its folder, or a GGUF file.

    Raises UsageError when it cannot be read.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"no tokenizer at {file}; name a tokenizer.json, its folder or a GGUF")
    try:
        return _gguf(file) if file.suffix == ".gguf" else _json(file)
    except Exception as error:  # the libraries raise bare exceptions for files that are none
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UsageError(f"{file} is not a tokenizer: {reason}") from None


def _json(file: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lru_cache(maxsize=1024)(
        lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    )


def _gguf(file: Path) -> Callable[[str], int]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    return lru_cache(maxsize=1024)(
        lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    )
