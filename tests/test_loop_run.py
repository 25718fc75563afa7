"""The loop as a process: what it leaves behind, how it fails safe, and how it can be stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from loop import ledger
from loop.position import Position
from loop.trial import (
    Crashed,
    Event,
    Measurement,
    Outcome,
    Reason,
    Record,
    Rejected,
    Scored,
    TimedOut,
    Trial,
)
from tests.conftest import PLAIN, TRAIN, Cli, a_trial, git, outside

Script = Callable[..., Path]


def brain(script: Path) -> tuple[str, ...]:
    return "--brain", f"scripted:{script}", "--strategy", "bare"


def ok(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def comparable(records: list[Record]) -> list[object]:
    """What two runs that are the same must agree on: all but clocks, and names of the run."""
    return [
        (
            r.id, r.parent, r.context, r.proposal.answer, r.proposal.edit, r.proposal.description,
            [(c.messages, c.seed, [reply.text for reply in c.replies]) for c in r.proposal.calls],
            r.outcome, r.decision,
        )
        if isinstance(r, Trial)
        else (type(r).__name__, r.outcome if isinstance(r, Measurement) else r)
        for r in records
    ]  # fmt: skip


# --- what a run leaves -------------------------------------------------------------------------


def test_baseline_and_three_trials(
    toy: Path, tmp_path: Path, scripted: Script, run_cli: Cli
) -> None:
    script = scripted("LR = 0.2", "WIDTH = 4", "no edit in here", "nor in here")
    out = tmp_path / "r"
    done = run_cli("run", *brain(script), "--trials", 3, "--target", toy, "--judge", "naive",
                   "--sandbox", "none", "--out", out)  # fmt: skip
    said = ok(done)
    assert "no target.toml: train.py is edited" in said and "no sandbox" in said

    trials = ledger.trials(out)
    assert [t.decision.verdict for t in trials] == ["baseline", "keep", "discard", "discard"]
    assert [type(t.outcome).__name__ for t in trials] == ["Scored", "Scored", "Scored", "Rejected"]
    assert [t.parent for t in trials] == [None, 0, 1, 1]
    assert trials[3].outcome == Rejected(Reason.NO_EDIT, "no edit was found in the reply")
    assert [c.replies[0].text for c in trials[3].proposal.calls] == [
        "no edit in here", "nor in here",
    ], "a reply that cannot be parsed is recorded too"  # fmt: skip

    rows = [line.split("\t") for line in (out / "results.tsv").read_text().splitlines()]
    assert [row[3] for row in rows] == ["status", "keep", "keep", "discard", "crash"]
    assert {len(row) for row in rows} == {5}
    assert "WIDTH: 8 -> 4" in said and (out / "logs" / "1.log").read_text().startswith("---")
    assert not list((out / "scratch").iterdir())


def test_every_diff_is_resolvable(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    out = tmp_path / "r"
    script = scripted("LR = 0.2", "WIDTH = 4", "LR = 9.0")
    ok(run_loop(*brain(script), "--trials", 3, "--target", toy, "--out", out))
    work, trials = out / "work", ledger.trials(out)
    git(work, "gc", "-q", "--prune=now")
    for trial in trials:
        assert git(work, "rev-parse", f"refs/trials/{trial.id}").strip() == trial.commit
    for trial in trials[1:]:
        assert trial.proposal.edit is not None and trial.parent is not None
        shown = git(work, "diff", f"refs/trials/{trial.parent}", f"refs/trials/{trial.id}")
        body = shown.partition("--- a/train.py")[2]
        assert body and trial.proposal.edit.diff.partition("--- a/train.py")[2] == body
    assert git(work, "rev-parse", "refs/heads/autoresearch/r").strip() == trials[1].commit
    assert "LR = 0.2\n" in (work / "train.py").read_text()
    assert git(work, "status", "--porcelain") == ""
    assert (toy / "train.py").read_text() == TRAIN


def test_what_a_model_writes_reaches_neither_git_nor_the_terminal_raw(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    block = "<<<<<<< SEARCH\n    return 1.0 +\n=======\n    return 0.9 +\n>>>>>>> REPLACE"
    block = block.replace("+", "+ abs(LR - 0.4) + abs(WIDTH - 32) / 100")
    out, evil = tmp_path / "r", f"\x1b[31m\x00\ud800 [/bold] \u202e look\n\n{block}"
    said = ok(run_loop(*brain(scripted(evil)), "--trials", 1, "--target", toy, "--out", out))
    trial = ledger.trials(out)[1]
    assert trial.proposal.answer == evil and isinstance(trial.outcome, Scored)
    assert trial.proposal.description == "[31m [/bold] look"
    assert "\x1b" not in said and "[/bold] look" in said


def test_windows_line_ends_stay(toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli) -> None:
    (toy / "train.py").write_bytes(TRAIN.replace("\n", "\r\n").encode())
    script = scripted("<<<<<<< SEARCH\nLR = 0.1\n=======\nLR = 0.2\n>>>>>>> REPLACE")
    ok(run_loop(*brain(script), "--trials", 1, "--target", toy, "--out", tmp_path / "r"))
    after = (tmp_path / "r" / "work" / "train.py").read_bytes()
    assert after == TRAIN.replace("LR = 0.1", "LR = 0.2").replace("\n", "\r\n").encode()


def test_a_seed_repeats_a_run_and_another_seed_does_not(
    toy: Path, tmp_path: Path, run_loop: Cli
) -> None:
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        common = ("--strategy", "random_edit", "--trials", 4, "--target", toy)
        ok(run_loop(*common, "--seed", seed, "--out", tmp_path / name))
        runs[name] = comparable(list(ledger.read(tmp_path / name)))
    assert runs["a"] == runs["b"] != runs["c"]


def test_a_menu_that_is_used_up_ends_the_run(toy: Path, tmp_path: Path, run_loop: Cli) -> None:
    (toy / "train.py").write_text("LR = 1.0\nprint('val_bpb:', 1.0 + abs(LR - 1))\n")
    ok(run_loop("--strategy", "random_edit", "--target", toy, "--out", tmp_path / "r"))
    last = ledger.trials(tmp_path / "r")
    assert [type(t.outcome).__name__ for t in last] == ["Scored", "Scored", "Scored", "Rejected"]
    assert isinstance(last[-1].outcome, Rejected)
    assert last[-1].outcome.reason is Reason.NOTHING_LEFT


def test_code_that_was_proposed_before_is_not_run_again(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    out, script = tmp_path / "r", scripted("LR = 0.05", "LR = 0.050", "LR = 0.05  # again")
    ok(run_loop(*brain(script), "--trials", 2, "--target", toy, "--out", out))
    outcome = ledger.trials(out)[2].outcome
    assert outcome == Rejected(Reason.DUPLICATE, "the same code as trial 1")


def test_a_training_seed_that_is_a_knob_is_set_in_the_copy_that_runs(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    (toy / "train.py").write_text("SEED = 0\nLR = 1.0\nprint('val_bpb:', SEED + LR)\n")
    (toy / "target.toml").write_text(
        'editable = "train.py"\ncommand = ["{python}", "train.py"]\nseed = "knob:SEED"\n'
        '[metric]\nname = "val_bpb"\n'
    )
    script = scripted("SEED = 5", "LR = 0.5")
    out = tmp_path / "r"
    ok(run_loop(*brain(script), "--trials", 1, "--seed", 7, "--target", toy, "--out", out))
    values = [t.outcome.metric.value for t in ledger.trials(out) if isinstance(t.outcome, Scored)]
    assert values == [8.0, 7.5]
    assert (out / "work" / "train.py").read_text().startswith("SEED = 0\nLR = 0.5\n")
    first = ledger.trials(out)[1].proposal
    assert first.notes.get("repaired") == Reason.SEED_ONLY


# --- failing safe ------------------------------------------------------------------------------

FRAGILE = """\
import pathlib
LR = 0.1
WIDTH = 8
CRASH = 0
broken = pathlib.Path({broken!r})
if CRASH:
    {on_crash}
    raise SystemExit("crash")
