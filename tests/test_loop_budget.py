"""Budgets: two forms, and what is said is what is meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.budget import Budget


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("300s", 300, "s"),
        ("2e12flops", 2e12, "flops"),
        (" 0.5 s ", 0.5, "s"),
        ("1_000s", 1000, "s"),
    ],
)
def test_the_two_forms(text: str, amount: float, unit: str) -> None:
    budget = Budget.parse(text)
    assert (budget.amount, budget.unit) == (amount, unit)


@given(st.integers(1, 10**11), st.sampled_from(["s", "flops"]))
def test_a_budget_is_told_as_it_was_given(amount: int, unit: str) -> None:
    budget = Budget.parse(f"{amount}{unit}")
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "300", "s", "0s", "-1s", "5m", "1e999flops", "nans", "3 s s"])
def test_anything_else_is_refused_with_both_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"300s.*2e12flops"):
        Budget.parse(text)
