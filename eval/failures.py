"""Why proposals fail: per arm, over the course of a run, by what they were about, with quotes.

The reasons are the closed list of `loop.trial.Reason`. Rates carry Wilson's interval over
proposals, which takes them as independent; whatever compares early with late is over runs
(`eval.drift`). A failure is a trial without a usable score; the baseline is no proposal.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eval.drift import (
    Repeats,
    Shift,
    Survival,
    directions,
    first_failure,
    proposals,
    repeats,
    shifts,
    thirds,
)
from eval.summary import Summary, reason
from loop.rate import wilson
from loop.trial import Crashed, Invalid, Metric, Rejected, Trial, better

if TYPE_CHECKING:
    import numpy as np

    from eval.results import Results

QUOTES = 2
"""Failures quoted of each reason and arm."""
QUOTED_REASONS = 4
REPLY_CHARS, DETAIL_CHARS, NAME_CHARS = 700, 400, 40
_PART = re.compile(
    r"^[-+]?[ \t]*(?:(?P<def>def|class)[ \t]+(?P<name>\w+)|(?P<knob>[A-Z][A-Z0-9_]+)[ \t]*=(?!=))",
    re.MULTILINE,
)

Runs = Mapping[str, Sequence[Summary]]
"""Arm -> its runs, one a seed."""


@dataclass(frozen=True)
class Rate:
    """`count` of `n`, with Wilson's 95 % interval; of nothing there is no rate."""

    count: int
    n: int

    @property
    def value(self) -> float | None:
        return self.count / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return wilson(self.count, self.n) if self.n else None


@dataclass(frozen=True)
class Cause:
    """One reason in an arm: over all proposals, and in each third of the runs."""

    reason: str
    all: Rate
    thirds: tuple[Rate, Rate, Rate]


@dataclass(frozen=True)
class Topic:
    """A knob, function or class that proposals were about, and how many of these failed."""

    name: str
    failed: Rate


@dataclass(frozen=True)
class Quote:
    """A failed proposal in its own words. All texts are foreign, and capped where they say so."""

    run: str
    trial: int
    reason: str
    about: str
    detail: str
    reply: str


@dataclass(frozen=True)
class Failures:
    """The failure analysis of one arm, over `runs` runs and `n` proposals."""

    arm: str
    runs: int
    n: int
    failed: Rate
    thirds: tuple[Rate, Rate, Rate]
    causes: tuple[Cause, ...]
    repeats: Repeats
    shifts: tuple[Shift, ...]
    first: Survival
    topics: tuple[Topic, ...]
    quotes: tuple[Quote, ...]


def by_arm(results: "Results") -> dict[str, list[Summary]]:
    """The runs that there are of each arm of a plan, in the order of its seeds, each under the name
    `arm/seed`."""
    return {
        arm: [
            replace(results.runs[arm, seed], name=f"{arm}/{seed}")
            for seed in results.seeds
            if (arm, seed) in results.runs
        ]
        for arm in results.arms
    }


def shares(results: "Results") -> dict[str, dict[str, tuple[int, int]]]:
    """Arm -> reason -> (proposals that failed for it, proposals). An arm without runs has none."""
    return {
        arm: {why: (count, n) for why, count in _counts(runs).most_common()}
        for arm, runs in by_arm(results).items()
        for n in [sum(run.proposed for run in runs)]
    }


def analyse(runs: Runs, rng: "np.random.Generator") -> list[Failures]:
    """One analysis an arm, in their order. Thirds are of the longest run of all arms."""
    every = [run for arm in runs.values() for run in arm]
    length = max((run.proposed for run in every), default=0)
    goal = _goal(every)
    return [_analyse(arm, of_arm, length, goal, rng) for arm, of_arm in runs.items() if of_arm]


def _goal(runs: Sequence[Summary]) -> Metric | None:
    """The best score that any run kept; None when runs measure different things."""
    found = [run.best for run in runs if run.best]
    if len({(metric.name, metric.direction) for metric in found}) != 1:
        return None
    best = found[0]
    for metric in found[1:]:
        best = metric if better(metric, best) else best
    return best


