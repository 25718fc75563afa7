"""How noisy is a run, and how probable is it that a trial really improved on its incumbent?

Every score is a true value plus noise of standard deviation sigma: y = mu + e, in the direction in
which lower is better. A trial's gain is g = (level of its incumbent) - mu.

**The gains** of a run's edits follow a mixture that is unimodal at zero: idle (exactly 0) and, on
either side, half-normals on a grid of scales. Its weights are fitted by EM to all gains of the run,
with pseudo-counts that stand in for data where there is little. This is adaptive shrinkage
(Stephens, Biostatistics 2017); 1 - P(real) is a local false sign rate that counts idle as false.

**The incumbent's level** is not its score: what was kept for being low is too low by expectation.
It is filtered. A kept trial's level is the posterior of its own true value; every later trial of
the same incumbent then says something about it, since most edits are idle (assumed-density filter:
after each trial the mixture posterior is replaced by the Gaussian of the same moments). A posterior
is not biased by having looked at the best (Efron, JASA 2011), so kept trials need no other
correction.

**sigma from replicates**: values of one trial under different training seeds, pooled over trials.
Equal seeds are one value (a pinned seed has no noise, which says nothing). A trial's own score
counts only if it is the baseline's: any other that got replicates was chosen by its score.

**sigma from the run's own scores**, where there are no replicates: the value under which the scores
are most probable, one after another, each predicted from those before it (prequential likelihood,
Dawid 1984, with the weights' prior). It rests on edits that do nothing: their scores differ by
noise alone. The search starts from the first quartile of distances between scores of one
incumbent's edits (Q_n of Rousseeuw and Croux, JASA 1993), which alone errs high by 1.2 to 8 times.
The bias that simulation shows is stated in docs/corpus.md and held by a test.

**Shrinkage** of variances (Smyth, SAGMB 2004): s^2 of the replicates, with its degrees of freedom,
is averaged with the estimate from scores, which counts as PRIOR_DF.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

QUARTILE = 0.45062  # sqrt(2) * 0.31864: first quartile of |N(0, 2)|
PRIOR_DF = 3.0
LEAST_PAIRS = 6
"""Distances below which nothing is said: fewer than four edits of one incumbent."""
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Of the half-normals, in sigma."""
IDLE, WORSE, BETTER = 0.5, 0.4, 0.1
"""Prior shares of the edits."""
PSEUDO = 10.0
"""Trials that the prior shares count as."""
GRID = tuple(1.3**k for k in range(-10, 2))
"""Candidates for sigma, in units of the quartile estimate."""
MOST = 2000
"""Trials from which sigma is estimated."""


@dataclass(frozen=True)
class Noise:
    """`sigma` of one measurement, in the metric's unit; `method`: how it was found."""

    sigma: float
    method: str


class Scores:
    """The scored trials of a run in order, in flat arrays: a run may be long.

    `value`: mean of `n` measurements; `parent`: index of its incumbent here, -1 for a baseline.
    """

    def __init__(self) -> None:
        self.value, self.parent, self.n = array("d"), array("q"), array("d")

    def __len__(self) -> int:
        return len(self.value)

    def add(self, value: float, parent: int = -1, n: float = 1) -> int:
        """Returns the index of the new score."""
        self.value.append(value)
        self.parent.append(parent)
        self.n.append(n)
        return len(self.value) - 1

    def head(self, most: int) -> "Scores":
        """The first `most` scores."""
        part = Scores()
        part.value, part.parent, part.n = self.value[:most], self.parent[:most], self.n[:most]
        return part


@dataclass(frozen=True)
class Verdict:
    """`p`: that the gain is above 0. `gain`, `sd`: its posterior mean and spread; > 0 is better."""

    p: float
    gain: float
    sd: float


def estimate(replicates: Iterable[Sequence[float]], scores: Scores, higher: bool) -> Noise | None:
    """The noise of a run, None where its data does not tell. `higher`: is higher better?"""
    variance, df = from_replicates(replicates)
    robust = from_scores(scores, higher)
    if not df or variance <= 0:
        return None if robust is None else Noise(robust, "from its own scores")
    if robust is None:
        return Noise(math.sqrt(variance), f"{df} df of replicates")
    pooled = (df * variance + PRIOR_DF * robust**2) / (df + PRIOR_DF)
    return Noise(math.sqrt(pooled), f"{df} df of replicates, shrunken to its own scores")


