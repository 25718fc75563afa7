"""The recorded proposals replay as they were, and the reference loop does what it is said to do."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import recording
from benchmarks.harness import new_values, write_target
from benchmarks.reference_loop import ReferenceLoop, process
from benchmarks.scores import Scores, recorded
from benchmarks.stream import NAMES, UNSEEN, better, plain, through_ours
from loop import brains
from loop.trial import Rejected, Scored
from tests.conftest import git

Script = Callable[..., Path]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_replays_turn_by_turn(name: str, tmp_path: Path) -> None:
    told = recording.read(name)
    found = through_ours(told, recorded(told, name), tmp_path / "ours")
    ran = [turn for turn in told.turns[1:] if not isinstance(turn.outcome, Rejected)]
    scored = [turn for turn in ran if isinstance(turn.outcome, Scored)]
    assert (found.runs, found.useful) == (len(ran), len(scored))
    assert len(found.keeps) == sum(turn.verdict == "keep" for turn in told.turns)


def test_a_keep_is_confirmed_by_what_no_loop_saw() -> None:
    noise = dict(zip(map(str, UNSEEN), (0.0, 0.02, -0.02, 0.01, -0.01, 0.0), strict=True))
    table = {
        code: {seed: level + scale * n for seed, n in noise.items()}
        for code, level, scale in (("old", 1.0, 1), ("new", 0.9, 2), ("same", 1.001, -1))
    }
    scores = Scores(table)
    assert better("new", "old", scores) and not better("same", "old", scores)
    assert scores.lacks == 0 and not better("unknown", "old", scores) and scores.lacks == 6


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
