"""The recorded proposals replay as they were, and the reference loop does what it is said to do."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import recording
from benchmarks.harness import new_values, write_target
from benchmarks.reference_loop import ReferenceLoop, process
from benchmarks.stream import NAMES, plain, through_ours
from loop import brains
from loop.trial import Rejected, Scored
from tests.conftest import git

Script = Callable[..., Path]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_replays_turn_by_turn(name: str, tmp_path: Path) -> None:
    told = recording.read(name)
    found = through_ours(told, tmp_path / "ours")
    ran = [turn for turn in told.turns[1:] if not isinstance(turn.outcome, Rejected)]
    scored = [turn for turn in ran if isinstance(turn.outcome, Scored)]
    assert found == {"runs": len(ran), "useful": len(scored)}


def test_the_move_is_read_out_of_a_menus_json() -> None:
    assert plain('{"reason": "r", "move": "LR = 1"}') == "LR = 1"
    assert plain("LR = 1") == "LR = 1" and plain("[1]") == "[1]"


def test_the_reference_loop_commits_runs_and_resets(tmp_path: Path, scripted: Script) -> None:
    folder = write_target(tmp_path / "program")
    brain = brains.connect(f"scripted:{scripted('LR = 0.7', 'LR = 0.2', 'hello')}")
    loop = ReferenceLoop(folder, brain, process([sys.executable, "train.py"]))
    assert [loop.turn() for _ in range(3)] == [1.701, 1.201, None]
    assert (loop.best, loop.runs) == (1.201, 3)
    assert git(folder, "log", "--format=%s").split("\n")[:2] == ["LR = 0.2", "as found"]
    assert "LR = 0.2\n" in (folder / "train.py").read_text()
    rows = loop.results.read_text().splitlines()
    assert [row.split("\t")[3] for row in rows] == ["status", "discard", "keep"]


def test_an_impatient_reference_loop_runs_what_it_cannot_read(
    tmp_path: Path, scripted: Script
) -> None:
    folder = write_target(tmp_path / "program")
    brain = brains.connect(f"scripted:{scripted('hello')}")
    loop = ReferenceLoop(folder, brain, process([sys.executable, "train.py"]), patient=False)
    assert (loop.turn(), loop.runs) == (1.501, 2)


def test_the_scripted_edits_are_all_new() -> None:
    assert len(set(new_values(500))) == 500
