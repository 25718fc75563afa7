"""Each statistic against an independent computation, and none of them touches the global seed."""

import random
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from eval import statistics
from eval.statistics import Floats
from loop.rate import wilson

GAINS = np.array([0.031, -0.004, 0.022, 0.017, -0.011, 0.026, 0.008, 0.019, 0.003])
numbers = st.floats(-10, 10).map(lambda x: round(x, 3))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def by_hand(gains: Floats) -> float:
    """Every sign of every difference, one after the other."""
    sums = [abs(sum(s * g for s, g in zip(signs, gains, strict=True)))
            for signs in product((1, -1), repeat=len(gains))]  # fmt: skip
    return float(np.mean([total >= abs(sum(gains)) - 1e-12 for total in sums]))


def test_sign_flip_is_scipys_permutation_test() -> None:
    found = reference.permutation_test(
        (GAINS,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert statistics.sign_flip(GAINS, rng()) == pytest.approx(found.pvalue)


@given(st.lists(numbers, min_size=1, max_size=8))
@settings(deadline=None, max_examples=50)
def test_sign_flip_counts_every_sign(gains: list[float]) -> None:
    assert statistics.sign_flip(gains, rng()) == pytest.approx(by_hand(np.array(gains)))


def test_few_pairs_cannot_have_a_small_p() -> None:
    assert statistics.sign_flip([1, 2, 3, 4, 5], rng()) == 2 / 2**5
    assert statistics.sign_flip([], rng()) == 1.0
    assert statistics.sign_flip([0, 0, 0], rng()) == 1.0
    assert statistics.sign_flip(np.arange(1, 21), rng()) == 2 / 2**20, "exact to twenty"


def test_many_pairs_are_drawn_and_agree_with_the_normal_theory() -> None:
    gains = rng(3).normal(0.35, 1, 60)
    drawn = statistics.sign_flip(gains, rng())
    assert drawn == pytest.approx(reference.ttest_1samp(gains, 0).pvalue, rel=0.25)
    assert statistics.sign_flip(np.full(40, 1.0), rng(), draws=999) == 1 / 1000, "never zero"


def test_many_experiments_at_once_are_the_same_as_one_by_one() -> None:
    gains = rng(1).normal(0.4, 1, (30, 7))
    each = [statistics.sign_flip(row, rng()) for row in gains]
    assert statistics.sign_flips(gains, rng()) == pytest.approx(each)


@pytest.mark.parametrize("n", [6, 8, 9, 12])
def test_the_interval_is_what_the_test_does_not_reject(n: int) -> None:
    gains = rng(n).normal(0.5, 1, n)
    interval = statistics.flip_interval(gains, rng())
    assert interval is not None
    for end, outward in zip(interval, (-1, 1), strict=True):
        inside, outside = (gains - (end + step * outward * 1e-6) for step in (-1, 1))
        assert statistics.sign_flip(inside, rng()) > 0.05 >= statistics.sign_flip(outside, rng())


def test_an_interval_needs_six_pairs() -> None:
    assert statistics.flip_interval(GAINS[:5], rng()) is None
    assert statistics.flip_interval([0.0] * 8, rng()) == (0.0, 0.0)
    shifted = statistics.flip_interval(np.arange(40.0), rng())
    normal = reference.t.interval(0.95, 39, 19.5, reference.sem(np.arange(40.0)))
    assert shifted == pytest.approx(normal, rel=0.1), "drawn beyond twenty"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None)
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (50, 60), (9, 9)])
def test_wilson_is_that_of_statsmodels(hits: int, n: int) -> None:
    expected = proportion_confint(hits, n, method="wilson")
    assert wilson(hits, n) == pytest.approx(expected, abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(1,), (5,), (8,), (3, 7)])
def test_iqm_is_scipys_trimmed_mean(shape: tuple[int, ...]) -> None:
    scores = rng(2).standard_cauchy(shape)
    assert statistics.iqm(scores) == pytest.approx(reference.trim_mean(scores.ravel(), 0.25))
    assert statistics.iqm([0, 10, 20, 100]) == 15


def test_improvement_probability_is_mann_and_whitneys() -> None:
    ours, theirs = rng(4).integers(0, 6, 9), rng(5).integers(0, 6, 7)
    u = reference.mannwhitneyu(ours, theirs).statistic
    assert statistics.improvement_probability(ours, theirs) == pytest.approx(u / (9 * 7))
    assert statistics.improvement_probability([1, 2], [2]) == 0.25, "a tie is a half"


