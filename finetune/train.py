"""The verb `finetune`: rows and a recipe -> an adapter.

    ROWS -> look, build, fit the memory -> trl trains -> judged on held-out rows -> OUT

While it trains, everything lies in `.OUT.training` beside OUT: what was asked for (plan.json) and
the checkpoints. OUT appears at the end, whole, and the other folder goes. Several GPUs:
`accelerate launch --num_processes N -m finetune ROWS ...`.
"""

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune import adapter, plan
from finetune.prepare import FinetuneArgs, Work, prepare
from finetune.progress import Interrupt, duration
from loop import flags
from loop.errors import AutoresearchError, UsageError
from loop.files import write_atomic

Json = dict[str, Any]
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def run(argv: Sequence[str]) -> int:
    """The verb `finetune`. Raises UsageError and AutoresearchError; 130 when interrupted."""
    args = flags.parse("finetune", FinetuneArgs, argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UsageError(f"{args.out} exists and is not empty; name another --out")
    _environment(args)
    _one_process_a_gpu()
    work = prepare(args, _say)
    checkpoint = plan.note(work)
    with Interrupt() as interrupt:
        return _train(work, checkpoint, interrupt)


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def _environment(args: FinetuneArgs) -> None:
    """Before the libraries are imported: quiet, no telemetry, W&B beside the adapter."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.wandb == "off":
        return
    if args.wandb == "online" and not os.environ.get("WANDB_API_KEY"):
        raise UsageError("--wandb online needs WANDB_API_KEY in the environment")
    os.environ["WANDB_MODE"] = args.wandb
    os.environ["WANDB_DIR"] = str(args.out.parent)
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_PROJECT", "local-autoresearch")


def _one_process_a_gpu() -> None:
    try:
        import torch
        import transformers
        import trl  # noqa: F401
    except ImportError as error:
        raise AutoresearchError(
            f"finetune needs trl and peft ({error}): make setup installs them"
        ) from None
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # trl still says gradient_checkpointing, which this transformers calls by a newer name.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # of kernels a CPU need not have
    cards = torch.cuda.device_count()
    if cards > 1 and "LOCAL_RANK" not in os.environ:
        raise UsageError(
            f"{cards} GPUs are visible: choose one with CUDA_VISIBLE_DEVICES=0, or use all with "
            f"accelerate launch --num_processes {cards} -m finetune ..."
        )


def _train(work: Work, checkpoint: Path | None, interrupt: Interrupt) -> int:
    from finetune.trainer import trainer_for

    args = work.args
    began = time.monotonic()
    trainer = trainer_for(work, interrupt, _say)
    chief = trainer.is_world_process_zero()
    before = _judged(work, trainer, "before") if chief and work.held_out else None
    trainer.accelerator.wait_for_everyone()
    if interrupt.asked:
        raise KeyboardInterrupt
    if checkpoint:
        _say(f"going on from {checkpoint.name}")
    trained = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        raise AutoresearchError(
            "out of memory while training: take a smaller --max-length, --precision nf4, or a "
            "smaller base, and delete " + str(work.folder)
        ) from None
    trained = time.monotonic() - trained
    state = trainer.state
    if interrupt.asked and state.global_step < state.max_steps:
        _say(f"interrupted after step {state.global_step} of {state.max_steps}; the same command "
             "with --resume goes on")  # fmt: skip
        return 130
    seconds = time.monotonic() - began
    if chief:
        after = _judged(work, trainer, "after") if work.held_out else None
        adapter.write(trainer.model, args.out, _about(work, trainer, before, after, trained))
        shutil.rmtree(work.folder, ignore_errors=True)
        _report(args.out, before, after, seconds)
    trainer.accelerator.wait_for_everyone()
    return 0


def _judged(work: Work, trainer: Any, when: str) -> Json:
    """Held-out figures, kept with the checkpoints so that a resumed run has those from before."""
    from finetune.evaluate import evaluate

    path = work.folder / f"{when}.json"
    if path.is_file():
        found: Json = json.loads(path.read_text(encoding="utf-8"))
        return found
    _say(f"{len(work.held_out)} held-out rows, {when} training ...")
    metrics = evaluate(trainer.model, work.tokenizer, work.held_out, work.args.method,
                       work.rows.strategy, work.recipe.max_length, work.args.replies)  # fmt: skip
    write_atomic(path, json.dumps(metrics).encode())
    return metrics


def _about(
    work: Work, trainer: Any, before: Json | None, after: Json | None, trained: float
) -> Json:
    """For adapter.toml. `trained`: seconds of training here, without loading and judging."""
    import torch

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = int(trainer.state.num_input_tokens_seen)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": work.args.method,
        "strategy": work.rows.strategy,
        "licence": work.args.licence or work.base.licence,
        "seed": work.args.seed,
        "base": {"name": work.base.name, "digest": work.base.digest,
                 "licence": work.base.licence},
        "corpus": {"digest": work.rows.digest, "rows": len(work.examples.kept),
                   "left_out": len(work.examples.left_out), "longest": work.examples.longest,
                   "tokens": work.examples.tokens, "supervised": work.examples.supervised},
        "start": work.start and {"digest": plan.start_digest(work.args.start),
                                 "method": work.start["method"],
                                 "corpus": work.start["corpus"]["digest"]},
        "recipe": asdict(work.recipe) | {"learning_rate": work.recipe.rate(work.args.method)},
        "training": {"steps": trainer.state.global_step, "seconds": round(trained, 1),
                     "tokens_seen": tokens,
                     "loss_first": losses[0] if losses else None,
                     "loss_last": losses[-1] if losses else None,
                     "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                     "processes": trainer.accelerator.num_processes},
        "metrics": {"split": work.args.held_out, "before": before, "after": after},
        "versions": {name: version(name) for name in LIBRARIES if find_spec(name)},
    }  # fmt: skip


def _report(out: Path, before: Json | None, after: Json | None, seconds: float) -> None:
    _say(f"adapter: {out} ({duration(seconds)})")
    if not before or not after:
        _say("held out: not measured (--held-out none)")
        return
    n = {"win_logprob": after.get("wins"), "other_logprob": after.get("others"),
         "valid": after.get("valid_n"), "choice": after.get("choice_n")}  # fmt: skip
    for name in ("loss", "win_logprob", "other_logprob", "margin", "agreement", "choice", "valid"):
        if name in after:
            _say(f"  {name:14s} {_shown(before, name)} -> {_shown(after, name)}  "
                 f"(n {n.get(name) or after['rows']})")  # fmt: skip
    if "choice_uniform" in after:
        _say(f"  by chance, choice would be {after['choice_uniform']:.3f}")


def _shown(metrics: Json, name: str) -> str:
    """A figure, with its 95 % interval where it has one."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return f"{metrics[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")
