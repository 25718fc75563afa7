"""The four answers on runs whose truth is known."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from eval import questions
from eval.plan import BEST_PROMPTING, Arm, Fixed, Plan, Primary, Role
from eval.power import Spread, power
from eval.questions import Answer, answers, contrasts
from eval.results import Floats, Results, best_prompting, load
from loop.trial import Outcome, Reason, Rejected, Scored
from tests import plan_folder
from tests.plan_folder import bpb

ROLES: dict[str, Role] = {
    "random_edit": "control", "menu": "prompting", "cot": "prompting", "adapter": "adapter",
    "opus": "frontier", "tpe": "control",
}  # fmt: skip


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made(
    finals: Mapping[str, Sequence[float] | Floats],
    *,
    pilot: Mapping[str, Sequence[float] | Floats] | None = None,
    against: str = BEST_PROMPTING,
    smallest: float = 0.01,
    start: float = 2.0,
    **changes: Any,
) -> Results:
    """Results with these final scores [seeds] of each arm; every run began at `start`."""
    arms = tuple(
        Arm(name, name if ROLES[name] == "control" else "menu", ROLES[name], brain=name)
        for name in finals
    )
    first = "adapter" if "adapter" in finals else next(iter(finals))
    seeds = tuple(range(len(next(iter(finals.values())))))
    plan = Plan(arms, seeds, 1, Primary(first, against, smallest), runner="boxed")
    final = np.array([np.asarray(row, float) for row in finals.values()])
    begin = np.where(np.isfinite(final), start, np.nan)
    best = np.stack([begin, np.minimum(begin, final)], axis=-1)
    record = Fixed(plan, plan.hash, "2026-01-01", "", {}, {})
    found = Results(
        plan, record, tuple(finals), seeds, {}, "val_bpb", "min", best, begin, final, begin,
        True, (), None,
    )  # fmt: skip
    return replace(found, pilot=made(pilot, against=against) if pilot else None, **changes)


def noisy(mean: float, n: int = 10, seed: int = 0, sd: float = 0.01) -> Floats:
    return rng(seed).normal(mean, sd, n)


def fourth(results: Results) -> Answer:
    return answers(results, rng())[3]


def test_an_adapter_that_is_better_is_said_to_be() -> None:
    menu = noisy(1.9)
    found = fourth(made({"menu": menu, "adapter": menu - noisy(0.05, seed=1)}))
    assert found.verdict == "yes" and found.n == 10 and found.unit == "val_bpb"
    assert found.number == pytest.approx(0.05, abs=0.01)
    assert found.low is not None and found.low > 0 and "p = 0.002" in found.test
    assert (
        found.sentence.startswith("Yes: adapter ends 0.05") and "only prompting" in found.sentence
    )


def test_a_metric_that_should_be_high() -> None:
    menu = noisy(1.9)
    found = fourth(made({"menu": menu, "adapter": menu + 0.05 + noisy(0, seed=1)}, direction="max"))
    assert found.verdict == "yes" and found.number == pytest.approx(0.05, abs=0.01)


def test_an_adapter_that_is_worse_is_a_plain_no() -> None:
    menu = noisy(1.9)
    found = fourth(made({"menu": menu, "adapter": menu + noisy(0.05, seed=1)}))
    assert found.verdict == "no" and "worse than menu" in found.sentence
    assert found.number is not None and found.number < 0


def test_a_gain_too_small_to_matter_is_a_no() -> None:
    menu = noisy(1.9)
    equal = menu + noisy(0, seed=3, sd=0.001)
    found = fourth(made({"menu": menu, "adapter": equal}, smallest=0.05))
    assert (
        found.verdict == "no" and "0.05, the least that would matter, is excluded" in found.sentence
    )
    small = fourth(made({"menu": menu, "adapter": menu - 0.01 + (equal - menu)}, smallest=0.05))
    assert small.verdict == "yes" and "less than the 0.05" in small.sentence


def test_ties_decide_nothing_but_that_there_is_no_difference() -> None:
    found = fourth(made({"menu": [1.9] * 8, "adapter": [1.9] * 8}))
    assert (found.verdict, found.number, found.low, found.high) == ("no", 0, 0, 0)


@pytest.mark.parametrize("n", [1, 5, 7])
def test_fewer_than_eight_pairs_are_undecided_and_say_what_would_do(n: int) -> None:
    menu = noisy(1.9, n)
    found = fourth(made({"menu": menu, "adapter": menu - 0.5 - noisy(0, n, seed=1)}, smallest=0.1))
    assert found.verdict == "undecided" and found.n == n and "8 are the least" in found.sentence
    assert "8 paired seeds" in found.sentence


def test_an_unclear_contrast_says_how_many_seeds_would_do() -> None:
    menu = noisy(1.9, 8, sd=0.05)
    found = fourth(made({"menu": menu, "adapter": noisy(1.9, 8, seed=4, sd=0.05)}, smallest=0.03))
    assert found.verdict == "undecided"
    assert "paired seeds would find a gain of 0.03 four times out of five" in found.sentence


def test_only_seeds_that_both_have_count() -> None:
    menu, adapter = noisy(1.9, 12), noisy(1.85, 12, seed=1)
    menu[3], adapter[5] = np.nan, np.nan
    assert fourth(made({"menu": menu, "adapter": adapter})).n == 10


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (made({"menu": noisy(1.9), "random_edit": noisy(1.9)}, against="random_edit"),
         "menu is none"),
        (made({"menu": noisy(1.9), "adapter": noisy(np.nan)}), "no complete seed in common"),
        (made({"random_edit": noisy(1.9), "adapter": noisy(1.9)}, against="random_edit"),
         "does not prompt"),
        (made({"menu": noisy(1.9), "cot": noisy(1.8), "adapter": noisy(1.9)}),
         "no pilot chose among"),
    ],
)  # fmt: skip
def test_what_was_not_measured_is_said(results: Results, sentence: str) -> None:
    found = fourth(results)
    assert found.verdict == "not measured" and found.number is None and sentence in found.sentence


def test_the_pilot_chooses_the_rival_and_decides_nothing_else() -> None:
    finals = {"menu": noisy(1.7), "cot": noisy(1.9), "adapter": noisy(1.8, seed=1)}
    pilot = {"menu": [1.9, 1.9], "cot": [1.8, 1.8], "adapter": [1.0, 1.0]}
    results = made(finals, pilot=pilot)
    assert best_prompting(results) == (
        "cot",
        "cot was the best of 2 prompting arms on 2 pilot seeds",
    )
    found = fourth(results)
    assert found.verdict == "no" and "better than cot" in found.sentence, "but menu beats it"
    missing = made(finals, pilot={**pilot, "cot": [np.nan, np.nan]})
    assert best_prompting(missing)[0] == "menu" and "cot not measured" in best_prompting(missing)[1]
    apart = made(finals, pilot={**pilot, "cot": [np.nan, 1.8], "menu": [1.9, np.nan]})
    assert best_prompting(apart)[0] is None and fourth(apart).verdict == "not measured"


def first(results: Results) -> Answer:
    return answers(results, rng())[0]


def test_genuine_improvement() -> None:
    found = first(made({"menu": noisy(1.9), "cot": noisy(2.0, seed=1)}, against="menu"))
    assert found.verdict == "yes" and found.number == pytest.approx(0.1, abs=0.01)
    assert "Holm over 2 arms" in found.test and "in 10 of 10 runs" in found.sentence
    assert "on the way +0.09" in found.sentence


def test_no_improvement_and_drift() -> None:
    nothing = first(made({"menu": [2.0] * 8, "random_edit": [1.5] * 8}, against="random_edit"))
    assert nothing.verdict == "no" and nothing.number == 0
    assert "below the 0.01 that would matter" in nothing.sentence
    drift = first(made({"menu": noisy(2.1), "random_edit": noisy(1)}, against="random_edit"))
    assert drift.verdict == "no" and drift.sentence.startswith("No, it drifts: menu ends worse")


def test_too_few_runs_leave_the_first_question_open() -> None:
    found = first(made({"menu": noisy(1.9, 5), "random_edit": noisy(1, 5)}, against="random_edit"))
    assert found.verdict == "undecided" and found.low is None and "in 5 of 5 runs" in found.sentence
    controls = made({"random_edit": noisy(1.9), "opus": noisy(1.5)}, against="opus")
    assert first(controls).verdict == "not measured"


def second(results: Results) -> Answer:
    return answers(results, rng())[1]


def test_shares_of_the_gap_to_the_frontier() -> None:
    base = noisy(2.0, 12)
    finals = {
        "random_edit": base, "menu": base - 0.2 - noisy(0, 12, 1),
        "cot": base - 0.5 - noisy(0, 12, 2), "opus": base - 1 - noisy(0, 12, 3),
    }  # fmt: skip
    found = second(made(finals, against="menu"))
    assert found.verdict == "yes" and found.number == pytest.approx(0.5, abs=0.02)
    assert found.unit == "share of the gap" and found.sentence.startswith(
        "cot closes 50% of the gap"
    )
    assert "closest is menu" in found.sentence and "The order is settled" in found.sentence
    close = second(made({**finals, "menu": base - 0.49 - noisy(0, 12, 4, 0.05)}, against="menu"))
    assert close.verdict == "undecided" and "not settled" in close.sentence


def test_without_a_gap_or_a_frontier_there_is_no_share() -> None:
    base = noisy(2.0)
    finals = {"random_edit": base, "menu": base - 0.2, "opus": base + noisy(0, 10, 1)}
    none = second(made(finals, against="menu"))
    assert none.verdict == "undecided" and none.sentence.startswith("No gap established")
    worse = second(made({**finals, "opus": base + 0.3}, against="menu"))
    assert worse.verdict == "no" and "opus is worse than random_edit by +0.3" in worse.sentence
    absent = second(made({"random_edit": base, "menu": base - 0.2}, against="menu"))
    assert absent.verdict == "not measured" and absent.number == pytest.approx(0.2)
    assert "is not in the plan" in absent.sentence and "better than random_edit" in absent.sentence
    lost = second(made({**finals, "opus": noisy(np.nan)}, against="menu"))
    assert "was not measured" in lost.sentence and lost.verdict == "not measured"


def test_contrasts_the_primary_one_first_and_the_rest_corrected() -> None:
    base = noisy(2.0)
    results = made(
        {"random_edit": base, "menu": base - noisy(0.05, 10, 1), "cot": noisy(2, 10, 2),
         "adapter": base - noisy(0.1, 10, 3)},
        against="menu",
    )  # fmt: skip
    found = contrasts(results, rng())
    assert [(c.arm, c.against, c.primary) for c in found] == [
        ("adapter", "menu", True), ("adapter", "random_edit", False), ("adapter", "cot", False),
        ("menu", "random_edit", False), ("cot", "random_edit", False),
    ]  # fmt: skip
    assert found[0].p_holm is None and found[3].p_holm == pytest.approx(4 * 2 / 2**10)
    assert all(c.n == 10 and c.p is not None for c in found)
    empty = contrasts(made({"menu": noisy(np.nan), "adapter": base}), rng())
    assert empty[0].n == 0 and empty[0].p is None and empty[0].gain is None


def test_a_win_over_prompting_is_said_beside_the_controls() -> None:
    base = noisy(2.0)
    arms = {"menu": base, "adapter": base - 0.1, "random_edit": base - 0.3,
            "tpe": base - 0.1 + noisy(0, 10, 4)}  # fmt: skip
    answer = questions.adapter(made(arms, against="menu"), rng())
    assert answer.verdict == "yes"
    assert "random_edit ends 0.2000 better" in answer.sentence
    assert "tpe cannot be told from it (p = " in answer.sentence


@pytest.mark.parametrize(
    ("cot", "verdict", "said"),
    [(0.0, "undecided", "cannot be told from it"), (-0.2, "no", "cot ends 0.2000 better"),
     (0.3, "yes", "cot ends 0.3000 worse")],
)  # fmt: skip
def test_a_badly_chosen_rival_is_not_enough(cot: float, verdict: str, said: str) -> None:
    base = noisy(2.0)
    other = base - 0.1 + cot + (noisy(0, 10, 5) if not cot else 0)
    arms = {"menu": base, "adapter": base - 0.1, "cot": other}
    answer = questions.adapter(made(arms, against="menu"), rng())
    assert answer.verdict == verdict and said in answer.sentence
    assert ("not enough to beat prompting" in answer.sentence) == (verdict != "yes")


@pytest.mark.parametrize(
    ("every", "reason", "verdict"),
    [(1, Reason.NO_EDIT, "yes"), (3, Reason.NO_EDIT, "no"), (30, Reason.NO_EDIT, "undecided")],
)
def test_a_failure_mode(tmp_path: Path, every: int, reason: Reason, verdict: str) -> None:
    others = [Reason.INVALID_JSON, Reason.DUPLICATE, Reason.NO_OP]

    def outcome(arm: str, seed: int, number: int, best: float) -> Outcome:
        if every == 30:
            return Scored(bpb(best + 0.1)) if number != 7 else Rejected(reason)
        return Rejected(reason if number % every == 0 else others[number % 3])

    out = plan_folder.write(tmp_path, trials=12, outcome=outcome)
    found = answers(load(out), rng())[2]
    assert found.verdict == verdict, found.sentence
    assert found.n == {1: 72, 3: 72, 30: 6}[every]
    if every == 1:
        assert found.number == 1 and '"no edit" is 100% of 72 failed' in found.sentence


def test_the_global_seed_does_not_matter() -> None:
    results = made({"menu": noisy(1.9, 24), "adapter": noisy(1.89, 24, 1)})
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        found.append((answers(results, rng(3)), contrasts(results, rng(3))))
    assert found[0] == found[1]


REPETITIONS = 1_000


def heavy(generator: np.random.Generator, n: int) -> Floats:
    """Scores whose noise is Student's t with three degrees of freedom, resampled from a record."""
    record = 0.02 * stats.t.rvs(3, size=500, random_state=7)
    return np.asarray(2.0 + generator.choice(record, n))


