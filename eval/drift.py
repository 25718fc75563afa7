"""What changes within a run: repetition, drift, the first failure.

A run is one observation however many trials it has, since its trials stand on each other: intervals
and tests of drift are over runs. Proposals are counted from 1; the baseline is none.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.summary import Summary, improvement, reason, score
from eval.words import count, number, percent, points, signed
from loop import knobs
from loop.trial import Metric, Reason, Rejected, Trial

if TYPE_CHECKING:
    import numpy as np

STEPS = 6
"""Steps of a survival curve that a sentence gives."""
THIRDS = ("first third", "second third", "last third")


@dataclass(frozen=True)
class Repeats:
    """Proposals of an arm that repeat an earlier one of their run, out of `n`.

    `code`: the same code, to a hash of its syntax tree. `move`: the same knobs moved in the same
    directions as before, when that was not kept. `words`: the same description or reply. `any`: one
    of the three. `streak`: the longest row of proposals that repeat, in run `run`, ending at trial
    `trial` (None: no proposal repeats).
    """

    n: int
    code: int
    move: int
    words: int
    any: int
    streak: int
    run: str | None
    trial: int | None

    @property
    def sentence(self) -> str:
        """In words."""
        if not self.any:
            return f"No proposal repeats an earlier one of its run (n = {self.n})."
        return (
            f"{self.any} of {count(self.n, 'proposal')} repeat an earlier one of their run: the "
            f"same code {self.code}, the same knobs and directions after that was not kept "
            f"{self.move}, the same words {self.words}. The longest row is {self.streak}, ending "
            f"at trial {self.trial} of run {self.run}."
        )


@dataclass(frozen=True)
class Shift:
    """How a quantity differs between the last and the first third of a run, over `n` runs.

    `early` and `late` are means over runs, `low` and `high` the 95 % interval of `late - early` by
    Student's t, `p` the exact two-sided sign-flip test; None where `n` is too small. `better` says
    which sign of the difference is the good one.
    """

    name: str
    n: int
    early: float | None
    late: float | None
    low: float | None
    high: float | None
    p: float | None
    better: int

    @property
    def difference(self) -> float | None:
        """`late - early`; None where nothing could be compared."""
        return None if self.early is None or self.late is None else self.late - self.early

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no change shown`, or `not measured`."""
        if self.difference is None or self.low is None or self.high is None:
            return "not measured"
        if self.low <= 0 <= self.high:
            return "no change shown"
        return "better" if self.difference * self.better > 0 else "worse"

    @property
    def sentence(self) -> str:
        """In words."""
        name = self.name[0].upper() + self.name[1:]
        if self.early is None or self.late is None or self.difference is None:
            return f"{name}: not measured in both the first and the last third of any run."
        write, change = (percent, points) if self.name.startswith("share") else (number, signed)
        between = "no interval from one run"
        if self.low is not None and self.high is not None and self.p is not None:
            between = f"95 % interval {change(self.low)} to {change(self.high)}"
            between += f", sign-flip p = {self.p:.3g}"
        return (
            f"{name}: {write(self.early)} in the first third, {write(self.late)} in the last; "
            f"difference {change(self.difference)} ({between}; n = {count(self.n, 'run')}): "
            f"{self.verdict}."
        )


@dataclass(frozen=True)
class Survival:
    """Proposals until the first that failed, by Kaplan and Meier (1958).

    `steps` is a list of (proposal, share of runs without a failure up to and including it, its 95 %
    interval by Greenwood's formula, None where that gives none: at 0 and 1); a run that ends
    without a failure is censored at its length. `median`: None when more than half of the runs are
    still without a failure where the curve ends.
    """

    runs: int
    failed: int
    steps: tuple[tuple[int, float, tuple[float, float] | None], ...]
    median: int | None

    @property
    def sentence(self) -> str:
        """In words."""
        if not self.runs:
            return "No run proposed anything."
        if not self.failed:
            return f"None of {count(self.runs, 'run')} had a failure."
        half = f"half of the runs have had one by proposal {self.median}"
        if self.median is None:
            half = "more than half of the runs go on without one to the end"
        shown = "; ".join(map(_step, self.steps[:STEPS]))
        more = "; …" if len(self.steps) > STEPS else ""
        return (
            f"{self.failed} of {count(self.runs, 'run')} had a failure; {half} (Kaplan and Meier: "
            f"without a failure {shown}{more})."
        )


def _step(step: tuple[int, float, tuple[float, float] | None]) -> str:
    at, share, interval = step
    between = f" ({percent(interval[0])} to {percent(interval[1])})" if interval else ""
    return f"after proposal {at}, {percent(share)}{between}"


def proposals(summary: Summary) -> list[Trial]:
    """The trials of a run without its baseline."""
    return [trial for trial in summary.trials if trial.decision.verdict != "baseline"]


