"""`doctor RUN`: what went wrong in a run without anybody saying so, with trial numbers.

Reads the ledger alone, so a run may be examined while it goes on. Each check is one silent failure
that published runs had: contexts cut to size, schemas ignored, the same idea again and again, edits
of the seed alone, replies cut short, models that a server had put out of memory, scores too good or
too equal to be true.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loop.ledger import read
from loop.trial import Invalid, Json, Measurement, Reason, Rejected, Scored, Trial

TOO_GOOD = 8.0
"""Gains of a trial, in median gains of the kept ones, above which a score is looked at."""
SLOW_LOAD = 5.0
"""A reply counts as waiting for its model if it read this many times slower than is usual."""
OVERSPENT = 3.0
"""Times the baseline's seconds for the same budget."""


@dataclass(frozen=True)
class Symptom:
    """One kind of silent failure and the trials that show it."""

    name: str
    trials: tuple[int, ...]
    what: str


def examine(folder: Path) -> list[Symptom]:
    """Every symptom of the run in `folder`, those that concern most trials first.

    Raises LedgerError for what is no run.
    """
    records = list(read(folder))
    trials = [record for record in records if isinstance(record, Trial)]
    measured = [record for record in records if isinstance(record, Measurement)]
    found = [symptom for check in CHECKS for symptom in check(trials)]
    found += _pinned(trials, measured)
    return sorted(found, key=lambda symptom: -len(symptom.trials))


def _rejections(trials: Sequence[Trial]) -> Iterator[Symptom]:
    """Proposals that came to nothing, by the reasons that people overlook."""
    for reason, what in _OVERLOOKED.items():
        yield from _some(reason.value, (t for t in trials if _why(t) is reason), what)


_OVERLOOKED = {
    Reason.NO_OP: "edits that change nothing but comments or layout",
    Reason.DUPLICATE: "ideas that had been tried: show more history, or another brain",
    Reason.SEED_ONLY: "edits of the training seed alone",
    Reason.FORBIDDEN_EDIT: "edits that reach past the file, or pin the seed",
    Reason.CUT_SHORT: "replies cut at the token limit: raise --reply-tokens",
    Reason.INVALID_JSON: "replies that ignore the schema: this model or server does not enforce it",
    Reason.ONLY_REASONING: "replies of reasoning alone: think less, or raise --reply-tokens",
    Reason.CONTEXT_OVERFLOW: "prompts that do not fit the window: raise --window",
}


def _contexts(trials: Sequence[Trial]) -> Iterator[Symptom]:
    """Was more left out than said, or less read than sent?"""
    yield from _some(
        "omitted", (t for t in trials if t.context.omitted), "contexts fitted by leaving things out"
    )
    yield from _some(
        "truncated", (t for t in trials if any(map(_truncated, _replies(t)))),
        "prompts read only in part: far fewer tokens than the text has; raise --window or num_ctx",
    )  # fmt: skip


def _truncated(pair: tuple[int, int]) -> bool:
    """Fewer than a token to 12 characters were read: no tokenizer packs text that densely."""
    characters, tokens = pair
    return 0 < tokens < characters / 12


def _repeats(trials: Sequence[Trial]) -> Iterator[Symptom]:
    """The same words again, whether or not the edit was refused for it."""
    first: dict[str, int] = {}
    again = []
    for trial in trials:
        answer = " ".join(trial.proposal.answer.split())
        if answer and first.setdefault(answer, trial.id) != trial.id:
            again.append(trial)
    yield from _some("same reply", again, "replies equal to an earlier one, word for word")


def _evictions(trials: Sequence[Trial]) -> Iterator[Symptom]:
    """Replies that waited: the model had been put out of memory and was loaded again."""
    speeds = {
        trial.id: sum(r.seconds for r in replies)
        / sum(max(1, r.completion_tokens) for r in replies)
        for trial in trials
        if (replies := [r for call in trial.proposal.calls for r in call.replies])
    }
    if len(speeds) < 4 or not (usual := statistics.median(speeds.values())):
        return
    slow = [t for t in trials if speeds.get(t.id, 0.0) > SLOW_LOAD * usual]
    yield from _some(
        "evicted",
        slow,
        "replies far slower than the others: was the model loaded again? (keep_alive)",
    )


def _scores(trials: Sequence[Trial]) -> Iterator[Symptom]:
    """Too equal or too good."""
    same: dict[float, list[Trial]] = defaultdict(list)
    for trial in trials:
        if isinstance(trial.outcome, Scored):
            same[trial.outcome.metric.value].append(trial)
    equal = [t for group in same.values() if len(group) > 1 for t in group]
    yield from _some("identical", equal, "scores equal to the last digit: edits without effect?")
    gains = {t.id: gain for t in trials if (gain := _gain(t)) is not None and gain > 0}
    usual = statistics.median(gains.values()) if len(gains) > 3 else 0.0
    good = [t for t in trials if usual and gains.get(t.id, 0.0) > TOO_GOOD * usual]
    yield from _some(
        "too good", good, f"gains above {TOO_GOOD:.0f} times the usual one: look at them"
    )
    failed = [t for t in trials if isinstance(t.outcome, Invalid)]
    yield from _some("failed the audit", failed, "scores that the second box did not confirm")


def _spending(trials: Sequence[Trial]) -> Iterator[Symptom]:
    """Much more time than the baseline for the same budget."""
    seconds = {t.id: value for t in trials if (value := _measured(t, "total_seconds")) is not None}
    base = seconds.get(0, 0.0)
    slow = [t for t in trials if base and seconds.get(t.id, 0.0) > OVERSPENT * base]
    what = f"more than {OVERSPENT:.0f} times the baseline's time: work that no budget counts?"
    yield from _some("slow", slow, what)


def _pinned(trials: Sequence[Trial], measured: Sequence[Measurement]) -> Iterator[Symptom]:
    """Code whose score does not depend on its training seed."""
    values: dict[int, dict[int, float]] = defaultdict(dict)
    for record in measured:
        if isinstance(record.outcome, Scored):
            values[record.trial][record.seed] = record.outcome.metric.value
    pinned = {t for t, runs in values.items() if len(runs) > 1 and len(set(runs.values())) == 1}
    what = "the same score on every seed: repeats of it are no evidence"
    yield from _some("pinned seed", (t for t in trials if t.id in pinned), what)


def _some(name: str, trials: "Iterator[Trial] | Sequence[Trial]", what: str) -> Iterator[Symptom]:
    if ids := tuple(trial.id for trial in trials):
        yield Symptom(name, ids, what)


def _why(trial: Trial) -> Reason | None:
    return trial.outcome.reason if isinstance(trial.outcome, Rejected) else None


def _replies(trial: Trial) -> Iterator[tuple[int, int]]:
    """(characters sent, tokens the server says it read) of each reply."""
    for call in trial.proposal.calls:
        sent = sum(len(message.content) for message in call.messages)
        yield from ((sent, reply.prompt_tokens) for reply in call.replies)


def _gain(trial: Trial) -> float | None:
    before = trial.context.incumbent_metric
    if not isinstance(trial.outcome, Scored) or before is None:
        return None
    gain = before.value - trial.outcome.metric.value
    return gain if before.direction == "min" else -gain


def _measured(trial: Trial, name: str) -> float | None:
    found: Json = trial.outcome.measurements if isinstance(trial.outcome, Scored) else {}
    value = found.get(name)
    return float(value) if isinstance(value, int | float) else None


CHECKS: tuple[Callable[[Sequence[Trial]], Iterator[Symptom]], ...] = (
    _rejections,
    _contexts,
    _repeats,
    _evictions,
    _scores,
    _spending,
)