def calls(n: int, shift: float) -> list[str]:
    """What the fourth answer says of the winner in each repetition; "": nothing."""
    found = []
    for number in range(REPETITIONS):
        generator = rng(number)
        pair = {"menu": heavy(generator, n), "adapter": heavy(generator, n) - shift}
        answer = questions.adapter(made(pair, smallest=10), generator)
        unclear = "no clear difference" in answer.sentence
        found.append("" if unclear else {"yes": "adapter", "no": "menu"}[answer.verdict])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 12])
def test_an_a_a_pair_is_called_at_most_one_time_in_twenty(n: int) -> None:
    wrong = REPETITIONS - calls(n, shift=0.0).count("")
    assert wrong / REPETITIONS <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / REPETITIONS), f"{wrong}"


@pytest.mark.slow
@pytest.mark.parametrize(("n", "shift"), [(8, 0.05), (12, 0.04)])
def test_the_right_winner_is_called_as_often_as_power_says(n: int, shift: float) -> None:
    generator = rng(1)
    gains = heavy(generator, 50_000) - heavy(generator, 50_000)
    promised = power(shift, Spread(float(np.std(gains, ddof=1)), gains, ""), n, rng(2))
    found = calls(n, shift).count("adapter") / REPETITIONS
    error = 2 * np.sqrt(promised * (1 - promised) * (1 / REPETITIONS + 1 / 2000))
    assert 0.3 < promised < 0.99 and found >= promised - error, f"{found} of {promised}"
