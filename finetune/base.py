"""The frozen model: found, identified, loaded in the precision that the recipe asks for.

A base is a hub id, a folder in transformers' format, a .gguf file, or `smollm2-135m`, the embedded
GGUF. A GGUF is dequantised once and kept as safetensors in the cache, so that what is adapted is
what llama.cpp serves, to the last bit of its weights.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import AutoresearchError, UsageError

EMBEDDED = {"smollm2-135m": "smollm2-135m.q8_0.gguf"}
"""Name of an embedded model -> its file in the cache's folder `models`."""
UNKNOWN = "unknown"
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md")
CPU_REPACKING = "support_avx512bf16_for_cpu"
"""The attribute of a layer by which bitsandbytes decides to repack it."""
UNPACKED = "2"
"""Version of what unpacking writes: an older one in a cache is not taken for it."""
FP32_BELOW = 2 * 2**30
"""Bytes of a GGUF that is unpacked to fp32; larger ones become bf16, which loses a little."""


@dataclass(frozen=True)
class Base:
    """`folder`: what transformers loads. `digest`: sha256 of the GGUF, or over the folder's weights
    and configuration."""

    name: str
    folder: Path
    digest: str
    licence: str


def find(name: str) -> Base:
    """The base called `name`. Raises UsageError: there is none; AutoresearchError: it cannot be
    fetched or unpacked."""
    cache = Path(os.environ.get("AUTORESEARCH_CACHE") or Path("~/.cache/autoresearch").expanduser())
    if name in EMBEDDED:
        path = cache / "models" / EMBEDDED[name]
        if not path.is_file():
            raise UsageError(
                f"the embedded model {name} is not here yet: `autoresearch demo` or a run with "
                f"--brain llamacpp:{name} fetches it"
            )
        return _gguf(name, path, cache)
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise UsageError(f"no file {path}: name a .gguf, a folder, or the id of a hub's model")
        return _gguf(path.name, path, cache)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{path} is no model: it has no config.json")
        return Base(name, path, _digest(path), _card_licence(path))
    folder = _fetch(name)
    return Base(name, folder, _digest(folder), _card_licence(folder))


def tokenizer(base: Base) -> Any:
    """Its tokenizer, padded on the right. Raises AutoresearchError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(base.folder), padding_side="right")
    except (OSError, ValueError) as error:
        raise AutoresearchError(f"{base.name} has no tokenizer: {_line(error)}") from None


def load(base: Base, precision: str) -> Any:
    """Its causal language model, frozen weights in `precision`, on this process's device.

    nf4: 4-bit NormalFloat with double quantisation, computing in bf16 (QLoRA, arXiv 2305.14314).
    Raises AutoresearchError: it is damaged, or of a kind that is not known.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(base.folder), device_map={"": device()}, **options
        )
    except ImportError as error:
        raise AutoresearchError(
            f"{precision} needs a package that is not here ({_line(error)}); install it, or take "
            "--precision bf16"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise AutoresearchError(f"{base.name} does not load: {_line(error)}") from None
    model.config.use_cache = False
    for module in model.modules():
        # On a CPU bitsandbytes repacks a layer for good when it is first read without gradients,
        # and what is repacked does not train: judging before training must not do that.
        if hasattr(module, CPU_REPACKING):
            setattr(module, CPU_REPACKING, False)
    return model


def device() -> str:
    """Where this process computes: its own GPU under a launcher, else the first, else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _gguf(name: str, path: Path, cache: Path) -> Base:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"{path} is not a GGUF file")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache / "bases" / f"{digest[:24]}-{UNPACKED}"
    if not folder.is_dir():
        _unpack(path, folder)
    return Base(name, folder, digest, _gguf_licence(path))


def _unpack(path: Path, folder: Path) -> None:
    """GGUF -> `folder` in transformers' format, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    dtype = torch.float32 if path.stat().st_size < FP32_BELOW else torch.bfloat16
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(beside)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        if _field(path, "tokenizer.ggml.pre") == "smollm":
            _split_digits(tokenizer)
        tokenizer.save_pretrained(beside)
        for written in beside.iterdir():
            with written.open("rb") as file:
                os.fsync(file.fileno())
        if not folder.is_dir():  # else another process was quicker
            beside.rename(folder)
    except OSError as error:
        raise AutoresearchError(
            f"cannot unpack {path.name} into {folder.parent}: {_line(error)}; make room there, or "
            "set AUTORESEARCH_CACHE"
        ) from None
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise AutoresearchError(
            f"transformers cannot read {path.name}: {_line(error)}; name the model's folder or hub "
            "id instead"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _split_digits(tokenizer: Any) -> None:
    """Each digit a token of its own, as llama.cpp has it for `pre = smollm`.

    transformers leaves that out when it reads a GGUF, and what would be trained is then not what is
    served: "\\n\\n1" becomes [198, 198, 33] instead of [1116, 33] (docs/adapters.md, gate b).
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _gguf_licence(path: Path) -> str:
    return _field(path, "general.license") or UNKNOWN


def _field(path: Path, name: str) -> str:
    """A text of the GGUF's metadata, "" if it is not there."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field(name)
    return str(field.contents()) if field else ""


def _card_licence(folder: Path) -> str:
    """`license:` of the model card's head. Source: the hub's model card specification."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return UNKNOWN
    head = text.split("---")[1] if text.startswith("---") else ""
    found = re.search(r"^license:\s*(\S+)", head, re.MULTILINE)
    return found[1].strip("\"'") if found else UNKNOWN


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _fetch(name: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (OSError, ValueError, httpx.HTTPError) as error:  # the hub's own errors are OSErrors
        raise AutoresearchError(
            f"cannot fetch {name} ({_line(error)}); check its name and the network, or give a "
            "folder or a .gguf that is here: --base PATH"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
