"""How an adapter is trained: one small record, and a preset for each size of machine."""

from dataclasses import dataclass, replace

METHODS = ("sft", "kto", "dpo")
PRECISIONS = ("nf4", "bf16", "fp32")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers of a block (QLoRA, arXiv 2305.14314, section 4: adapting all of them is what
matches full fine-tuning). Named one by one, so that the linear-attention projections of Qwen3.5
(in_proj_*, out_proj) stay out: no export to GGUF carries them."""
KTO_BATCH = 4
"""Examples on one device in one step, at least: KTO estimates its KL term from the other examples
of that step (arXiv 2402.01306, section 4.1; trl's KTOTrainer refuses 1)."""


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, with the source of each default.

    `base`: model to adapt. `precision`: of the frozen base: nf4 (QLoRA, doubly quantised), bf16 or
    fp32. `rank`, `alpha`: of LoRA; published agent and code adapters use 16 to 64 with alpha of one
    to two ranks; no dropout, peft's default. `max_length`: tokens of prompt and answer; longer rows
    are left out, nothing is cut. `batch` examples a device times `accumulate` make a step: below 32
    (Schulman et al. 2025, "LoRA Without Regret": a large batch costs LoRA more than it costs full
    fine-tuning). `epochs`: 2 to 3 is usual for tens to hundreds of rows. `sft_rate`: 1e-4 to 2e-4
    (QLoRA, table 9). `kto_rate`: 5e-7 to 5e-6 (trl, KTO). `dpo_rate`: as for KTO, since both must
    stay near their reference. `beta`: 0.1 (arXiv 2305.18290 and 2402.01306). `warm_up`: share of
    the steps; 0.03 in QLoRA's scripts. `schedule`: by transformers' name. `checkpointing`: compute
    activations again instead of keeping them, about a fifth slower (trl's default). `save_steps`:
    from one checkpoint to the next.
    """

    base: str
    precision: str
    rank: int = 32
    alpha: int = 32
    max_length: int = 8192
    batch: int = 1
    accumulate: int = 16
    epochs: float = 2.0
    sft_rate: float = 1e-4
    kto_rate: float = 5e-6
    dpo_rate: float = 5e-6
    beta: float = 0.1
    warm_up: float = 0.03
    schedule: str = "cosine"
    checkpointing: bool = True
    save_steps: int = 20

    def rate(self, method: str) -> float:
        """The learning rate of `method`."""
        return {"sft": self.sft_rate, "kto": self.kto_rate, "dpo": self.dpo_rate}[method]

    def with_rate(self, method: str, rate: float) -> "Recipe":
        """This recipe with another learning rate for `method`."""
        changes = {f"{method}_rate": rate}
        return replace(self, **changes)  # type: ignore[arg-type]

    def batches(self, method: str) -> tuple[int, int]:
        """(examples a device, accumulated) of one step: about as many examples for any method."""
        if method != "kto" or self.batch >= KTO_BATCH:
            return self.batch, self.accumulate
        return KTO_BATCH, max(1, self.batch * self.accumulate // KTO_BATCH)


PRESETS = {
    # 4B on a card of 24 GB. Qwen3.5 takes --precision bf16: its makers advise against QLoRA.
    "4b-24gb": Recipe(base="Qwen/Qwen3-4B", precision="nf4"),
    # 135M on two CPU cores: r 8 and 40 small steps take minutes and moved the choice among moves;
    # activations of so small a model fit, and a core has no time to compute them twice.
    "smollm2-cpu": Recipe(
        base="smollm2-135m", precision="bf16", rank=8, alpha=16, max_length=2048, batch=2,
        accumulate=2, sft_rate=2e-4, kto_rate=5e-6, checkpointing=False, save_steps=10,
    ),
}  # fmt: skip
