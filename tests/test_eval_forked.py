"""Experiments by fork: the digits of the box, measured once, knobs only."""

import shutil
from pathlib import Path

import pytest

from eval.forked import Forked, Store
from loop import knobs, target
from loop.budget import Budget
from loop.errors import AutoresearchError
from loop.experiment import Limits, Runner
from loop.sandbox import open_box, working_bwrap
from loop.start import set_up
from loop.target import BUILT_IN
from loop.trial import Crashed, Outcome, Scored

TINY = Budget(2e9, "flops")
SOURCE = (BUILT_IN / "train.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found() -> target.Target:
    found = target.load(BUILT_IN, "cpu", "kjv")
    set_up(found, BUILT_IN)
    return found


def folder_of(source: str, tmp_path: Path) -> Path:
    folder = tmp_path / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BUILT_IN, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "train.py").write_text(source, encoding="utf-8")
    return folder


def measure(runner: Forked | Runner, source: str, tmp_path: Path, seed: int = 3) -> Outcome:
    env = runner.target.environment(TINY, seed)
    return runner.run(folder_of(source, tmp_path), env, tmp_path / "a.log")[0]


@pytest.mark.slow
def test_the_fork_scores_as_the_box_does(found: target.Target, tmp_path: Path) -> None:
    box = open_box("auto" if working_bwrap() else "none")
    runner = Forked(found, SOURCE, Store(tmp_path / "store.db"))
    deeper = knobs.write(SOURCE, {"DEPTH": "3", "WINDOW_PATTERN": "'L'"})
    for source in (SOURCE, deeper):
        by_fork = measure(runner, source, tmp_path)
        by_box = measure(Runner(found, box, Limits(120)), source, tmp_path)
        assert isinstance(by_fork, Scored) and isinstance(by_box, Scored)
        assert by_fork.metric == by_box.metric
        assert by_fork.measurements["flops"] == by_box.measurements["flops"]
    runner.close()


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(found: target.Target, tmp_path: Path) -> None:
    first = Forked(found, SOURCE, Store(tmp_path / "store.db"))
    outcome = measure(first, SOURCE, tmp_path)
    other_seed = measure(first, SOURCE, tmp_path, seed=4)
    first.close()
    assert outcome != other_seed

    second = Forked(found, SOURCE, Store(tmp_path / "store.db"))
    second.close()  # it has no process, and needs none
    folder = folder_of(SOURCE, tmp_path)
    (folder / "run.py").unlink()  # nothing could be run here
    again, _ = second.run(folder, found.environment(TINY, 3), tmp_path / "b.log")
    assert again == outcome
    assert not (tmp_path / "b.log").exists()


@pytest.mark.slow
def test_a_crash_is_an_outcome_and_the_next_experiment_runs(
    found: target.Target, tmp_path: Path
) -> None:
    runner = Forked(found, SOURCE, Store(tmp_path / "store.db"))
    crashed = measure(runner, knobs.write(SOURCE, {"SHORT_WINDOW": "100"}), tmp_path)
    assert isinstance(crashed, Crashed) and "SHORT_WINDOW must divide 256" in crashed.tail
    assert isinstance(measure(runner, SOURCE, tmp_path), Scored)
    runner.close()


@pytest.mark.parametrize("edit", ["import os\n", "def norm(x):\n    return x\n"])
def test_more_than_a_knob_is_refused(found: target.Target, tmp_path: Path, edit: str) -> None:
    runner = Forked(found, SOURCE, Store(tmp_path / "store.db"))
    with pytest.raises(AutoresearchError, match=r"train\.py was changed beyond its knobs"):
        measure(runner, SOURCE + edit, tmp_path)
    with pytest.raises(AutoresearchError, match="beyond its knobs"):
        measure(runner, SOURCE.replace("DEPTH = 2", "DEPTH = __import__('os').getpid()"), tmp_path)
