"""One run folder -> one Summary, the figures that the terminal table and the page both show."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from loop.ahead import UNUSED
from loop.final import Final, result
from loop.ledger import read
from loop.start import read_run_toml
from loop.trial import (
    TAGS,
    Event,
    Json,
    Measurement,
    Metric,
    Record,
    Rejected,
    Scored,
    Trial,
    better,
)

KINDS = ("baseline", "keep", "discard", "failed")


@dataclass(frozen=True)
class Summary:
    """A run in figures. Counts leave the baseline out; seconds are wall clock.

    `best_so_far[i]` is the best kept metric after `trials[i]`, None before there is one;
    `spent[i]` the trainer seconds up to and including it. `failed` counts every trial without a
    usable score, `outcomes` by outcome type and `reasons` by the failure taxonomy. Trainer seconds
    are a trial's own less those it waited for its brain (its replicates are within them), and those
    of measurements between trials. Tokens, brain seconds and dollars include proposals that were
    made ahead for nothing. `dollars` is None where no reply has a known price.
    """

    name: str
    info: Json
    trials: tuple[Trial, ...]
    measurements: tuple[Measurement, ...]
    events: tuple[Event, ...]
    baseline: Metric | None
    best: Metric | None
    best_trial: int | None
    best_so_far: tuple[Metric | None, ...]
    spent: tuple[float, ...]
    kept: int
    discarded: int
    failed: int
    outcomes: dict[str, int]
    reasons: dict[str, int]
    tokens_read: int
    tokens_cached: int
    tokens_written: int
    brain_seconds: float
    trainer_seconds: float
    dollars: float | None

    @property
    def proposed(self) -> int:
        """Trials without the baseline: the n of the counts."""
        return self.kept + self.discarded + self.failed

    @property
    def rejected(self) -> dict[str, int]:
        """Proposals that never ran, by reason, the most frequent first."""
        why = (t.outcome.reason.value for t in self.trials if isinstance(t.outcome, Rejected))
        return dict(Counter(why).most_common())

    @property
    def arm(self) -> str:
        """The (brain, strategy) pair, as one name."""
        pair = [str(self.info.get(key) or "") for key in ("strategy", "brain")]
        return " · ".join(part for part in pair if part) or "not recorded"

    @property
    def target(self) -> Json | None:
        """The target as run.toml has it, without its folder: each run works on a clone of its own.
        None: it is not recorded."""
        found = self.info.get("target")
        return (
            {k: v for k, v in found.items() if k != "folder"} if isinstance(found, dict) else None
        )

    @property
    def final(self) -> Final | None:
        """What the check on fresh seeds and the untouched text found, if there was one."""
        return result(self.measurements)

    @property
    def gain(self) -> float | None:
        """How much better the best is than the baseline, in the metric's unit; None: no score."""
        if self.best is None or self.baseline is None:
            return None
        return improvement(self.baseline, self.best)


def summarise(folder: Path) -> Summary:
    """Read the run in `folder`. Raises LedgerError: not a run, a corrupt ledger or run.toml."""
    return of_records(read(folder), read_run_toml(folder), folder.resolve().name)