def test_profile_is_the_share_above_each_threshold() -> None:
    found = statistics.profile([[1, 2, 3, 4], [0, 0, 5, 5]], [0, 2, 4.5])
    assert found.tolist() == [[1, 0.5, 0], [0.5, 0.5, 0.5]]
    assert np.isnan(statistics.profile([[]], [0, 1])).tolist() == [[True, True]]


def test_area_is_the_mean_by_trapezia() -> None:
    assert statistics.area([4, 2, 2]) == pytest.approx(2.5)
    curves = rng(6).random((2, 3, 9))
    assert statistics.area(curves) == pytest.approx(np.trapezoid(curves, axis=-1) / 8)


def test_best_at_equal_spending() -> None:
    found = statistics.at_spending([9, 7, 7, 3], [0, 10, 25, 40], [0, 9.9, 10, 39, 40])
    assert found.tolist() == [9, 9, 7, 7, 3]
    assert statistics.at_spending([9, 7], [5, 10], [0]).tolist() == [9], "the baseline is there"


def test_the_bootstrap_resamples_whole_runs_within_each_arm() -> None:
    scores = rng(7).normal(size=(2, 200))

    def difference(values: Floats) -> float:
        assert all(np.isin(a, b).all() for a, b in zip(values, scores, strict=True))
        return float(values[0].mean() - values[1].mean())

    low, high = statistics.bootstrap(difference, scores, rng())
    middle, width = difference(scores), 1.96 * np.sqrt((scores.var(axis=1) / 200).sum())
    assert (low, high) == pytest.approx((middle - width, middle + width), abs=0.03)
    independent = reference.bootstrap(
        (scores[0], scores[1]), lambda a, b: a.mean() - b.mean(), method="percentile",
        vectorized=False, n_resamples=2000, rng=rng(1),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx(tuple(independent), abs=0.03)


def test_a_paired_bootstrap_keeps_the_pairs() -> None:
    column = rng(8).normal(size=30)
    scores = np.stack([column + 1, column])
    apart = statistics.bootstrap(lambda v: float((v[0] - v[1]).mean()), scores, rng())
    together = statistics.bootstrap(
        lambda v: float((v[0] - v[1]).mean()), scores, rng(), paired=True
    )
    assert together == pytest.approx((1, 1)) and apart[1] - apart[0] > 0.5


def test_a_gap_that_is_half_closed() -> None:
    noise = rng(9).normal(0, 0.01, 10)
    base, frontier = 2.0 + noise, 1.0 + noise
    arm = 1.5 + noise + rng(10).normal(0, 0.05, 10)
    found = statistics.gap_closed(arm, base, frontier, rng())
    assert found.established and found.n == 10 and found.gap == pytest.approx(-1)
    assert found.share == pytest.approx((base.mean() - arm.mean()) / 1.0)
    assert found.low is not None and found.high is not None
    assert found.low < 0.5 < found.high and found.high - found.low < 0.15


def test_without_a_gap_no_share_of_it() -> None:
    base = rng(11).normal(2, 0.1, 10)
    found = statistics.gap_closed(base - 0.1, base, base + rng(12).normal(0, 0.1, 10), rng())
    assert not found.established and found.share is None and found.gap_low is not None
    few = statistics.gap_closed([1.5] * 5, [2.0] * 5, [1.0] * 5, rng())
    assert not few.established and few.gap_low is None, "five pairs establish nothing"


def test_complete_drops_what_is_missing_anywhere() -> None:
    curves = np.array([[1.0, 2], [1, np.nan], [1, 1]])
    assert statistics.complete([1, 2, np.inf], curves).tolist() == [True, False, False]


DRAWING: dict[str, Callable[[np.random.Generator], object]] = {
    "sign_flip": lambda r: statistics.sign_flip(np.linspace(-1, 2, 30), r, 500),
    "flip_interval": lambda r: statistics.flip_interval(np.linspace(-1, 2, 30), r, draws=500),
    "bootstrap": lambda r: statistics.bootstrap(
        lambda v: float(v.mean()), np.arange(12.0).reshape(2, 6), r, repetitions=50
    ),
    "gap_closed": lambda r: statistics.gap_closed(
        np.linspace(1.4, 1.6, 8), np.full(8, 2.0), np.linspace(0.9, 1.1, 8), r, 50
    ),
}


@pytest.mark.parametrize("name", DRAWING)
def test_the_global_seed_does_not_matter(name: str) -> None:
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        before = repr((np.random.get_state(), random.getstate()))
        found.append(DRAWING[name](rng(5)))
        assert repr((np.random.get_state(), random.getstate())) == before
    assert found[0] == found[1]
    assert DRAWING[name](rng(6)) != found[0], "its own generator does"
