"""How noisy is the target? The spread of repeated runs of the same code, pooled over codes.

Every group holds runs of one code; what differs within a group is noise and nothing else, so the
groups' squared deviations add up, and so do their degrees of freedom. Runs that were selected for
their score must not be in a group: the best of many runs says little about the spread.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loop.trial import Measurement, Scored

PURPOSES = ("noise", "replicate")
"""Measurements that nothing selected: what a judge ordered before it saw their values."""


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one run, in the metric's unit.

    `df`: degrees of freedom; `runs`: how many runs it rests on; `low`, `high`: a 95 % interval,
    right for normal noise and too narrow for heavier tails.
    """

    sigma: float
    df: int
    runs: int
    low: float
    high: float


def estimate(groups: Iterable[Sequence[float]]) -> Noise | None:
    """The pooled standard deviation of `groups`; None while no group has two runs."""
    squares, df, runs = 0.0, 0, 0
    for values in groups:
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            df, runs = df + len(values) - 1, runs + len(values)
    if not df:
        return None
    low, high = (math.sqrt(squares / _chi2(df, z)) for z in (1.96, -1.96))
    return Noise(math.sqrt(squares / df), df, runs, low, high)


def scores(
    measurements: Iterable[Measurement], purposes: Sequence[str] = PURPOSES
) -> dict[str, dict[int, float]]:
    """Code -> training seed -> metric, of the scored measurements that nothing selected."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for record in measurements:
        if record.purpose in purposes and isinstance(record.outcome, Scored):
            found[record.code][record.seed] = record.outcome.metric.value
    return found


def identical(values: Mapping[int, float]) -> bool:
    """Did runs on two or more training seeds give the very same number? Then they say nothing."""
    return len(values) > 1 and len(set(values.values())) == 1


def _chi2(df: int, z: float) -> float:
    """Quantile of chi-squared at the normal quantile `z` (Wilson and Hilferty 1931), above 0."""
    part = 2 / (9 * df)
    return max(df * (1 - part + z * math.sqrt(part)) ** 3, df * 1e-3)