def thirds(summary: Summary, length: int) -> tuple[list[Trial], list[Trial], list[Trial]]:
    """The proposals of a run by which third of `length` proposals they fall in."""
    parts: tuple[list[Trial], list[Trial], list[Trial]] = ([], [], [])
    for place, trial in enumerate(proposals(summary)):
        parts[min(2, 3 * place // max(1, length))].append(trial)
    return parts


def repeats(runs: Sequence[Summary]) -> Repeats:
    """Repetition in the runs of an arm."""
    counts = [0, 0, 0, 0]
    longest: tuple[int, str | None, int | None] = (0, None, None)
    for run in runs:
        streak = 0
        for trial, found in _repeated(run):
            counts = [n + hit for n, hit in zip(counts, (*found, any(found)), strict=True)]
            streak = streak + 1 if any(found) else 0
            longest = max(longest, (streak, run.name, trial.id), key=lambda row: row[0])
    code, move, words, some = counts
    n = sum(run.proposed for run in runs)
    return Repeats(n, code, move, words, some, *(longest if longest[0] else (0, None, None)))


def _repeated(run: Summary) -> Iterator[tuple[Trial, tuple[bool, bool, bool]]]:
    """Each proposal, and whether its code, its move, its words were there before."""
    codes = {t.proposal.edit.code_hash for t in run.trials[:1] if t.proposal.edit}
    moves: set[frozenset[tuple[str, str]]] = set()
    words: set[str] = set()
    for trial in proposals(run):
        edit = trial.proposal.edit
        code = edit.code_hash if edit else ""
        said = {_squeezed(trial.proposal.description), _squeezed(trial.proposal.answer)} - {""}
        moved = frozenset(directions(trial))
        yield trial, (_is_duplicate(trial) or code in codes, moved in moves, bool(said & words))
        codes |= {code} - {""}
        words |= said
        if moved and trial.decision.verdict != "keep":
            moves.add(moved)


def _is_duplicate(trial: Trial) -> bool:
    return isinstance(trial.outcome, Rejected) and trial.outcome.reason is Reason.DUPLICATE


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def directions(trial: Trial) -> Iterator[tuple[str, str]]:
    """(knob, `up` | `down` | the new value) of each knob that the proposal moves.

    An edit that was refused is not stored: its answer is read, where it is `KNOB = value` lines.
    """
    edit = trial.proposal.edit
    if edit:
        for change in edit.knobs:
            yield change.knob, _direction(change.old, change.new)
        return
    for line in trial.proposal.answer.splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and name in trial.context.knobs:
            yield name, _direction(repr(trial.context.knobs[name]), value)


def _direction(old: str, new: str) -> str:
    try:
        before, after = knobs.literal(old), knobs.literal(new)
    except ValueError:
        return new
    if isinstance(before, int | float) and isinstance(after, int | float) and before != after:
        return "up" if after > before else "down"
    return repr(after)


def shifts(
    runs: Sequence[Summary], length: int, goal: Metric | None, rng: "np.random.Generator"
) -> list[Shift]:
    """Validity and distance from the goal, first against last third of `length` proposals.

    `goal`: the best score that any run of the comparison reached.
    """

    def gain(trials: Sequence[Trial]) -> float | None:
        found = [
            improvement(before, after)
            for t in trials
            if (after := score(t)) and (before := t.context.incumbent_metric)
        ]
        return statistics.median(found) if found else None

    def short(run: Summary) -> Callable[[Sequence[Trial]], float | None]:
        best = dict(zip((t.id for t in run.trials), run.best_so_far, strict=True))

        def measure(trials: Sequence[Trial]) -> float | None:
            at = best.get(trials[-1].id) if trials else None
            return improvement(at, goal) if at and goal and at.name == goal.name else None

        return measure

    parts = [thirds(run, length) for run in runs]
    ends = [(early, late) for early, _, late in parts]
    gaps = [
        (short(run)(early), short(run)(late)) for run, (early, late) in zip(runs, ends, strict=True)
    ]
    quantities = {
        "share of proposals with a score": (1, [(_valid(a), _valid(b)) for a, b in ends]),
        "median gain of a proposal over its incumbent": (1, [(gain(a), gain(b)) for a, b in ends]),
        "incumbent's distance from the best of all runs": (-1, gaps),
    }
    return [_shift(name, pairs, good, rng) for name, (good, pairs) in quantities.items()]


def _valid(trials: Sequence[Trial]) -> float | None:
    return statistics.fmean(score(t) is not None for t in trials) if trials else None


def _shift(
    name: str,
    pairs: Sequence[tuple[float | None, float | None]],
    better: int,
    rng: "np.random.Generator",
) -> Shift:
    from eval.statistics import sign_flip

    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return Shift(name, 0, None, None, None, None, None, better)
    early, late = (statistics.fmean(side) for side in zip(*both, strict=True))
    differences = [b - a for a, b in both]
    if len(both) < 2:
        return Shift(name, 1, early, late, None, None, None, better)
    from scipy import stats

    half = stats.t.ppf(0.975, len(both) - 1) * statistics.stdev(differences) / math.sqrt(len(both))
    middle = late - early
    return Shift(name, len(both), early, late, float(middle - half), float(middle + half),
                 sign_flip(differences, rng), better)  # fmt: skip


def first_failure(runs: Sequence[Summary]) -> Survival:
    """When the first proposal without a usable score comes."""
    import numpy as np
    from scipy import stats

    waits = [_wait(run) for run in runs if run.proposed]
    failed = sum(seen for _, seen in waits)
    if not failed:
        return Survival(len(waits), 0, (), None)
    sample = stats.CensoredData.right_censored(
        np.array([at for at, _ in waits]), np.array([not seen for _, seen in waits])
    )
    curve = stats.ecdf(sample).sf
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # at 0 and 1 there is no interval
        warnings.simplefilter("ignore", RuntimeWarning)
        band = curve.confidence_interval(method="log-log")
    lows, highs = (side.probabilities.tolist() for side in (band.low, band.high))
    shares = zip(curve.quantiles.tolist(), curve.probabilities.tolist(), lows, highs, strict=True)
    steps = tuple(
        (int(at), share, (low, high) if math.isfinite(low) and math.isfinite(high) else None)
        for at, share, low, high in shares
    )
    return Survival(
        len(waits), failed, steps, next((at for at, share, _ in steps if share <= 0.5), None)
    )


def _wait(run: Summary) -> tuple[int, bool]:
    """(proposals until the first failure, was there one)."""
    for place, trial in enumerate(proposals(run), 1):
        if reason(trial):
            return place, True
    return run.proposed, False