if broken.exists() and LR > 0.15:
    raise SystemExit("it ran once")
print("val_bpb:", 1 - LR - WIDTH / 1000)
"""
REPLIES = ("LR = 0.2", "CRASH = 1", "CRASH = 2", "CRASH = 3", "WIDTH = 16")


def fragile(toy: Path, breaks: bool) -> Path:
    """A target whose kept code stops running once a crash has left its mark outside."""
    on_crash = "broken.touch()" if breaks else "pass"
    broken = str(toy.parent / "broken")
    (toy / "train.py").write_text(FRAGILE.format(broken=broken, on_crash=on_crash))
    return toy


def failsafe(
    toy: Path, out: Path, script: Path, run_loop: Cli, *more: str
) -> tuple[list[Measurement], list[Event], Trial]:
    ok(run_loop(*brain(script), "--trials", 5, "--target", toy, "--out", out, *more))
    records = list(ledger.read(out))
    trials = [r for r in records if isinstance(r, Trial)]
    assert [type(t.outcome).__name__ for t in trials[1:5]] == ["Scored"] + ["Crashed"] * 3
    measured = [r for r in records if isinstance(r, Measurement) and r.purpose == "failsafe"]
    return measured, [r for r in records if isinstance(r, Event)], trials[5]


def test_an_incumbent_that_no_longer_runs_is_left_for_the_last_that_does(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    out = tmp_path / "r"
    measured, events, last = failsafe(fragile(toy, True), out, scripted(*REPLIES), run_loop)
    assert [(m.trial, m.purpose, type(m.outcome)) for m in measured] == [
        (1, "failsafe", Crashed), (0, "failsafe", Scored),
    ]  # fmt: skip
    assert [(e.name, e.data["to"]) for e in events] == [("revert", 0)]
    assert last.parent == 0 and last.decision.verdict == "keep"
    assert "LR = 0.1\nWIDTH = 16\n" in (out / "work" / "train.py").read_text()
    assert git(out / "work", "rev-parse", "refs/trials/1"), "what was left stays resolvable"


def test_an_incumbent_that_still_runs_stays(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    measured, events, last = failsafe(
        fragile(toy, False), tmp_path / "r", scripted(*REPLIES), run_loop
    )
    assert [(m.trial, type(m.outcome)) for m in measured] == [(1, Scored)]
    assert [e.name for e in events] == ["incumbent_runs"]
    assert last.parent == 1


def test_failsafe_baseline_goes_back_without_asking(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    more = ("--failsafe", "baseline")
    measured, events, last = failsafe(
        fragile(toy, False), tmp_path / "r", scripted(*REPLIES), run_loop, *more
    )
    assert measured == [] and [(e.name, e.data["to"]) for e in events] == [("revert", 0)]
    assert last.parent == 0


def test_when_nothing_runs_any_more_it_says_so(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    fragile(toy, True)
    text = (toy / "train.py").read_text().replace(" and LR > 0.15", "")
    (toy / "train.py").write_text(text)
    script = scripted(*REPLIES)
    done = run_loop(*brain(script), "--trials", 5, "--target", toy, "--out", tmp_path / "r")
    assert done.returncode == 1
    assert "not even the baseline runs" in done.stderr and done.stderr.count("\n") == 1


def test_a_rejected_proposal_is_no_crash_and_no_score_either() -> None:
    position = Position()
    crash = Crashed("train", Reason.EXCEPTION)
    outcomes: tuple[Outcome, ...] = (
        crash,
        Rejected(Reason.NO_EDIT),
        TimedOut(3.0),
        Rejected(Reason.NO_EDIT),
        crash,
    )
    position.add(a_trial(0))
    counts = []
    for number, outcome in enumerate(outcomes, 1):
        position.add(a_trial(number, outcome))
        counts.append(position.crashes)
    assert counts == [1, 1, 2, 2, 3]
    position.add(a_trial(6))
    assert position.crashes == 0


def test_a_position_follows_keeps_and_reverts() -> None:
    position = Position()
    for number, verdict in enumerate(("baseline", "keep", "discard", "keep")):
        position.add(a_trial(number, verdict=verdict))
    assert position.kept == [0, 1, 3] and position.incumbent.id == 3
    position.add(Event("revert", "now", {"to": 1}))
    assert position.kept == [0, 1] and position.next_id == 4
    position.add(replace(a_trial(9), parent=1))
    assert position.next_id == 10, "a repaired ledger may have gaps"


# --- stopping and going on ---------------------------------------------------------------------

SLOW = TRAIN.replace(
    'print("---")',
    "import os, pathlib, time\n"
    "pathlib.Path(PIDS, str(os.getpid())).touch()\n"
    'time.sleep(0.5)\nprint("---")',
)


def start(*args: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "loop", *PLAIN, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outside(),
        start_new_session=True,
    )  # fmt: skip


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def in_flight(out: Path, pids: Path, trial: int) -> Callable[[], bool]:
    """Is the process of that trial running?"""
    return lambda: (out / "scratch" / str(trial)).exists() and len(list(pids.iterdir())) > trial


def alive(pids: Path) -> list[str]:
    return [p.name for p in pids.iterdir() if psutil.pid_exists(int(p.name))]


@pytest.fixture
def pids(toy: Path, tmp_path: Path) -> Path:
    """The toy takes a second a trial, and leaves the ids of its processes in this folder."""
    folder = tmp_path / "pids"
    folder.mkdir()
    (toy / "train.py").write_text(SLOW.replace("PIDS", repr(str(folder))))
    return folder


def test_ctrl_c_once_finishes_the_trial_in_flight(
    toy: Path, tmp_path: Path, pids: Path, run_loop: Cli
) -> None:
    out = tmp_path / "r"
    with start("--strategy", "random_edit", "--target", toy, "--out", out) as process:
        until(in_flight(out, pids, 1), "trial 1")
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == ""
    assert "stopping after the trial in flight" in said and "--resume --out" in said
    assert [t.id for t in ledger.trials(out)] == [0, 1]
    assert isinstance(ledger.trials(out)[1].outcome, Scored)
    assert alive(pids) == []


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_ctrl_c_twice_or_sigterm_abandons_it_and_leaves_no_child(
    toy: Path, tmp_path: Path, pids: Path, signals: tuple[signal.Signals, ...]
) -> None:
    out = tmp_path / "r"
    text = (toy / "train.py").read_text().replace("sleep(0.5)", "sleep(0.5 if LR == 0.1 else 60)")
    (toy / "train.py").write_text(text.replace("WIDTH = 8\n", "").replace("abs(WIDTH - 32)", "0"))
    with start("--strategy", "random_edit", "--target", toy, "--out", out) as process:
        until(in_flight(out, pids, 1), "trial 1")
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        said, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors == ""
    assert "abandoned" in said
    assert [t.id for t in ledger.trials(out)] == [0]
    assert alive(pids) == []


@pytest.mark.parametrize("strategy", ["bare", pytest.param("random_edit", marks=pytest.mark.slow)])
def test_kill_9_loses_nothing_that_was_finished_and_repeats_nothing(
    toy: Path, tmp_path: Path, pids: Path, scripted: Script, run_loop: Cli, strategy: str
) -> None:
    script = scripted("LR = 0.2", "none", "none either", "WIDTH = 16", "WIDTH = 4")
    brain = ("--strategy", strategy, "--brain", f"scripted:{script}")
    common = (*brain, "--target", toy, "--seed", 3, "--trials", 4)
    cut, whole = tmp_path / "cut" / "r", tmp_path / "whole" / "r"
    with start(*common, "--out", cut) as process:
        until(in_flight(cut, pids, 1), "trial 1")
        until(lambda: (cut / "ledger.jsonl").read_bytes().count(b"\n") >= 3, "two trials")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    until(lambda: alive(pids) == [], "the child to end with its parent")
    before = (cut / "ledger.jsonl").read_bytes()
    said = ok(run_loop("--resume", "--out", cut))
    assert (cut / "ledger.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    ok(run_loop(*common, "--out", whole))
    assert [t.id for t in ledger.trials(cut)] == [0, 1, 2, 3, 4], said
    assert comparable(list(ledger.read(cut))) == comparable(list(ledger.read(whole)))
    assert (cut / "results.tsv").read_text().count("\n") == 6
    head = git(cut / "work", "rev-parse", "HEAD^{tree}")
    assert head == git(whole / "work", "rev-parse", "HEAD^{tree}")


def test_a_kill_between_ledger_and_branch_is_made_good(
    toy: Path, tmp_path: Path, scripted: Script, run_loop: Cli
) -> None:
    out = tmp_path / "r"
    ok(run_loop(*brain(scripted("LR = 0.2")), "--trials", 1, "--target", toy, "--out", out))
    git(out / "work", "update-ref", "refs/heads/autoresearch/r", "refs/trials/0")
    git(out / "work", "reset", "--hard", "-q")
    ok(run_loop("--resume", "--out", out))
    assert "LR = 0.2\n" in (out / "work" / "train.py").read_text()


def test_a_resumed_run_may_have_more_trials_but_no_other_experiment(
    toy: Path, tmp_path: Path, run_loop: Cli
) -> None:
    out = tmp_path / "r"
    ok(run_loop("--strategy", "random_edit", "--trials", 1, "--target", toy, "--out", out))
    ok(run_loop("--resume", "--trials", 2, "--out", out))
    assert len(ledger.trials(out)) == 3
    done = run_loop("--resume", "--seed", 5, "--out", out)
    assert done.returncode == 2
    assert "has --seed 0; leave the flag out" in done.stderr and done.stderr.count("\n") == 1


def test_two_processes_do_not_write_one_run(
    toy: Path, tmp_path: Path, pids: Path, run_loop: Cli
) -> None:
    out = tmp_path / "r"
    with start("--strategy", "random_edit", "--target", toy, "--out", out) as process:
        until(in_flight(out, pids, 1), "trial 1")
        done = run_loop("--resume", "--out", out)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert done.returncode == 1 and f"written by process {process.pid}" in done.stderr


def test_a_ledger_line_is_plain_json_with_the_four_keys(
    toy: Path, tmp_path: Path, run_loop: Cli
) -> None:
    ok(
        run_loop(
            "--strategy", "random_edit", "--trials", 1, "--target", toy, "--out", tmp_path / "r"
        )
    )
    lines = (tmp_path / "r" / "ledger.jsonl").read_text().splitlines()
    for line in lines:
        body = json.loads(line)
        assert body["kind"] == "trial"
        assert {"context", "proposal", "outcome", "decision"} <= set(body)


def test_a_run_may_begin_elsewhere(toy: Path, tmp_path: Path, run_cli: Cli) -> None:
    common = ("run", "--strategy", "random_edit", "--trials", 0, "--target", toy, *PLAIN)
    out = tmp_path / "r"
    done = run_cli(*common, "--start", "LR=0.2, WIDTH=16", "--trials", 1, "--out", out)
    ok(done)
    assert ledger.trials(out)[0].context.knobs == {"LR": 0.2, "WIDTH": 16}
    for start in ("LR", "LR=high", "RATE=1", "LR=0.2;WIDTH=4"):
        done = run_cli(*common, "--start", start, "--out", tmp_path / "no")
        assert done.returncode == 2 and "is not KNOB=value; knobs are LR, WIDTH" in done.stderr
        assert not (tmp_path / "no").exists()


def test_an_adapter_must_have_been_exported(toy: Path, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "adapter").mkdir()
    done = run_cli("run", "--brain", "llamacpp:smollm2-135m", "--adapter", tmp_path / "adapter",
                   "--target", toy, *PLAIN, "--out", tmp_path / "r")  # fmt: skip
    assert done.returncode == 2
    assert "autoresearch adapters export" in done.stderr and "--to lora-gguf" in done.stderr
    assert not (tmp_path / "r").exists()
