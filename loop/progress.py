"""What a run looks like in a terminal: a line per trial, and a status that stays below.

On a terminal the status is redrawn in place; elsewhere (a log, a pipe) only the lines appear.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loop.position import Position
from loop.trial import Event, Measurement, Record, Rejected, Scored, Trial

_STYLE = {"baseline": "bold", "keep": "bold green", "discard": "dim"}


class Status:
    """A status that stays below the lines on a terminal, drawn anew `each_second` times a second.

    Who has one says in `_status` what it shows.
    """

    def __init__(self, console: Console, each_second: int) -> None:
        self._console = console
        self._live = Live(
            console=console, get_renderable=self._status, refresh_per_second=each_second,
            transient=True, auto_refresh=console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._live.stop()

    def _status(self) -> Table:
        raise NotImplementedError


class Progress(Status):
    """An Observer that writes to `console`. `trials`: how many are wanted, 0 for ever."""

    def __init__(self, console: Console, run: str, trials: int) -> None:
        self._run, self._trials = run, trials
        self._phase, self._trial, self._since = "starting", 0, time.monotonic()
        self._began, self._done_at_start = time.monotonic(), -1
        self._position = Position()
        super().__init__(console, 4)  # last: it asks for the status at once

    def phase(self, trial: int, text: str) -> None:
        self._phase, self._trial, self._since = text, trial, time.monotonic()
        if self._done_at_start < 0:
            self._done_at_start = trial

    def record(self, record: Record, position: Position) -> None:
        self._position = position
        if isinstance(record, Trial):
            self._console.print(self._line(record))
        elif isinstance(record, Event):
            facts = " ".join(f"{key}={value}" for key, value in record.data.items())
            data = record.data.get("says", facts)
            self._console.print(Text(f"     {record.name}: {data}", "yellow"))
        elif isinstance(record, Measurement):
            self._console.print(
                Text(
                    f"     {record.purpose} of trial {record.trial}: {_came(record.outcome)}", "dim"
                )
            )

    def _line(self, trial: Trial) -> Text:
        verdict = trial.decision.verdict if isinstance(trial.outcome, Scored) else "failed"
        line = Text(f"{trial.id:4d} ")
        line.append(f"{verdict:8s} ", _STYLE.get(verdict, "red"))
        line.append(f"{_came(trial.outcome):24s} ")
        if isinstance(trial.outcome, Scored) and trial.context.incumbent_metric is not None:
            difference = trial.outcome.metric.value - trial.context.incumbent_metric.value
            line.append(f"{difference:+.4f} ", "green" if verdict == "keep" else "")
        description = " ".join(trial.proposal.description.split()) or "(no usable edit)"
        line.append(f"{description}  ", "" if verdict != "discard" else "dim")
        line.append(f"{trial.seconds:.1f}s", "dim")
        line.truncate(max(40, self._console.width - 1), overflow="ellipsis")
        return line

    def _status(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        now = time.monotonic()
        grid.add_row(
            Text(f"{self._run}", "bold"),
            f"trial {self._trial}{f' of {self._trials}' if self._trials else ''}",
            f"{self._phase} {now - self._since:.0f}s",
            self._scores(),
            self._counts(),
            self._left(now),
        )
        return grid

    def _scores(self) -> str:
        scored = [t.outcome.metric for t in self._position.trials if isinstance(t.outcome, Scored)]
        if not scored:
            return "no score yet"
        best = self._position.incumbent.outcome
        assert isinstance(best, Scored)
        return f"{best.metric.name}: baseline {scored[0].value:.4f} best {best.metric.value:.4f}"

    def _counts(self) -> str:
        trials = [t for t in self._position.trials if t.decision.verdict != "baseline"]
        kept = sum(t.decision.verdict == "keep" for t in trials)
        failed = sum(not isinstance(t.outcome, Scored) for t in trials)
        return f"kept {kept} discarded {len(trials) - kept - failed} failed {failed}"

    def _left(self, now: float) -> str:
        done = self._position.next_id - max(0, self._done_at_start)
        if not self._trials or done <= 0:
            return f"{_duration(now - self._began)} so far"
        each = (now - self._began) / done
        return f"about {_duration(each * (self._trials + 1 - self._position.next_id))} left"


def _came(outcome: object) -> str:
    if isinstance(outcome, Scored):
        return f"{outcome.metric.name} {outcome.metric.value:.4f}"
    reason = getattr(outcome, "reason", "")
    return f"rejected: {reason}" if isinstance(outcome, Rejected) else str(reason)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
