"""Prepared texts on disk: a manifest and one token file a split.

    train.bin   what a run trains on
    val.bin     what it screens itself with
    audit.bin   the deciding bytes: only an evaluator in a second box reads them
    test.bin    no run ever sees it

A token file is raw little-endian integers: one stream (`row_tokens` null; uint8, a token is a
byte) or packed rows of `row_tokens` tokens each (int16).
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val", "audit", "test")
ITEM_BYTES = {"uint8": 1, "int16": 2}


@dataclass(frozen=True)
class Manifest:
    """manifest.json. `token_bytes[i]` is the bytes of token i; null where a token is a byte.

    `splits` maps each split to {"sha256": ..., "bytes": size of the file, "documents": ...}.
    """

    folder: Path
    text: str
    source: str
    version: str
    dtype: str
    vocab_size: int
    row_tokens: int | None
    token_bytes: list[int] | None
    splits: dict[str, dict[str, Any]]


def read_manifest(folder: Path) -> Manifest:
    """Read folder/manifest.json; one line on failure says how to prepare the text."""
    try:
        return Manifest(folder=folder, **json.loads((folder / "manifest.json").read_text()))
    except FileNotFoundError:
        raise SystemExit(f"{folder} is not prepared; run: python prepare.py") from None
    except (ValueError, TypeError) as error:
        raise SystemExit(
            f"{folder}/manifest.json is damaged ({error}); delete the folder"
        ) from None


def write_manifest(manifest: Manifest) -> None:
    """Write it last: a text is prepared once its manifest is there."""
    fields = asdict(manifest)
    del fields["folder"]
    with replacing(manifest.folder / "manifest.json") as path:
        path.write_text(json.dumps(fields, indent=1) + "\n")


def describe(path: Path, documents: int) -> dict[str, Any]:
    """A split's entry in the manifest."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size, "documents": documents}


def verify(manifest: Manifest, split: str) -> None:
    """Compare a split's sha256 with the manifest; a difference ends the program with one line."""
    path = manifest.folder / f"{split}.bin"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; delete {manifest.folder} and prepare again")
    if sha256(path) != manifest.splits[split]["sha256"]:
        raise SystemExit(f"{path} is damaged (sha256 differs); delete it and prepare again")


def read_rows(manifest: Manifest, split: str, seq_len: int, stride: int) -> "Tensor":
    """Rows [R, seq_len + 1] of a split, mapped and not copied; a stream's rows start every
    `stride` tokens. The last token of a row is a target only."""
    import torch

    path = manifest.folder / f"{split}.bin"
    size = path.stat().st_size if path.is_file() else -1
    if size != manifest.splits[split]["bytes"]:
        raise SystemExit(
            f"{path} is missing or cut short; delete {manifest.folder} and prepare again"
        )
    if sys.byteorder != "little":
        raise SystemExit("token files are little-endian; this machine is not")
    count = size // ITEM_BYTES[manifest.dtype]
    flat = torch.from_file(str(path), size=count, dtype=getattr(torch, manifest.dtype))
    if manifest.row_tokens is None:
        return flat.unfold(0, seq_len + 1, stride)
    if manifest.row_tokens != seq_len + 1:
        raise SystemExit(f"{path} has rows of {manifest.row_tokens} tokens, not {seq_len + 1}")
    return flat.view(-1, manifest.row_tokens)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; what was written there replaces it, whole and synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
