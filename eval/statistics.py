"""The statistics of a comparison, over arrays [arms, seeds] and [arms, seeds, trials + 1].

A run is one observation, however many trials it has: whatever is resampled is whole runs. Arms
share their seeds, so an arm against an arm is a paired comparison. Functions take complete arrays
(no NaN: `complete` says which seeds are) and the random generator that they may need; none touches
the global one. `gains` are differences that are positive where the first is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

EXACT = 20
"""Pairs up to which all sign flips are counted; beyond, they are drawn."""
DRAWS = 100_000
CELLS = 1 << 22
"""Sums held in memory at once."""
REPETITIONS = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class GapClosed:
    """Which share of the way from `reference` to `frontier` an arm goes, over `n` shared seeds.

    `gap`: mean gain of the frontier over the reference, with the interval `gap_low` to `gap_high`.
    Without an `established` gap (its interval holds 0, or there is none) there is no share of it:
    `share`, `low` and `high` are None.
    """

    n: int
    gap: float
    gap_low: float | None
    gap_high: float | None
    established: bool
    share: float | None = None
    low: float | None = None
    high: float | None = None


def complete(*columns: ArrayLike) -> Bools:
    """Which positions [n] are numbers in every one of `columns`, each [n] or [n, anything]."""
    arrays = [np.asarray(column, float) for column in columns]
    finite = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in arrays]
    return np.asarray(np.all(finite, axis=0))


def sign_flip(gains: ArrayLike, rng: np.random.Generator, draws: int = DRAWS) -> float:
    """Two-sided p-value of `gains` [n], paired differences: is their mean 0?

    Fisher's randomisation test (1935): if the two arms do not differ, every sign of a difference is
    as likely as the other. All 2^n signs are counted to n = 20; beyond, `draws` of them, and the
    observed ones (Phipson and Smyth 2010). With n pairs no p is below 2 / 2^n. No pair: 1.0.
    """
    return float(sign_flips(np.atleast_2d(np.asarray(gains, float)), rng, draws)[0])


def sign_flips(
    gains: Floats, rng: np.random.Generator, draws: int = DRAWS, exact: int = EXACT
) -> Floats:
    """`sign_flip` of many experiments at once: gains [experiments, n] -> p [experiments]."""
    experiments, n = gains.shape
    if n == 0:
        return np.ones(experiments)
    slack = 1e-9 * np.abs(gains).sum(axis=1)  # equal sums in another order round differently
    least = (np.abs(gains.sum(axis=1)) - slack)[:, None]
    if n <= exact:
        rows = max(1, CELLS >> n)
        parts = [slice(begin, begin + rows) for begin in range(0, experiments, rows)]
        return np.concatenate(
            [(np.abs(_signed_sums(gains[part])) >= least[part]).mean(axis=1) for part in parts]
        )
    signs = rng.choice(np.array([-1.0, 1.0]), (n, draws))
    return np.asarray((1 + (np.abs(gains @ signs) >= least).sum(axis=1)) / (1 + draws))


def _signed_sums(gains: Floats) -> Floats:
    """[experiments, n] -> [experiments, 2^(n - 1)]: sums under all signs with the first one fixed,
    since a flip and its opposite are equally extreme."""
    sums = gains[:, :1]
    for column in gains.T[1:]:
        sums = np.concatenate([sums - column[:, None], sums + column[:, None]], axis=1)
    return sums


def flip_interval(
    gains: ArrayLike, rng: np.random.Generator, level: float = LEVEL, draws: int = DRAWS
) -> tuple[float, float] | None:
    """The mean gains that `sign_flip` does not reject for `gains` [n]: (low, high).

    Its ends are order statistics of the means of the subsets of the gains (Hartigan 1969, typical
    values), so it holds 0 exactly if the p-value is above 1 - `level`. All subsets are taken to
    n = 20, `draws` random ones beyond. None: so few pairs (below 6 at 95 %) reject nothing.
    """
    values = np.asarray(gains, float)
    n = len(values)
    if n <= EXACT:
        sums, sizes = np.zeros(1), np.zeros(1)
        for value in values:
            sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
        means = np.sort(sums[1:] / sizes[1:])
    else:
        chosen = rng.random((draws, n)) < 0.5
        chosen = chosen[chosen.any(axis=1)]
        means = np.sort(chosen @ values / chosen.sum(axis=1))
    rank = int((1 - level) / 2 * (len(means) + 1) + 1e-9)
    return None if rank < 1 else (float(means[rank - 1]), float(means[-rank]))


def holm(p: ArrayLike) -> Floats:
    """p-values [m] -> the same, adjusted for all m (Holm 1979): reject those below alpha."""
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean of all `scores`, any shape: a quarter cut off at either end, rounded down
    to whole scores (Agarwal et al. 2021, rliable)."""
    values = np.sort(np.asarray(scores, float).ravel())
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def improvement_probability(scores: ArrayLike, rivals: ArrayLike) -> float:
    """P(a run of `scores` [n] is better than one of `rivals` [m]), a tie for a half; higher is
    better: pass negatives of a metric that should be low (rliable; Mann and Whitney's U / nm)."""
    ours, theirs = np.asarray(scores, float)[:, None], np.asarray(rivals, float)[None, :]
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def profile(scores: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Performance profile: scores [arms, runs], thresholds [k] -> [arms, k], the share of an arm's
    runs with a score above each threshold (rliable; higher is better); NaN without a run."""
    if not np.asarray(scores).size:
        return np.full((len(np.asarray(scores)), len(np.asarray(thresholds))), np.nan)
    above = np.asarray(scores, float)[:, :, None] > np.asarray(thresholds, float)[None, None, :]
    return np.asarray(above.mean(axis=1))


def area(best: ArrayLike) -> Floats:
    """Mean of best-so-far over a run, by trapezia: [..., trials + 1] -> [...], same unit."""
    curves = np.asarray(best, float)
    return np.asarray((curves[..., :-1] + curves[..., 1:]).mean(axis=-1) / 2)


def at_spending(best: ArrayLike, spent: ArrayLike, at: ArrayLike) -> Floats:
    """Best-so-far of one run where it had spent no more than `at` [points] -> [points].

    `best`, `spent` [trials + 1]; what was spent grows. The baseline is there from the start.
    """
    reached = np.searchsorted(np.asarray(spent, float), np.asarray(at, float), side="right") - 1
    return np.asarray(np.asarray(best, float)[np.maximum(reached, 0)])


def bootstrap(
    statistic: Callable[[Floats], float],
    scores: ArrayLike,
    rng: np.random.Generator,
    *,
    paired: bool = False,
    repetitions: int = REPETITIONS,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile interval of `statistic` of scores [arms, seeds, ...], runs resampled whole.

    Within each arm apart (stratified, as in rliable), or, `paired`, the seeds of all arms together.
    `statistic` is given arrays of the same shape; a result that is no number is left out.
    """
    values = np.asarray(scores, float)
    arms, seeds = values.shape[:2]
    rows = np.arange(arms)[:, None]
    found = np.empty(repetitions)
    for number in range(repetitions):
        shape = (1, seeds) if paired else (arms, seeds)
        found[number] = statistic(values[rows, rng.integers(0, seeds, shape)])
    tail = (1 - level) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(low), float(high)


def gap_closed(
    arm: ArrayLike, reference: ArrayLike, frontier: ArrayLike, rng: np.random.Generator,
    repetitions: int = REPETITIONS,
) -> GapClosed:  # fmt: skip
    """(arm - reference) / (frontier - reference), of means over shared seeds; each argument [n].

    Works in either direction of the metric. The gap must be established by its own interval (the
    sign-flip test's) first; the share's interval is a bootstrap over seeds, which pairs the arms.
    """
    scores = np.stack([np.asarray(a, float) for a in (arm, reference, frontier)])
    gaps = scores[2] - scores[1]
    n, gap = len(gaps), float(gaps.mean()) if len(gaps) else 0.0
    interval = flip_interval(gaps, rng) if n else None
    if interval is None:
        return GapClosed(n, gap, None, None, False)
    if interval[0] <= 0 <= interval[1]:
        return GapClosed(n, gap, *interval, False)
    low, high = bootstrap(_share, scores, rng, paired=True, repetitions=repetitions)
    return GapClosed(n, gap, *interval, True, _share(scores), low, high)


def _share(scores: Floats) -> float:
    """Scores [3, n] of arm, reference, frontier -> share of the gap; NaN where there is no gap."""
    ours, reference, frontier = scores.mean(axis=1)
    gap = frontier - reference
    return float((ours - reference) / gap) if gap else float("nan")


def thresholds(scores: Sequence[float] | Floats, points: int = 60) -> Floats:
    """Where a performance profile of `scores` is drawn: [points], from lowest to highest."""
    values = np.asarray(scores, float)
    values = values[np.isfinite(values)]
    return np.linspace(values.min(), values.max(), points)
