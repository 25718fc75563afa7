"""An adapter on the disk: what peft reads, and adapter.toml, which says where it comes from.

adapter_config.json, adapter_model.safetensors    plain PEFT
adapter.toml    base and its digest, corpus and its digest, strategy, recipe, metrics, licence
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from loop.errors import AutoresearchError, UsageError
from loop.files import atomic_folder, write_atomic

ABOUT = "adapter.toml"
FORMAT = 1
Json = dict[str, Any]


def write(model: Any, out: Path, about: Json) -> None:
    """The adapter `default` of a PeftModel and what is to be known of it, as the folder `out`.

    Written beside and renamed. Raises AutoresearchError: weights are not finite, or no room.
    """
    import tomli_w
    import torch

    for name, weight in model.named_parameters():
        if ".default" in name and not torch.isfinite(weight).all():
            raise AutoresearchError(
                f"training diverged: {name} is not finite; lower --learning-rate and train anew"
            )
    try:
        with atomic_folder(out) as beside:
            model.save_pretrained(beside, selected_adapters=["default"])
            (beside / "README.md").unlink(missing_ok=True)
            config = json.loads((beside / "adapter_config.json").read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = about["base"]["name"]
            config["target_modules"] = sorted(config["target_modules"])
            write_atomic(beside / "adapter_config.json", json.dumps(config, indent=2).encode())
            text = tomli_w.dumps(_without_none({"format": FORMAT, **about}))
            write_atomic(beside / ABOUT, text.encode())
    except OSError as error:
        raise AutoresearchError(
            f"cannot write {out}: {error.strerror or error}; make room and go on with --resume"
        ) from None


def read(folder: Path) -> Json:
    """What adapter.toml says. Raises UsageError: `folder` holds no adapter of ours."""
    try:
        found = tomllib.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"{folder} is no adapter (no readable {ABOUT}); `autoresearch finetune` makes one"
        ) from None
    if found.get("format") != FORMAT:
        raise UsageError(f"{folder / ABOUT} has format {found.get('format')}, not {FORMAT}")
    return found


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value
