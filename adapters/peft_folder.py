"""An adapter folder: plain PEFT (adapter_config.json, adapter_model.safetensors) and adapter.toml.

Only what can be served is read: low-rank pairs that add scale * B @ A to a linear layer. Whatever
else the configuration asks for is refused by name, also what a newer PEFT may think of: a key that
is not known here must be empty. Source: PEFT, tuners/lora/config.py and utils/save_and_load.py.
"""

import json
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loop.errors import AutoresearchError, UsageError
from loop.trial import Json

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "adapter.toml"
CARD_KEYS = ("base", "base_digest", "corpus_hash", "strategy", "licence")
TABLES = {
    "base": ("base", "name"),
    "base_digest": ("base", "digest"),
    "corpus_hash": ("corpus", "digest"),
}
"""Key of a card -> the table and key that finetune writes; adapters made elsewhere may have it
plain."""

HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Keys of the configuration that say how an adapter was trained, or that are carried over."""

STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change it."""

NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])\.weight")


@dataclass(frozen=True)
class Card:
    """Where an adapter comes from: the plain keys of adapter.toml, and its tables."""

    base: str
    base_digest: str
    corpus_hash: str
    strategy: str
    licence: str
    recipe: Json
    metrics: Json


@dataclass(frozen=True)
class Adapter:
    """`pairs`: module of the base (`model.layers.0.self_attn.q_proj`) -> A [r, in] and B [out, r],
    float32. The layer computes W x + scale * B (A x), with scale = alpha / r, or alpha / sqrt(r)
    for rank-stabilised LoRA (arXiv 2312.03732)."""

    path: Path
    card: Card
    rank: int
    scale: float
    pairs: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]

    @property
    def is_zero(self) -> bool:
        """It changes nothing, as an adapter before its first step."""
        return not any(a.any() and b.any() for a, b in self.pairs.values())


def read(folder: Path) -> Adapter:
    """Read and check an adapter folder. Raises UsageError (no such) or AutoresearchError."""
    rank, scale = read_config(folder)
    return Adapter(folder, read_card(folder), rank, scale, _pairs(folder / WEIGHTS, rank))


def read_card(folder: Path) -> Card:
    """The adapter.toml of a folder."""
    path = folder / CARD
    try:
        found = tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise AutoresearchError(f"{path} is not TOML ({error}): train again") from None
    values = {key: _card_value(found, key) for key in CARD_KEYS}
    for key, value in values.items():
        if not isinstance(value, str):
            raise AutoresearchError(f"{path} lacks the text '{key}': autoresearch finetune adds it")
    return Card(**values, recipe=found.get("recipe") or {}, metrics=found.get("metrics") or {})


def read_config(folder: Path) -> tuple[int, float]:
    """(rank, scale) of a folder's LoRA, if it is one that can be served."""
    path = folder / CONFIG
    try:
        config: Json = json.loads(_text(path))
        kind, rank, alpha = config["peft_type"], int(config["r"]), float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise AutoresearchError(f"{path} is no PEFT configuration ({error!r})") from None
    if kind != "LORA" or rank < 1:
        raise AutoresearchError(f"{path}: {kind} of rank {rank} cannot be served: train a LoRA")
    for key, value in config.items():
        idle = key in HARMLESS or not value or (key, value) == ("bias", "none")
        if not idle or (key == "init_lora_weights" and value not in STARTS):
            raise AutoresearchError(
                f"{path}: {key} = {json.dumps(value)[:60]} cannot be served: train without it"
            )
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _card_value(found: Json, key: str) -> Any:
    table, inner = TABLES.get(key, (key, ""))
    place = found.get(table)
    return place.get(inner) if isinstance(place, dict) else found.get(key)


def _pairs(path: Path, rank: int) -> dict[str, Any]:
    halves: dict[str, dict[str, Any]] = {}
    for name, tensor in _tensors(path).items():
        found = NAME.fullmatch(name)
        if found is None:
            raise AutoresearchError(f"{path}: {name} is not a LoRA of a linear layer: cannot serve")
        module = found["module"].replace("model.language_model.", "model.")
        if "linear_attn" in module:
            raise AutoresearchError(
                f"{path}: {module} belongs to linear attention, which GGUF lays out differently: "
                "train without it"
            )
        if not np.isfinite(tensor).all():
            raise AutoresearchError(f"{path}: {name} holds NaN or infinity: train again, slower")
        if tensor.ndim != 2 or tensor.shape[0 if found["which"] == "A" else 1] != rank:
            raise AutoresearchError(f"{path}: {name} has shape {tensor.shape}, rank is {rank}")
        halves.setdefault(module, {})[found["which"]] = tensor
    for module, both in halves.items():
        if len(both) != 2:
            raise AutoresearchError(f"{path}: {module} has A or B alone: the file is damaged")
    if not halves:
        raise AutoresearchError(f"{path} holds no tensor: train again")
    return {module: (both["A"], both["B"]) for module, both in sorted(halves.items())}


def _tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Through torch, since numpy has no bfloat16."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise UsageError(f"{path} is not there: name a folder that finetune wrote") from None
    except (SafetensorError, OSError) as error:
        raise AutoresearchError(f"{path} cannot be read ({error}): train again") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; name a folder that autoresearch finetune wrote"
        ) from None
    except UnicodeDecodeError:
        raise AutoresearchError(f"{path} is not text: train again") from None
