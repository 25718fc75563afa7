"""What is known of the noise, and what is not taken for it."""

import math
import random

import pytest

from loop.noise import estimate, identical, scores
from loop.trial import Crashed, Measurement, Metric, Reason, Scored


def ran(code: str, seed: int, value: float, purpose: str = "replicate") -> Measurement:
    return Measurement(1, purpose, seed, "", 1.0, Scored(Metric("loss", value)), code)


def test_spread_is_pooled_within_codes_and_blind_to_what_lies_between_them() -> None:
    noise = estimate([[1.0, 3.0], [101.0, 103.0], [7.0]])
    assert noise is not None
    assert noise.sigma == pytest.approx(math.sqrt(2))
    assert (noise.df, noise.runs) == (2, 4)


def test_one_run_of_each_code_says_nothing() -> None:
    assert estimate([[1.0], [2.0], []]) is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(1)
    found = [estimate([[rng.gauss(0, 1) for _ in range(5)]]) for _ in range(2000)]
    covered = sum(n is not None and n.low <= 1 <= n.high for n in found)
    assert 0.93 < covered / 2000 < 0.97


def test_only_scores_that_nothing_selected_count() -> None:
    crash = Measurement(1, "replicate", 3, "", 1.0, Crashed("train", Reason.EXCEPTION), "a")
    records = [ran("a", 1, 5.0), ran("a", 2, 6.0, "noise"), ran("a", 4, 0.1, "failsafe"), crash]
    assert scores(records) == {"a": {1: 5.0, 2: 6.0}}


def test_the_same_number_on_two_seeds_is_suspicious_and_a_single_one_is_not() -> None:
    assert identical({1: 0.5, 2: 0.5})
    assert not identical({1: 0.5, 2: 0.5000001})
    assert not identical({1: 0.5})
