"""The final check: best code and baseline on fresh training seeds, scored on the untouched text.

What was chosen on one text and a few seeds looks better than it is. At the end of a run both are
trained again, side by side on seeds that nothing was chosen on, and the second box scores them on
the test text, which no run reads before. A target without an audit has no such text: there the
check shows fresh seeds alone, and says so.
"""

import hashlib
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loop.judge import Contender, Past
from loop.trial import Measurement, Scored

PURPOSE = "final"
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, two-sided 95 %, by degrees of freedom from 1; beyond the table 1.96 + 2.8 / df."""


@dataclass(frozen=True)
class Final:
    """What the final check found, over `n` pairs that share a training seed.

    `gain`: mean improvement in the metric's unit, positive where the best code is better; `low`,
    `high`: its 95 % interval (Student's t on the pairs; None with fewer than two). `untouched`: was
    it the test text?
    """

    metric: str
    trial: int
    n: int
    baseline: float
    best: float
    gain: float
    low: float | None
    high: float | None
    untouched: bool


def pending(
    past: Past, seeds: int, seed: int, alone: bool = False
) -> Iterator[tuple[Contender, int]]:
    """(code, training seed) of the experiments that the check still lacks, pair by pair.

    `alone`: a baseline that nothing has replaced is measured too, with nothing to pair it with.
    """
    best, done = past.kept[-1], {(m.trial, m.seed) for m in past.measurements if _final(m)}
    for fresh in fresh_seeds(seed, seeds if best or alone else 0):
        for trial in sorted({0, best}):
            if (trial, fresh) not in done:
                yield past.contender(trial), fresh


def fresh_seeds(seed: int, count: int) -> list[int]:
    """The training seeds of the check of a run with the seed `seed`: 31 bits each."""
    texts = (f"{seed}/final/{number}" for number in range(count))
    return [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) >> 1 for text in texts]


def result(measurements: Iterable[Measurement]) -> Final | None:
    """The latest check of a trial against the baseline; None while it has no pair."""
    scored = {
        (m.trial, m.seed): m.outcome
        for m in measurements
        if _final(m) and isinstance(m.outcome, Scored)
    }
    best = next((trial for trial, _ in reversed(scored) if trial), 0)
    seeds = sorted(s for t, s in scored if t == best and best and (0, s) in scored)
    pairs = [(scored[0, seed], scored[best, seed]) for seed in seeds]
    if not pairs:
        return None
    metric = pairs[0][0].metric
    sign = 1 if metric.direction == "min" else -1
    gains = [sign * (old.metric.value - new.metric.value) for old, new in pairs]
    half = _half_width(gains)
    gain = statistics.fmean(gains)
    return Final(
        metric.name, best, len(pairs),
        statistics.fmean(old.metric.value for old, _ in pairs),
        statistics.fmean(new.metric.value for _, new in pairs),
        gain,
        None if half is None else gain - half,
        None if half is None else gain + half,
        all(run.measurements.get("metric_channel") == "test" for pair in pairs for run in pair),
    )  # fmt: skip


def _final(measurement: Measurement) -> bool:
    return measurement.purpose == PURPOSE


def _half_width(values: Sequence[float]) -> float | None:
    df = len(values) - 1
    if df < 1:
        return None
    t = _T95[df - 1] if df <= len(_T95) else 1.96 + 2.8 / df
    return t * statistics.stdev(values) / math.sqrt(len(values))
