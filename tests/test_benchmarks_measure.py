"""Figures are ratios taken in turn; a goal that is missed says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.measure import Cost, Figure, alternate, cost, of, ratio
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
