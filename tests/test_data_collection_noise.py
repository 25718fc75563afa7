"""The noise estimate and P(real), against runs whose truth is known."""

import math
import random
import statistics

import pytest

from data_collection.noise import (
    Mixture,
    Scores,
    estimate,
    from_replicates,
    from_scores,
    quartile,
    verdicts,
)


def simulated(
    seed: int, *, idle: float, harm: float = 5.0, trials: int = 126, sigma: float = 1.0
) -> tuple[Scores, list[float]]:
    """A run under a naive judge, and the true gain of every edit (nan for the baseline).

    A share `idle` does nothing, a tenth of the rest helps by 1.5 sigma on average, the rest harms.
    """
    rng = random.Random(seed)
    scores, level, gains, incumbent = Scores(), [0.0], [math.nan], 0
    scores.add(rng.gauss(0, sigma))
    for _ in range(trials):
        gain = 0.0
        if rng.random() > idle:
            helps = rng.random() < 0.1
            gain = sigma * (rng.expovariate(1 / 1.5) if helps else -rng.expovariate(1 / harm))
        level.append(level[incumbent] - gain)
        gains.append(gain)
        at = scores.add(rng.gauss(level[-1], sigma), incumbent)
        if scores.value[at] < scores.value[incumbent]:
            incumbent = at
    return scores, gains


@pytest.mark.parametrize("idle", [0.2, 0.5, 0.8])
def test_sigma_from_scores_alone_is_nearly_unbiased(idle: float) -> None:
    found = [from_scores(simulated(seed, idle=idle)[0], False) for seed in range(5)]
    middle = statistics.median(sigma for sigma in found if sigma is not None)
    assert 0.7 < middle < 1.4
    rough = statistics.median(quartile(simulated(s, idle=idle)[0]) or 0 for s in range(5))
    assert rough > 1.1, "the quartile alone errs high, as its docstring says"


def test_sigma_and_gains_have_the_unit_of_the_metric() -> None:
    one, _ = simulated(1, idle=0.6)
    thousandth, _ = simulated(1, idle=0.6, sigma=0.001)
    a, b = from_scores(one, False), from_scores(thousandth, False)
    assert a is not None and b is not None
    assert b == pytest.approx(a / 1000, rel=1e-6)
    gains = [v.gain for v in verdicts(thousandth, b, False) if v]
    expected = [v.gain / 1000 for v in verdicts(one, a, False) if v]
    assert gains == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_p_real_is_calibrated_and_beats_the_naive_judge() -> None:
    p: list[float] = []
    real: list[bool] = []
    naive: list[bool] = []
    for seed in range(8):
        scores, gains = simulated(seed, idle=0.5)
        sigma = from_scores(scores, False)
        assert sigma is not None
        for at, verdict in enumerate(verdicts(scores, sigma, False)):
            if verdict:
                p.append(verdict.p)
                real.append(gains[at] > 0)
                naive.append(scores.value[at] < scores.value[scores.parent[at]])
    assert sum(p) == pytest.approx(sum(real), rel=0.5)
    sure = [r for q, r in zip(p, real, strict=True) if q >= 0.9]
    hopeless = [r for q, r in zip(p, real, strict=True) if q <= 0.1]
    assert len(sure) >= 3 and statistics.mean(sure) > 0.75
    assert statistics.mean(hopeless) < 0.06
    brier = statistics.mean((q - r) ** 2 for q, r in zip(p, real, strict=True))
    theirs = statistics.mean((n - r) ** 2 for n, r in zip(naive, real, strict=True))
    assert brier < 0.5 * theirs


def test_the_shrunken_gain_is_closer_to_the_truth_than_the_raw_one() -> None:
    ours: list[float] = []
    raw: list[float] = []
    for seed in range(5):
        scores, gains = simulated(seed, idle=0.6)
        for at, verdict in enumerate(verdicts(scores, 1.0, False)):
            if verdict:
                ours.append((verdict.gain - gains[at]) ** 2)
                raw.append((scores.value[scores.parent[at]] - scores.value[at] - gains[at]) ** 2)
    assert statistics.mean(ours) < 0.6 * statistics.mean(raw)


def test_higher_is_better_is_the_mirror_image() -> None:
    scores, _ = simulated(3, idle=0.5)
    mirrored = Scores()
    for value, parent in zip(scores.value, scores.parent, strict=True):
        mirrored.add(-value, parent)
    a = [v.p for v in verdicts(scores, 1.0, False) if v]
    b = [v.p for v in verdicts(mirrored, 1.0, True) if v]
    assert a == pytest.approx(b)


def test_replicates_sharpen_a_verdict() -> None:
    def p(n: int) -> float:
        scores = Scores()
        scores.add(1.0, n=n)
        scores.add(0.998, 0, n)
        verdict = list(verdicts(scores, 0.001, False))[1]
        assert verdict is not None
        return verdict.p

    assert p(1) < 0.5 < 0.9 < p(8)


def test_the_variance_of_replicates() -> None:
    variance, df = from_replicates([[1.0, 3.0], [5.0], [2.0, 2.0, 5.0]])
    assert variance == pytest.approx(8 / 3)
    assert df == 3


def test_a_pinned_seed_says_nothing_about_noise() -> None:
    assert estimate([[1.0, 1.0, 1.0]], Scores(), False) is None


def test_too_few_scores_say_nothing() -> None:
    scores = Scores()
    for value in (1.0, 0.9, 0.95):
        scores.add(value, len(scores) - 1)
    assert estimate([], scores, False) is None


def test_replicates_are_shrunken_towards_the_scores() -> None:
    scores, _ = simulated(2, idle=0.6)
    robust = from_scores(scores, False)
    found = estimate([[0.0, 6.0]], scores, False)
    assert robust is not None and found is not None
    assert robust < found.sigma < math.sqrt(18)
    assert "shrunken" in found.method


def test_posterior_moments_against_plain_integration() -> None:
    mixture = Mixture()
    verdict = mixture.posterior(1.3, 1.1)
    step, total, mean, better = 0.002, 0.0, 0.0, 0.0
    from data_collection.noise import BETTER, IDLE, SCALES, WORSE

    def normal(x: float, s: float) -> float:
        return math.exp(-0.5 * (x / s) ** 2) / s / math.sqrt(2 * math.pi)

    total = IDLE * normal(1.3, 1.1)
    for k in range(-60_000, 60_001):
        g = (k + 0.5) * step
        share = BETTER if g > 0 else WORSE
        prior = sum(share / len(SCALES) * 2 * normal(g, t) for t in SCALES)
        mass = prior * normal(1.3 - g, 1.1) * step
        total, mean = total + mass, mean + mass * g
        better += mass * (g > 0)
    assert verdict.p == pytest.approx(better / total, abs=1e-4)
    assert verdict.gain == pytest.approx(mean / total, abs=1e-3)