def from_replicates(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """(variance, degrees of freedom) pooled within groups of repeated values; (0, 0): none."""
    total, df = 0.0, 0
    for values in groups:
        if len(values) > 1:
            mean = sum(values) / len(values)
            total += sum((v - mean) ** 2 for v in values)
            df += len(values) - 1
    return (total / df if df else 0.0), df


def from_scores(scores: Scores, higher: bool) -> float | None:
    """sigma by the prequential likelihood of the first MOST scores, None: too few of them."""
    scores = scores.head(MOST)
    start = quartile(scores)
    if start is None:
        return None
    return max((start * k for k in GRID), key=lambda sigma: _evidence(scores, sigma, higher))


def quartile(scores: Scores) -> float | None:
    """The first quartile of distances between the edits of one incumbent, as a sigma."""
    import numpy as np

    groups: dict[int, list[float]] = {}
    for value, parent in zip(scores.value, scores.parent, strict=True):
        if parent >= 0:
            groups.setdefault(parent, []).append(value)
    parts = []
    for values in groups.values():
        i, j = np.triu_indices(len(values), 1)
        x = np.asarray(values)
        parts.append(np.abs(x[i] - x[j]))
    distances = np.concatenate(parts) if parts else np.empty(0)
    distances = distances[distances > 0]  # equal scores are the same code, or rounded
    if len(distances) < LEAST_PAIRS:
        return None
    return float(np.quantile(distances, 0.25)) / QUARTILE


def verdicts(scores: Scores, sigma: float, higher: bool) -> Iterator[Verdict | None]:
    """P(real), shrunken gain and its spread, in the metric's unit; None for a baseline."""
    mixture = _fitted(scores.head(MOST), sigma, higher)
    for step in _filter(scores, sigma, higher, mixture):
        yield step and Verdict(step[0].p, step[0].gain * sigma, step[0].sd * sigma)


def _evidence(scores: Scores, sigma: float, higher: bool) -> float:
    """Log-likelihood of the scores in their own unit, with the prior of the weights."""
    import numpy as np

    mixture = _fitted(scores, sigma, higher)
    steps = [step for step in _filter(scores, sigma, higher, mixture) if step]
    fitted = mixture.log_likelihood([s[1] for s in steps], [s[2] for s in steps])
    return (
        fitted
        - len(steps) * math.log(sigma)
        + PSEUDO * float(mixture.prior @ np.log(mixture.weights))
    )


def _fitted(scores: Scores, sigma: float, higher: bool) -> "Mixture":
    """The mixture of the run's gains: fitted over raw scores, then over filtered levels."""
    unit = -sigma if higher else sigma
    pairs = [(i, parent) for i, parent in enumerate(scores.parent) if parent >= 0]
    mixture = Mixture()
    mixture.fit(
        [(scores.value[parent] - scores.value[i]) / unit for i, parent in pairs],
        [math.sqrt(1 / scores.n[i] + 1 / scores.n[parent]) for i, parent in pairs],
    )
    steps = [step for step in _filter(scores, sigma, higher, mixture) if step]
    mixture = Mixture()
    mixture.fit([step[1] for step in steps], [step[2] for step in steps])
    return mixture


def _filter(
    scores: Scores, sigma: float, higher: bool, mixture: "Mixture"
) -> Iterator[tuple[Verdict, float, float] | None]:
    """(verdict, gain, its error) of each score over its incumbent's level at that time, in sigma.

    None for a baseline.
    """
    unit = -sigma if higher else sigma
    parents = set(scores.parent)
    level: dict[int, tuple[float, float]] = {}  # mean and variance
    for index, parent in enumerate(scores.parent):
        y, noise = scores.value[index] / unit, 1 / scores.n[index]
        if parent < 0:
            level[index] = (y, noise)
            yield None
            continue
        mean, variance = level[parent]
        gain, error = mean - y, math.sqrt(variance + noise)
        verdict = mixture.posterior(gain, error)
        # Given the true gain, y + gain is one more measurement of the incumbent's level.
        share = variance / (variance + noise)
        level[parent] = (
            mean + share * (y + verdict.gain - mean),
            variance * (1 - share) + (share * verdict.sd) ** 2,
        )
        if index in parents:
            level[index] = (
                y + (1 - share) * (mean - verdict.gain - y),
                noise * share + ((1 - share) * verdict.sd) ** 2,
            )
        yield verdict, gain, error


class Mixture:
    """The distribution of the true gains of a run, in units of sigma.

    Components: idle, then the half-normals of SCALES below zero, then those above.
    """

    def __init__(self) -> None:
        import numpy as np

        half = len(SCALES)
        self.prior: Any = np.array([IDLE, *[WORSE / half] * half, *[BETTER / half] * half])
        self.weights: Any = self.prior
        self._t: Any = np.array([*SCALES, *SCALES])
        self._sign: Any = np.array([-1.0] * half + [1.0] * half)

    def fit(self, gains: Sequence[float], errors: Sequence[float], rounds: int = 60) -> None:
        """EM over observed `gains` with standard errors `errors`."""
        import numpy as np

        if not gains:
            return
        logs = self._densities(gains, errors)
        density = np.exp(logs - logs.max(axis=1, keepdims=True))
        for _ in range(rounds):
            share = density * self.weights
            share /= share.sum(axis=1, keepdims=True)
            weights = share.sum(axis=0) + self.prior * PSEUDO
            self.weights = weights / weights.sum()

    def log_likelihood(self, gains: Sequence[float], errors: Sequence[float]) -> float:
        """Of all `gains`, natural logarithm."""
        import numpy as np

        if not gains:
            return 0.0
        logs = self._densities(gains, errors) + np.log(self.weights)
        top = logs.max(axis=1)
        return float((top + np.log(np.exp(logs - top[:, None]).sum(axis=1))).sum())

    def posterior(self, gain: float, error: float) -> Verdict:
        """Of one observed `gain` with standard error `error`."""
        import numpy as np

        logs = self._densities([gain], [error])[0] + np.log(self.weights)
        share = np.exp(logs - logs.max())
        share /= share.sum()
        # Under a half-normal the true gain is a normal cut at zero.
        k = self._t**2 / (error**2 + self._t**2)
        center, width = self._sign * gain * k, error * np.sqrt(k)
        a = -center / width
        hazard = np.exp(-0.5 * a * a - 0.5 * math.log(2 * math.pi) - _log_phi(-a))
        means = self._sign * (center + width * hazard)
        variances = width**2 * np.maximum(1e-12, 1 + a * hazard - hazard**2)
        mean = float(share[1:] @ means)
        second = float(share[1:] @ (variances + means**2))
        better = float(share[1 + len(SCALES) :].sum())
        return Verdict(min(1.0, better), mean, math.sqrt(max(0.0, second - mean * mean)))

    def _densities(self, gains: Sequence[float], errors: Sequence[float]) -> Any:
        """[n, components] log densities: a half-normal of scale t, seen with error s, has density
        2 N(d; 0, s^2 + t^2) Phi(+-d t / (s sqrt(s^2 + t^2)))."""
        import numpy as np

        d, s = np.asarray(gains)[:, None], np.asarray(errors)[:, None]
        wide = np.hypot(s, self._t)
        half = math.log(2) - 0.5 * (d / wide) ** 2 - np.log(wide)
        half = half + _log_phi(self._sign * d * self._t / (s * wide))
        idle = -0.5 * (d / s) ** 2 - np.log(s)
        return np.concatenate([idle, half], axis=1) - 0.5 * math.log(2 * math.pi)


def _log_phi(z: Any) -> Any:
    """Logarithm of the normal distribution function, of an array, exact far out as well."""
    import numpy as np

    return np.array([_log_phi_of(x) for x in z.ravel().tolist()]).reshape(z.shape)


def _log_phi_of(x: float) -> float:
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -0.5 * x * x - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / (x * x))