def _analyse(
    arm: str,
    runs: Sequence[Summary],
    length: int,
    goal: Metric | None,
    rng: "np.random.Generator",
) -> Failures:
    n = sum(run.proposed for run in runs)
    parts: tuple[list[Trial], list[Trial], list[Trial]] = ([], [], [])
    for run in runs:
        for whole, part in zip(parts, thirds(run, length), strict=True):
            whole += part
    a, b, c = (Counter(filter(None, map(reason, part))) for part in parts)
    sizes = [len(part) for part in parts]
    counts = _counts(runs)

    def over_time(why: str) -> tuple[Rate, Rate, Rate]:
        return Rate(a[why], sizes[0]), Rate(b[why], sizes[1]), Rate(c[why], sizes[2])

    causes = [Cause(why, Rate(count, n), over_time(why)) for why, count in counts.most_common()]
    return Failures(
        arm=arm,
        runs=len(runs),
        n=n,
        failed=Rate(counts.total(), n),
        thirds=(
            Rate(a.total(), sizes[0]), Rate(b.total(), sizes[1]), Rate(c.total(), sizes[2]),
        ),
        causes=tuple(causes),
        repeats=repeats(runs),
        shifts=tuple(shifts(runs, length, goal, rng)),
        first=first_failure(runs),
        topics=tuple(_topics(runs)),
        quotes=tuple(_quotes(runs, [cause.reason for cause in causes[:QUOTED_REASONS]])),
    )  # fmt: skip


def _counts(runs: Sequence[Summary]) -> Counter[str]:
    return Counter(why for run in runs for t in proposals(run) if (why := reason(t)))


def about(trial: Trial) -> list[str]:
    """What of the file a proposal touches: knobs that it sets, else functions and classes that it
    names, in its diff or, where it was refused, in its answer. Each once, in order."""
    if moved := [name for name, _ in directions(trial)]:
        return list(dict.fromkeys(name[:NAME_CHARS] for name in moved))
    edit = trial.proposal.edit
    text = edit.diff if edit else trial.proposal.answer
    found = [
        f"{hit['def']} {hit['name']}" if hit["def"] else hit["knob"]
        for hit in _PART.finditer(text)
    ]  # fmt: skip
    return list(dict.fromkeys(name[:NAME_CHARS] for name in found))


def _topics(runs: Sequence[Summary]) -> Iterator[Topic]:
    """What was touched, that with most failures first; a proposal may count under several."""
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for run in runs:
        for trial in proposals(run):
            names = about(trial) or ["no part of the file named"]
            tried.update(names)
            failed.update(names if reason(trial) else ())
    for name, count in sorted(failed.items(), key=lambda item: (-item[1], item[0])):
        yield Topic(name, Rate(count, tried[name]))


def _quotes(runs: Sequence[Summary], reasons: Sequence[str]) -> Iterator[Quote]:
    """The first failures of each reason, of different runs where there are such."""
    for why in reasons:
        found = [[t for t in proposals(run) if reason(t) == why] for run in runs]
        turns = (
            (run, failed[turn])
            for turn in range(QUOTES)
            for run, failed in zip(runs, found, strict=True)
            if turn < len(failed)
        )
        for _, (run, trial) in zip(range(QUOTES), turns, strict=False):
            yield Quote(
                run.name, trial.id, why, trial.proposal.description, _detail(trial), _reply(trial)
            )


def _detail(trial: Trial) -> str:
    """What was wrong, or the end of what the experiment printed."""
    match trial.outcome:
        case Rejected(detail=text) | Invalid(detail=text):
            return _cut(text, DETAIL_CHARS)
        case Crashed(tail=text):
            return text.strip()[-DETAIL_CHARS:]
    return ""


def _reply(trial: Trial) -> str:
    """The last reply of the conversation; of a control that asks nobody, its edit."""
    replies = [reply.text for call in trial.proposal.calls for reply in call.replies]
    return _cut((replies[-1] if replies else trial.proposal.answer).strip(), REPLY_CHARS)


def _cut(text: str, size: int) -> str:
    more = len(text) - size
    return text if more <= 0 else f"{text[:size]} … {more:,} more characters"
