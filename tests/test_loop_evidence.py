"""The e-process is exact, so its guarantee is tested by counting all coin tosses, not by luck."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.evidence import alpha, gamma, growth, log_e, pairs_needed, spent

SIZES = st.lists(st.floats(0, 1e3), min_size=1, max_size=7)


def every_toss(sizes: list[float]) -> list[list[float]]:
    """The gains that an edit without effect could have shown: every sign for every size."""
    signs = itertools.product((-1, 1), repeat=len(sizes))
    return [[sign * size for sign, size in zip(toss, sizes, strict=True)] for toss in signs]


@given(SIZES, st.floats(1e-3, 1e3))
def test_an_edit_without_effect_multiplies_its_stake_by_one_on_average(
    sizes: list[float], sigma: float
) -> None:
    tosses = every_toss(sizes)
    assert sum(math.exp(log_e(gains, sigma)) for gains in tosses) / len(tosses) == pytest.approx(1)


@given(SIZES)
def test_nor_is_there_any_gain_in_stopping_at_the_best_moment(sizes: list[float]) -> None:
    tosses = every_toss(sizes)
    best = [max(math.exp(log_e(gains[:n], 1.0)) for n in range(len(gains) + 1)) for gains in tosses]
    for wanted in (1.5, 2.0, 5.0, 20.0):
        assert sum(e >= wanted for e in best) / len(best) <= 1 / wanted + 1e-9


@given(SIZES)
def test_without_a_sigma_the_bets_go_by_the_size_of_the_gains_and_stay_fair(
    sizes: list[float],
) -> None:
    tosses = every_toss(sizes)
    assert sum(math.exp(log_e(gains, 0.0)) for gains in tosses) / len(tosses) == pytest.approx(1)


@given(SIZES, st.floats(0, 10))
def test_worse_gains_are_never_more_evidence(sizes: list[float], loss: float) -> None:
    worse = [size - loss for size in sizes]
    assert log_e(worse, 1.0) <= log_e(sizes, 1.0) + 1e-9


def test_a_pair_at_most_doubles_the_stake() -> None:
    assert log_e([1e9] * 5, 1.0) == pytest.approx(5 * math.log(2))


def test_huge_losses_leave_a_finite_logarithm() -> None:
    assert math.isfinite(log_e([-1e6] * 50, 1e-3))


def test_the_error_budget_of_an_endless_run_is_never_overspent() -> None:
    assert (
        0.9 < spent(200_000) + 5 * 200_000**-0.2 / 5.591582441177751 == pytest.approx(1, abs=1e-4)
    )
    assert all(gamma(test) > gamma(test + 1) > 0 for test in (1, 10, 100, 1000))


def test_every_keep_earns_the_next_test_a_higher_level() -> None:
    assert alpha(0.05, 7, 3) == pytest.approx(4 * alpha(0.05, 7, 0))
    assert alpha(0.05, 1, 0) == pytest.approx(0.05 * gamma(1))


def test_growth_is_half_the_square_of_a_small_effect_and_log_two_of_a_large_one() -> None:
    assert growth(0.01) == pytest.approx(0.01**2 / 2, rel=1e-3)
    assert growth(9.0) == pytest.approx(math.log(2))
    assert growth(-1.0) == 0.0


def test_larger_gains_need_fewer_pairs() -> None:
    first = alpha(0.05, 1, 0)
    assert pairs_needed(4, first) < pairs_needed(2, first) < pairs_needed(1, first) < 40
