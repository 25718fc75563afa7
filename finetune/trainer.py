"""The recipe in trl's words: one trainer for each method, over the same model and examples.

trl and transformers do the work; what they would do silently is set here: nothing is cut, nothing
is packed, nothing is reported, only the answers are learned from.
"""

from collections.abc import Callable
from typing import Any

from finetune import base, progress
from finetune.prepare import Work
from finetune.recipe import TARGETS, Recipe
from finetune.rows import Json
from loop.errors import UsageError


def trainer_for(work: Work, interrupt: progress.Interrupt, tell: Callable[[str], None]) -> Any:
    """A trl trainer, its model loaded and wrapped, ready to train. Raises AutoresearchError."""
    from datasets import Dataset, disable_progress_bars
    from transformers import set_seed

    disable_progress_bars()

    args, recipe = work.args, work.recipe
    set_seed(args.seed)
    model = base.load(work.base, recipe.precision)
    if args.start:
        model = _started(model, str(args.start), str(work.base.folder))
    # KTO reads its rows in order, and neighbours estimate its KL term: mix them once.
    examples = Dataset.from_list(work.examples.kept).shuffle(seed=args.seed)
    config = options(recipe, args.method, args.seed) | {
        "output_dir": str(work.folder),
        "max_steps": args.max_steps or -1,
        "report_to": "none" if args.wandb == "off" else "wandb",
        "run_name": args.out.name,
    }
    return make(
        args.method, config | work.kto_weights, model, None if args.start else lora(recipe),
        examples, work.tokenizer, [progress.callback(interrupt, tell)],
    )  # fmt: skip


def make(
    method: str, config: Json, model: Any, peft_config: Any, examples: Any, tokenizer: Any,
    callbacks: list[Any],
) -> Any:  # fmt: skip
    """The trainer of `method`. `peft_config` None: `model` has its adapter already."""
    import trl
    from transformers.trainer_callback import PrinterCallback

    name = method.upper()  # trl loads its classes when they are asked for, which types do not know
    trainer: Any = getattr(trl, f"{name}Trainer")(
        model=model, args=getattr(trl, f"{name}Config")(**config), train_dataset=examples,
        processing_class=tokenizer, peft_config=peft_config, callbacks=callbacks,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def options(recipe: Recipe, method: str, seed: int) -> Json:
    """The recipe as arguments of trl's configuration for `method`."""
    import os

    import torch

    batch, accumulate = recipe.batches(method)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    found: Json = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": max(1, accumulate // processes),
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.rate(method),
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warm_up,  # below 1: a share of all steps
        "weight_decay": 0.0,
        "max_length": None,  # our own builder has fitted the rows: nothing is cut
        "bf16": recipe.precision != "fp32",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": recipe.checkpointing,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": recipe.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "non_padding",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if method == "sft":
        return found | {"completion_only_loss": True, "packing": False}
    return found | {"beta": recipe.beta}


def lora(recipe: Recipe) -> Any:
    """A fresh adapter (LoRA, arXiv 2106.09685): its B is zero, so it starts out as the base."""
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, bias="none",
        target_modules=list(TARGETS), task_type="CAUSAL_LM",
    )  # fmt: skip


def _started(model: Any, folder: str, where: str) -> Any:
    """`model`, which lies in the folder `where`, with the adapter in `folder`, to be trained on."""
    from peft import PeftModel

    try:
        started = PeftModel.from_pretrained(model, folder, is_trainable=True)
        # Else peft, when it saves, asks the hub for the name that the adapter gives its base.
        started.peft_config["default"].base_model_name_or_path = where
        return started
    except (OSError, ValueError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{folder} does not fit its base: {said}") from None
