"""`doctor RUN`: each silent failure is named with its trials, and a sound run has none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loop.autopsy import examine
from loop.errors import LedgerError
from loop.ledger import Ledger
from loop.trial import (
    Call,
    Context,
    Invalid,
    Measurement,
    Message,
    Metric,
    Outcome,
    Reason,
    Rejected,
    Reply,
    Scored,
    Trial,
)
from tests.conftest import Cli, a_trial


def bpb(value: float) -> Metric:
    return Metric("val_bpb", value)


def trials(count: int = 8) -> list[Trial]:
    """A sound run: no two replies and no two scores alike."""
    found = []
    for number in range(count):
        trial = a_trial(number, Scored(bpb(2 - number / 100), {"total_seconds": 10.0}))
        proposal = replace(trial.proposal, answer=f"LR = {number}", calls=(call(),))
        context = replace(trial.context, incumbent_metric=bpb(2.01 - number / 100))
        found.append(replace(trial, proposal=proposal, context=context))
    return found


def call(tokens: int = 100, seconds: float = 1.0) -> Call:
    reply = Reply("LR = 0.2", prompt_tokens=tokens, completion_tokens=10, seconds=seconds)
    return Call((Message("user", ("x" * 400,)),), (reply,), 0.7, 512, 1)


def outcome(found: Outcome) -> Callable[[Trial], Trial]:
    return lambda trial: replace(trial, outcome=found)


def asked(**how: float) -> Callable[[Trial], Trial]:
    return lambda trial: replace(
        trial,
        proposal=replace(trial.proposal, calls=(call(**how),)),  # type: ignore[arg-type]
    )


def omitted(trial: Trial) -> Trial:
    context: Context = replace(trial.context, omitted=("the history of trials 1 to 3",))
    return replace(trial, context=context)


CHANGES: dict[str, Callable[[Trial], Trial]] = {
    "omitted": omitted,
    "truncated": asked(tokens=5),
    "evicted": asked(seconds=60.0),
    "invalid_json": outcome(Rejected(Reason.INVALID_JSON)),
    "no_op": outcome(Rejected(Reason.NO_OP)),
    "duplicate": outcome(Rejected(Reason.DUPLICATE)),
    "seed_only": outcome(Rejected(Reason.SEED_ONLY)),
    "cut_short": outcome(Rejected(Reason.CUT_SHORT)),
    "same reply": lambda trial: replace(trial, proposal=replace(trial.proposal, answer="LR = 1")),
    "too good": outcome(Scored(bpb(0.5))),
    "slow": outcome(Scored(bpb(1.9567), {"total_seconds": 99.0})),
    "failed the audit": outcome(Invalid(bpb(1.0), Reason.AUDIT_MISMATCH)),
}


def write(folder: Path, records: list[Trial | Measurement]) -> Path:
    with Ledger(folder) as ledger:
        for record in records:
            ledger.append(record)
    return folder


def test_a_sound_run_has_no_symptom(tmp_path: Path) -> None:
    assert examine(write(tmp_path / "r", [*trials()])) == []


@pytest.mark.parametrize("name", CHANGES)
def test_a_symptom_is_named_with_its_trial(name: str, tmp_path: Path) -> None:
    run = trials()
    run[5] = CHANGES[name](run[5])
    assert [(s.name, s.trials) for s in examine(write(tmp_path / "r", [*run]))] == [(name, (5,))]


def test_equal_scores_are_named_together(tmp_path: Path) -> None:
    run = trials()
    run[5] = replace(run[5], outcome=run[3].outcome)
    assert [(s.name, s.trials) for s in examine(write(tmp_path / "r", [*run]))] == [
        ("identical", (3, 5))
    ]


def test_code_that_does_not_take_its_seed_is_named(tmp_path: Path) -> None:
    same = [Measurement(3, "replicate", seed, "t", 1.0, Scored(bpb(1.9))) for seed in (1, 2)]
    other = Measurement(0, "replicate", 1, "t", 1.0, Scored(bpb(2.0)))
    found = examine(write(tmp_path / "r", [*trials(), *same, other]))
    assert [(s.name, s.trials) for s in found] == [("pinned seed", (3,))]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="name the folder of a run"):
        examine(tmp_path)


def test_the_command_says_it(tmp_path: Path, run_cli: Cli) -> None:
    run = trials()
    run[5] = CHANGES["no_op"](run[5])
    done = run_cli("doctor", write(tmp_path / "r", [*run]))
    assert done.returncode == 0, done.stderr
    assert "no_op" in done.stdout and "trials 5" in done.stdout
    missing = run_cli("doctor", tmp_path / "none")
    assert missing.returncode == 1 and len(missing.stderr.splitlines()) == 1
