"""What an interrupted training was, so that only the same one goes on from its checkpoints."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from finetune.prepare import Work
from loop.errors import UsageError
from loop.files import write_atomic

PLAN = "plan.json"


def note(work: Work) -> Path | None:
    """Note what is asked for, or find the checkpoint to go on from.

    Raises UsageError: an interrupted training is there and was not asked for, or is another.
    """
    plan = {
        "method": work.args.method, "rows": work.rows.digest, "base": work.base.digest,
        "recipe": asdict(work.recipe), "seed": work.args.seed, "max_steps": work.args.max_steps,
        "start": start_digest(work.args.start),
        "held_out": [work.args.held_out, work.args.held_out_rows, work.args.replies],
    }  # fmt: skip
    if os.environ.get("RANK", "0") != "0":
        return last_checkpoint(work.folder) if work.args.resume else None
    path = work.folder / PLAN
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before is None:
        if work.args.resume:
            raise UsageError(f"nothing to resume: no training of {work.args.out} was interrupted")
        shutil.rmtree(work.folder, ignore_errors=True)
        work.folder.mkdir(parents=True)
        write_atomic(path, json.dumps(plan, indent=1).encode())
        return None
    if not work.args.resume:
        raise UsageError(
            f"an interrupted training of {work.args.out} is there: go on with --resume, or delete "
            f"{work.folder}"
        )
    if changed := [name for name in plan if plan[name] != before.get(name)]:
        raise UsageError(
            f"the interrupted training of {work.args.out} had another {', '.join(changed)}: give "
            f"the same, or delete {work.folder}"
        )
    return last_checkpoint(work.folder)


def start_digest(start: Path | None) -> str | None:
    """sha256 of an adapter's weights. Raises UsageError: they cannot be read."""
    if start is None:
        return None
    try:
        return hashlib.sha256((start / "adapter_model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{start} has no weights: {error.strerror}") from None


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint: its trainer_state.json is written last."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        whole.append((state["global_step"], path))
    return max(whole)[1] if whole else None
