"""W&B as an observer of a run: one step a trial. Offline works without an account."""

import os
from pathlib import Path
from typing import Literal

from loop.errors import UsageError
from loop.position import Position
from loop.trial import Json, Record, Scored, Trial

Mode = Literal["offline", "online"]


class WandbTracker:
    """Logs metric, best and counts to a W&B run in `folder`. Raises UsageError without wandb."""

    def __init__(self, folder: Path, run: str, mode: Mode, config: Json) -> None:
        try:
            import wandb
        except ImportError:
            raise UsageError("--wandb needs the package wandb: pip install wandb") from None
        if mode == "online" and not os.environ.get("WANDB_API_KEY"):
            raise UsageError("--wandb online needs WANDB_API_KEY in the environment")
        self._run = wandb.init(
            project="local-autoresearch", name=run, dir=str(folder), mode=mode, config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def phase(self, trial: int, text: str) -> None:
        """A tracker has no use for phases."""

    def record(self, record: Record, position: Position) -> None:
        if not isinstance(record, Trial):
            return
        best = position.incumbent.outcome
        row: Json = {
            "kept": len(position.kept) - 1,
            "failed": not isinstance(record.outcome, Scored),
        }
        if isinstance(best, Scored):
            row[f"best_{best.metric.name}"] = best.metric.value
        if isinstance(record.outcome, Scored):
            row[record.outcome.metric.name] = record.outcome.metric.value
        self._run.log(row, step=record.id)

    def finish(self) -> None:
        self._run.finish()
