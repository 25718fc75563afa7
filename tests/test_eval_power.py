"""How many seeds: the simulation against theory, and where its figures may come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from eval.power import Spread, conclusion, needed, of_results, of_runs, power, table
from eval.results import load
from eval.summary import summarise
from loop.errors import UsageError
from tests import plan_folder
from tests.conftest import Cli


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(sd: float) -> Spread:
    return Spread(sd, np.empty(0), "as given")


@pytest.mark.parametrize(("effect", "n"), [(1.0, 10), (0.5, 30), (0.4, 25)])
def test_with_normal_noise_it_is_close_to_the_t_tests_power(effect: float, n: int) -> None:
    expected = TTestPower().power(effect, n, 0.05)
    assert power(effect, normal(1.0), n, rng()) == pytest.approx(expected, abs=0.05)


def test_five_pairs_never_find_anything() -> None:
    assert power(100.0, normal(1.0), 5, rng()) == 0.0
    assert power(100.0, normal(1.0), 6, rng()) == 1.0


def test_without_an_effect_it_is_half_the_level() -> None:
    assert power(0.0, normal(1.0), 12, rng()) == pytest.approx(0.025, abs=0.01)


def test_only_effect_over_spread_matters() -> None:
    assert power(0.1, normal(0.1), 9, rng()) == power(1.0, normal(1.0), 9, rng())


def test_recorded_differences_are_what_is_drawn_from() -> None:
    gains = np.array([0.0] * 9 + [1.0, -1.0]) + 5
    heavy = Spread(float(np.std(gains, ddof=1)), gains, "")
    sharp = power(0.3, heavy, 8, rng())
    assert sharp > power(0.3, normal(heavy.sd), 8, rng()) + 0.1, "most differences are the effect"


def test_the_table_ends_at_eighty_percent() -> None:
    rows = table(1.0, normal(1.0), rng())
    assert [n for n, _ in rows][:3] == [5, 6, 7] and rows[-1][1] >= 0.8 > rows[-2][1]
    expected = TTestPower().solve_power(1.0, power=0.8, alpha=0.05)
    assert rows[-1][0] == pytest.approx(expected, abs=2)
    assert needed(1.0, 1.0, rng()) == rows[-1][0]
    assert conclusion(rows, 200).startswith(f"{rows[-1][0]} paired seeds find it")
    assert needed(0.01, 1.0, rng(), most=12) is None
    assert "larger effect" in conclusion(table(0.01, normal(1.0), rng(), 12), 12)


def test_the_global_seed_does_not_matter() -> None:
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        found.append(power(0.5, normal(1.0), 20, rng(4)))
    assert found[0] == found[1]


def test_the_spread_of_a_plans_pairs(tmp_path: Path) -> None:
    results = load(plan_folder.write(tmp_path, seeds=4))
    found = of_results(results)
    gains = results.gains("adapter", "menu")
    assert found.sd == pytest.approx(np.std(gains, ddof=1)) and "4 pairs of adapter" in found.said
    with pytest.raises(UsageError, match="2 pairs of adapter and menu tell no spread"):
        of_results(load(plan_folder.write(tmp_path / "few", seeds=2)))


def test_the_spread_of_pilot_runs(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path, seeds=4)
    menu, control = (
        [summarise(out / "runs" / arm / str(seed)) for seed in range(4)]
        for arm in ("menu", "random_edit")
    )
    gains = np.array([s.gain for s in menu]), np.array([s.gain for s in control])
    paired = of_runs([*menu, *control], "best")
    assert paired.sd == pytest.approx(np.std(gains[0] - gains[1], ddof=1))
    alone = of_runs(menu, "best")
    assert alone.sd == pytest.approx(np.std(gains[0], ddof=1) * np.sqrt(2))
    assert "times the root of 2" in alone.said
    assert of_runs(menu, "final").sd == pytest.approx(alone.sd), "the writer's final is the same"
    with pytest.raises(UsageError, match="2 runs of one arm"):
        of_runs(menu[:2], "best")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "give --sd, or folders"),
        (("--sd", 1), "--sd needs --effect"),
        (("--sd", -1, "--effect", 1), "write a number above 0"),
        (("--sd", 1, "--effect", 1, "runs"), "not both"),
        (("gone",), "gone is not a run"),
    ],
)
def test_bad_input_is_one_clear_line(run_cli: Cli, args: tuple[Any, ...], said: str) -> None:
    done = run_cli("power", *args)
    assert done.returncode in (1, 2) and said in done.stderr and done.stderr.count("\n") == 1


def test_the_verb(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("power", "--sd", 0.02, "--effect", 0.02)
    assert done.returncode == 0, done.stderr
    assert "paired seeds find it four times out of five" in done.stdout
    out = plan_folder.write(tmp_path, seeds=4)
    done = run_cli("power", out, "--effect", 0.02, "--most", 8)
    assert done.returncode == 0 and "4 pairs of adapter and menu in the plan" in done.stdout
