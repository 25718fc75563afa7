"""The optimiser of `tpe` and `hybrid`: a function of the ledger, open to Optuna's own tools."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loop import ledger, optimiser
from loop.trial import Scored
from tests.conftest import TRAIN, Cli

optuna = pytest.importorskip("optuna")
Script = Callable[..., Path]


def a_run(run_cli: Cli, toy: Path, out: Path, *more: object) -> None:
    done = run_cli("run", "--judge", "naive", "--final-seeds", 0, "--sandbox", "none",
                   "--target", toy, "--out", out, *more)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_tpe_learns_and_its_study_opens_in_optuna(run_cli: Cli, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "tpe"
    a_run(run_cli, toy, out, "--strategy", "tpe", "--trials", 25)
    trials = [t for t in ledger.trials(out) if isinstance(t.outcome, Scored)]
    study = optuna.load_study(study_name="tpe", storage=f"sqlite:///{out / 'optuna.db'}")
    complete = [t for t in study.trials if t.state.is_finished() and t.value is not None]
    assert [t.user_attrs["trial"] for t in complete] == [t.id for t in trials]
    assert [t.value for t in complete] == [t.outcome.metric.value for t in trials
                                           if isinstance(t.outcome, Scored)]  # fmt: skip
    assert min(t.value for t in complete) < trials[0].outcome.metric.value - 0.2  # type: ignore[union-attr]
    told = complete[-1].user_attrs["values"]
    assert told == {k: repr(v) for k, v in optimiser.configuration(trials[-1]).items()}


def test_a_resumed_run_proposes_what_the_uninterrupted_one_does(
    run_cli: Cli, toy: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "a" / "run", tmp_path / "b" / "run"
    a_run(run_cli, toy, whole, "--strategy", "tpe", "--trials", 14)
    a_run(run_cli, toy, parts, "--strategy", "tpe", "--trials", 9)
    a_run(run_cli, toy, parts, "--resume", "--trials", 14)
    answers = [[t.proposal.answer for t in ledger.trials(out)] for out in (whole, parts)]
    assert answers[0] == answers[1]


def test_a_crash_is_pruned_so_that_the_optimiser_keeps_away(
    run_cli: Cli, toy: Path, tmp_path: Path
) -> None:
    (toy / "train.py").write_text(TRAIN.replace("def loss():", "assert WIDTH <= 8\n\ndef loss():"))
    out = tmp_path / "crash"
    a_run(run_cli, toy, out, "--strategy", "tpe", "--trials", 8)
    states = [t.state.name for t in optuna.load_study(
        study_name="crash", storage=f"sqlite:///{out / 'optuna.db'}").trials]  # fmt: skip
    ran = [t for t in ledger.trials(out) if type(t.outcome).__name__ != "Rejected"]
    wanted = ["COMPLETE" if isinstance(t.outcome, Scored) else "PRUNED" for t in ran]
    assert states == wanted and "PRUNED" in states


def test_hybrid_asks_its_brain_on_its_share_and_the_optimiser_learns_from_all(
    run_cli: Cli, toy: Path, tmp_path: Path, scripted: Script
) -> None:
    reply = json.dumps({"reason": "wide is good", "settings": {"WIDTH": 32}})
    out = tmp_path / "hybrid"
    a_run(run_cli, toy, out, "--strategy", "hybrid", "--brain", f"scripted:{scripted(reply)}",
          "--share", 0.5, "--trials", 20)  # fmt: skip
    trials = ledger.trials(out)[1:]
    by = [t.proposal.notes["by"] for t in trials]
    assert {"tpe", "brain"} == set(by) and 4 <= by.count("brain") <= 16
    for trial in trials:
        asked = trial.proposal.notes["by"] == "brain"
        assert bool(trial.proposal.calls) is asked
        if asked and trial.proposal.edit:
            assert optimiser.configuration(trial)["WIDTH"] == 32
    shown = next(t for t in reversed(trials) if t.proposal.calls).proposal.calls[0].messages[-1]
    assert "Best trials so far" in shown.content and "The optimiser proposes" in shown.content
    study = optuna.load_study(study_name="hybrid", storage=f"sqlite:///{out / 'optuna.db'}")
    ran = [t.id for t in trials if type(t.outcome).__name__ != "Rejected"]
    assert [t.user_attrs["trial"] for t in study.trials] == [0, *ran]


@pytest.mark.parametrize(
    "reply", ['{"reason": "x", "settings": {"WIDTH": 33}}', '{"settings": {}}', "WIDTH = 4"]
)
def test_hybrid_validates_what_its_brain_says(
    reply: str, run_cli: Cli, toy: Path, tmp_path: Path, scripted: Script
) -> None:
    out = tmp_path / "r"
    a_run(run_cli, toy, out, "--strategy", "hybrid", "--brain", f"scripted:{scripted(reply)}",
          "--share", 1.0, "--trials", 1)  # fmt: skip
    outcome = ledger.trials(out)[1].outcome
    assert getattr(outcome, "reason", None) == "invalid_json"
