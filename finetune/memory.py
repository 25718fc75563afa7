"""How much memory a training takes, before anything is loaded, and whether that is there.

    frozen weights    bytes by precision: 4, 2, or for nf4 half a byte and its two scales (0.516,
                      QLoRA section 3) for every linear layer but the head; the rest at 2
    adapter           weights, gradients and the two moments of AdamW: 16 bytes a parameter
    activations       kept for the backward pass: a hidden state a layer and one layer's inside with
                      checkpointing, else every layer's inside
    rest              runtime, allocator, one tile of the head's logits
The figures were held against measured peaks (docs/finetune.md); it is meant to be within a third.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.recipe import TARGETS, Recipe
from loop.errors import AutoresearchError

GB = 1e9
NF4 = 0.516
RUNTIME = {"cpu": 1.4 * GB, "cuda": 1.2 * GB}


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what they are for."""

    weights: float
    adapter: float
    activations: float
    runtime: float

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.runtime

    def __str__(self) -> str:
        return (
            f"{self.total / GB:.1f} GB (weights {self.weights / GB:.1f}, adapter "
            f"{self.adapter / GB:.2f}, activations {self.activations / GB:.1f}, rest "
            f"{self.runtime / GB:.1f})"
        )


def estimate(folder: Path, recipe: Recipe, method: str, longest: int, kind: str) -> Estimate:
    """Of a model in `folder`, examples of up to `longest` tokens, on a device of `kind`.

    Raises AutoresearchError: the model has none of the layers that the recipe adapts.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0][:200]
        raise AutoresearchError(f"{folder} cannot be loaded: {said}") from None
    return of_model(model, recipe, method, longest, kind)


def of_model(model: Any, recipe: Recipe, method: str, longest: int, kind: str) -> Estimate:
    """The same for a model that is built, on the meta device or any other."""
    import torch

    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    quantised = sum(m.weight.numel() for n, m in linear.items() if "lm_head" not in n)
    adapted = [m for n, m in linear.items() if n.rpartition(".")[2] in TARGETS]
    if not adapted:
        raise AutoresearchError(
            f"a {model.config.model_type} has none of the layers {', '.join(TARGETS)}: nothing "
            "would be adapted; take another base"
        )
    everything = sum(p.numel() for p in model.parameters())
    if recipe.precision == "nf4":
        weights = quantised * NF4 + (everything - quantised) * 2
    else:
        weights = everything * (4 if recipe.precision == "fp32" else 2)
    shape = model.config.get_text_config()
    adapter = 16.0 * recipe.rank * sum(m.in_features + m.out_features for m in adapted)
    return Estimate(weights, adapter, _activations(shape, recipe, method, longest), RUNTIME[kind])


def _activations(shape: Any, recipe: Recipe, method: str, longest: int) -> float:
    """Bytes kept for the backward pass. A dpo step holds two answers to each prompt."""
    size = 4 if recipe.precision == "fp32" else 2
    tokens = recipe.batches(method)[0] * longest * (2 if method == "dpo" else 1)
    # Norms and rotations work in fp32 whatever the precision; LoRA keeps its own inputs.
    inside = tokens * (14 * shape.hidden_size * size + 6 * shape.intermediate_size * size)
    layers = shape.num_hidden_layers
    kept = tokens * shape.hidden_size * size * layers + 2 * inside
    return float(kept if recipe.checkpointing else inside * layers)


def available(kind: str) -> float:
    """Free bytes: of the GPU, or of this machine within its cgroup's limit."""
    if kind == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0])
    import psutil

    free = float(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        return free if limit == "max" else min(free, float(limit) - float(used))
    except (OSError, ValueError):
        return free


def check(needed: Estimate, free: float, recipe: Recipe, longest: int) -> None:
    """Raises AutoresearchError: it cannot fit."""
    if needed.total <= free:
        return
    ways = [f"--max-length below {longest:,}"]
    if recipe.precision != "nf4":
        ways.append("--precision nf4" if recipe.precision == "bf16" else "--precision bf16 or nf4")
    raise AutoresearchError(
        f"training needs about {needed}, and {free / GB:.1f} GB are free: try "
        f"{', '.join(ways)}, a smaller base, or free some memory"
    )
