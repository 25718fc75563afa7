"""Figures are ratios taken in turn; a goal that is missed says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import page
from benchmarks.measure import Cost, Figure, alternate, cost, growth, of, ratio
from loop.errors import UsageError
from tests.conftest import ROOT, outside


def test_sides_take_turns() -> None:
    turns: list[str] = []
    found = alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(costs) for name, costs in found.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_round_by_round_and_per_piece_of_work() -> None:
    ours = [Cost(4.0, 1.0), Cost(8.0, 3.0), Cost(40.0, 2.0)]
    theirs = [Cost(1.0, 1.0), Cost(2.0, 1.0), Cost(5.0, 1.0)]
    figure = ratio("x", ours, theirs, ("<=", 2.0), units=(4, 2))
    assert (figure.median, figure.low, figure.high, figure.n) == (2.0, 2.0, 3.0, 3)
    assert (figure.processor, figure.met) == (1.0, True)
    assert figure.note == "2 s against 1 s"


def test_growth_is_the_exponent_of_time_by_size() -> None:
    costs = {size: [Cost(size**1.5, float(size))] * 2 for size in (10, 100, 1000)}
    figure = growth("x", costs, ("<=", 1.1))
    assert figure.median == pytest.approx(1.5) and figure.met is False
    assert figure.processor == pytest.approx(1.0)


def test_a_process_that_lives_on_tells_its_own_cost() -> None:
    assert cost(lambda: Cost(7.0, 3.0)) == Cost(7.0, 3.0)


@pytest.mark.parametrize(("goal", "met"), [(("<=", 1.0), False), ((">=", 1.0), True), (None, None)])
def test_a_goal_is_met_or_missed(goal: object, met: bool | None) -> None:
    assert of("x", [2.0], "x", goal).met is met  # type: ignore[arg-type]


def test_the_processor_seconds_of_children_count() -> None:
    busy = "sum(range(3_000_000))"
    spent = cost(lambda: subprocess.run([sys.executable, "-c", busy], check=True))
    idle = cost(lambda: subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"],
                                       check=True))  # fmt: skip
    assert spent.processor > 0.01
    assert idle.seconds > 0.2 > idle.processor


def test_the_table_names_what_was_missed() -> None:
    figure = Figure("a / b", 5, 2.0, 1.9, 2.1, goal=("<=", 1.5))
    assert bench.cells(figure) == ("2", "1.9 to 2.1", "", "5", "<= 1.5, missed")


def test_the_table_is_put_between_the_marks_of_a_page(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Page\n<!-- bench -->\nold\n<!-- /bench -->\nend\n")
    found = {"trial": [Figure("a / b", 5, 2.0, 1.9, 2.1, goal=("<=", 1.5), note="1 s | 2 s")]}
    about = bench.machine() | {"load_after": 1.0}
    page.insert(path, "bench", page.markdown(about, found, {"brain": "no model"}, bench.cells))
    text = path.read_text()
    assert text.startswith("# Page\n<!-- bench -->\n") and text.endswith("<!-- /bench -->\nend\n")
    assert "| trial: a / b | 2 | 1.9 to 2.1 |  | 5 | <= 1.5, missed | 1 s / 2 s |" in text
    assert "Not measured: brain: no model" in text and "old" not in text
    with pytest.raises(UsageError, match="bench-full"):
        page.insert(path, "bench-full", "")


@pytest.mark.parametrize(("flags", "said"), [(["--only", "nope"], "unknown benchmark 'nope'")])
def test_an_unknown_benchmark_lists_those_there_are(flags: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bench.run(flags)


def test_every_benchmark_that_is_named_is_there() -> None:
    from importlib import import_module

    for name in bench.NAMES:
        assert callable(import_module(f"benchmarks.{name}").run), name
        assert import_module(f"benchmarks.{name}").__doc__, name


@pytest.mark.slow
def test_a_subset_as_a_table_and_as_json(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--only", "overhead,reading", "--rounds", "2"]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True,
                          env=outside(), timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a trial / the reference loop's" in done.stdout
    body = json.loads(out.read_text())
    assert list(body["figures"]) == ["overhead", "reading"]
    assert all(figure["n"] == 2 for figure in body["figures"]["overhead"])
    assert body["machine"]["cores"] > 0 and body["not_measured"] == {}