def of_records(records: Iterable[Record], info: Json, name: str) -> Summary:
    """Summarise records in ledger order, in one pass."""
    trials: list[Trial] = []
    measurements: list[Measurement] = []
    events: list[Event] = []
    line = _Line()
    curve: list[Metric | None] = []
    spent: list[float] = []
    seconds = 0.0
    waiting: list[Measurement] = []
    pool: dict[str, str] = {}
    for record in records:
        match record:
            case Trial():
                trials.append(_shared(record, pool))
                line.decided(record)
                # A judge's replicates precede their trial in the ledger and are within its time.
                seconds += sum(m.seconds for m in waiting if m.started < record.started)
                seconds += trainer_seconds(record)
                waiting.clear()
                curve.append(line.best)
                spent.append(seconds)
            case Measurement():
                measurements.append(record)
                waiting.append(record)
            case Event():
                events.append(record)
                if record.name == "revert":
                    line.reverted(record.data.get("to"))
    kinds = Counter(map(kind, trials))
    replies = [reply for t in trials for call in t.proposal.calls for reply in call.replies]
    unused = [event.data for event in events if event.name == UNUSED]
    paid = [*(reply.dollars for reply in replies), *(facts.get("dollars") for facts in unused)]
    prices = [dollars for dollars in paid if dollars is not None]

    def wasted(name: str) -> Any:
        return sum(facts.get(name, 0) for facts in unused)

    proposed = [t for t in trials if t.decision.verdict != "baseline"]
    return Summary(
        name=str(info.get("name") or name),
        info=info,
        trials=tuple(trials),
        measurements=tuple(measurements),
        events=tuple(events),
        baseline=next((score(t) for t in trials if t.decision.verdict == "baseline"), None),
        best=line.best,
        best_trial=line.best_trial,
        best_so_far=tuple(curve),
        spent=tuple(spent),
        kept=kinds["keep"],
        discarded=kinds["discard"],
        failed=sum(kind(t) == "failed" for t in proposed),
        outcomes=dict(Counter(TAGS[type(t.outcome)] for t in proposed).most_common()),
        reasons=dict(Counter(why for t in proposed if (why := reason(t))).most_common()),
        tokens_read=sum(reply.prompt_tokens for reply in replies) + wasted("tokens_read"),
        tokens_cached=sum(reply.cached_tokens for reply in replies) + wasted("tokens_cached"),
        tokens_written=sum(reply.completion_tokens for reply in replies) + wasted("tokens_written"),
        brain_seconds=sum(reply.seconds for reply in replies) + wasted("seconds"),
        trainer_seconds=seconds + sum(m.seconds for m in waiting),
        dollars=sum(prices) if prices else None,
    )


def score(trial: Trial) -> Metric | None:
    """The trial's usable metric: None when it has none, or one that is not a finite number."""
    outcome = trial.outcome
    return (
        outcome.metric if isinstance(outcome, Scored) and isfinite(outcome.metric.value) else None
    )


def kind(trial: Trial) -> str:
    """How a trial is shown, one of KINDS; without a usable score it is `failed`."""
    return "failed" if score(trial) is None else trial.decision.verdict


def reason(trial: Trial) -> str | None:
    """Why the trial has no usable score, from the failure taxonomy; None: it has one."""
    if isinstance(trial.outcome, Scored):
        return None if score(trial) else "metric_not_finite"
    return trial.outcome.reason.value


def improvement(before: Metric, after: Metric) -> float:
    """How much better `after` is than `before`, in the metric's unit; negative when worse."""
    gain = before.value - after.value
    return gain if before.direction == "min" else -gain


def brain_seconds(trial: Trial) -> float:
    """Seconds that the trial's replies took."""
    return sum(reply.seconds for call in trial.proposal.calls for reply in call.replies)


def trainer_seconds(trial: Trial) -> float:
    """Seconds of the trial in which it did not wait for its brain."""
    waited: float = trial.proposal.notes.get("waited", brain_seconds(trial))
    return max(0.0, trial.seconds - waited)


class _Line:
    """The line of kept trials, each with the best metric up to it; a revert cuts it back."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Metric, int]] = []  # (trial, best metric, its trial)
        self._scores: dict[int, Metric] = {}

    @property
    def best(self) -> Metric | None:
        return self._kept[-1][1] if self._kept else None

    @property
    def best_trial(self) -> int | None:
        return self._kept[-1][2] if self._kept else None

    def decided(self, trial: Trial) -> None:
        metric = score(trial)
        if metric is None or trial.decision.verdict == "discard":
            return
        self._scores[trial.id] = metric
        self._extend(trial.id, metric)

    def reverted(self, to: object) -> None:
        while self._kept and self._kept[-1][0] != to:
            self._kept.pop()
        if not self._kept and isinstance(to, int) and to in self._scores:
            self._extend(to, self._scores[to])

    def _extend(self, trial: int, metric: Metric) -> None:
        if self._kept and not better(metric, self._kept[-1][1]):
            self._kept.append((trial, *self._kept[-1][1:]))
        else:
            self._kept.append((trial, metric, trial))


def _shared(trial: Trial, pool: dict[str, str]) -> Trial:
    """The same trial, its message parts shared with earlier ones: a prompt is held once."""
    calls = tuple(
        replace(
            call,
            messages=tuple(
                replace(m, parts=tuple(pool.setdefault(part, part) for part in m.parts))
                for m in call.messages
            ),
        )
        for call in trial.proposal.calls
    )
    return replace(trial, proposal=replace(trial.proposal, calls=calls))
