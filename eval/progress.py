"""What the execution of a plan looks like in a terminal: a line a trial, the whole plan below."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.words import count, duration, visible
from loop.progress import Status

_STYLE = {
    "keep": "green",
    "baseline": "bold",
    "failed": "red",
    "done": "cyan",
    "stopped": "bold red",
}


@dataclass(frozen=True)
class Note:
    """What a worker tells of a run, or, without an `arm`, of itself.

    `kind`: `phase` (what is being done now), `line` (a record on the disk; `style` a verdict),
    `turn` (one is over, after `seconds`), `done`, or `stopped` (by the error in `text`).
    """

    arm: str
    seed: int
    kind: Literal["phase", "line", "turn", "done", "stopped"]
    text: str = ""
    style: str = ""
    seconds: float = 0.0


class PlanProgress(Status):
    """Shows notes on `console`. `turns`: those that each arm has still to take; `workers`: at once.

    The time left is each arm's own mean of a turn, times what it has left.
    """

    def __init__(
        self, console: Console, turns: dict[str, int], runs: int, done: int, workers: int
    ) -> None:
        self._left, self._workers = dict(turns), workers
        self._runs, self._done, self._stopped = runs, done, 0
        self._spent: dict[str, float] = defaultdict(float)
        self._taken: dict[str, int] = defaultdict(int)
        self._now: dict[int, str] = {}
        self._began = time.monotonic()
        self._wide = max(map(len, turns), default=0)
        super().__init__(console, 2)  # last: it asks for the status at once

    def __call__(self, note: Note) -> None:
        """Take in what a worker tells."""
        if note.kind == "phase":
            self._now[note.seed] = f"{note.arm}: {note.text}"
        elif note.kind == "turn":
            self._spent[note.arm] += note.seconds
            self._taken[note.arm] += 1
            self._left[note.arm] = max(0, self._left[note.arm] - 1)
        else:
            self._done += note.kind == "done"
            self._stopped += note.kind == "stopped"
            self._console.print(self._line(note))

    def _line(self, note: Note) -> Text:
        if not note.arm:
            return Text(f"· {note.text}", "dim")
        line = Text(f"{note.arm:{self._wide}s} ", "cyan").append(f"seed {note.seed:<3d} ", "dim")
        style = note.style or note.kind
        line.append(f"{style:8s} ", _STYLE.get(style, "dim")).append(visible(note.text))
        if note.kind == "line":
            line.truncate(max(40, self._console.width - 1), overflow="ellipsis")
        return line

    def _status(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        stopped = f", {self._stopped} stopped" if self._stopped else ""
        grid.add_row(
            Text(f"{self._done} of {count(self._runs, 'run')} done{stopped}", "bold"),
            f"{duration(time.monotonic() - self._began)} so far",
            f"about {duration(left)} left" if (left := self.seconds_left()) is not None else "",
            Text(" | ".join(f"seed {seed} {now}" for seed, now in list(self._now.items())[-4:])),
        )
        return grid

    def seconds_left(self) -> float | None:
        """By the turns taken so far; None before the first."""
        taken = sum(self._taken.values())
        if not taken:
            return None
        usual = sum(self._spent.values()) / taken
        means = {arm: self._spent[arm] / n for arm, n in self._taken.items() if n}
        todo = (turns * means.get(arm, usual) for arm, turns in self._left.items())
        return sum(todo) / self._workers
