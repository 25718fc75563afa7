"""`--ahead`: the same run whether a proposal was in time or not, all charged, nothing hangs."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eval.summary import of_records
from loop import ahead, ledger, start, target
from loop import run as loop_run
from loop.ahead import Ahead, masked
from loop.brains.scripted import Scripted
from loop.budget import Budget
from loop.caps import Caps
from loop.context import Running, State, describe, history
from loop.errors import BrainError, ServerDown, UsageError
from loop.experiment import Limits, Runner
from loop.ledger import Ledger
from loop.moves import listed
from loop.run import Loop
from loop.sandbox import open_box
from loop.start import RunArgs
from loop.trial import Crashed, Event, Json, Message, Reason, Rejected, Reply, Trial
from tests.conftest import ROOT, TRAIN, Cli, a_trial, outside
from tests.test_loop_run import comparable, until

KEPT = "still running, taken as better"
TOML = """\
editable = "train.py"
command = ["{python}", "train.py"]
[metric]
name = "val_bpb"
[knobs]
LR = { low = 0.001, high = 10.0, scale = "log", step = 2.0 }
WIDTH = { choices = [4, 8, 16, 32, 64] }
"""


class Drawing(Scripted):
    """Its reply is drawn from what it is asked, so that it is the same whenever that is asked.

    `hangs`: on a prompt with this text until it is abandoned. `errors`: raised one by one, asked
    ahead for the case that comes about first.
    """

    def __init__(self, hangs: str = "\0", answer: str = "") -> None:
        super().__init__("scripted:drawing", "d", [Reply("")], window=32768, position=0)
        self.hangs, self.answer = hangs, answer
        self.asked: list[str] = []
        self.errors: list[Exception] = []
        self.waiting: list[threading.Event] = []

    def chat(self, messages: Sequence[Message], *, schema: Json | None = None, **_: Any) -> Any:
        content = messages[-1].content
        self.asked.append(content)
        ahead = threading.current_thread() is not threading.main_thread()
        if self.errors and ahead and KEPT in content:
            raise self.errors.pop(0)
        if self.hangs in content:
            self.waiting.append(event := threading.Event())
            event.wait(60)
            raise BrainError("broken off")
        moves = schema["properties"]["move"]["enum"] if schema else [self.answer]
        move = sorted(moves)[hashlib.sha256(content.encode()).digest()[0] % len(moves)]
        text = f'{{"reason": "r", "move": "{move}"}}' if schema else move
        return (Reply(text, prompt_tokens=100, cached_tokens=90, completion_tokens=10, seconds=2.0,
                      dollars=0.5),)  # fmt: skip

    def abandon(self) -> None:
        for event in self.waiting:
            event.set()


@dataclass(frozen=True)
class Paced(Runner):
    """An experiment that, once it is done, goes on until `until` returns."""

    until: Callable[[], object] = bool

    def run(self, *args: Any, **more: Any) -> Any:
        ended = super().run(*args, **more)
        self.until()
        return ended


def toml(toy: Path) -> Path:
    (toy / "target.toml").write_text(TOML)
    return toy


def turn(
    folder: Path, out: Path, brain: Any, trials: int, *, paced: str = "in time",
    strategy: str = "menu", alone: bool = False, **settings: Any,
) -> list[Any]:  # fmt: skip
    """Begin or resume the run in `out`, up to `trials`, -> its records.

    `paced`: experiments that end when all is proposed ("in time"), or before ("late"), or when the
    brain hangs ("hanging"). `alone`: as with a brain that cannot abandon a request.
    """
    args = RunArgs(out, target=folder, strategy=strategy, judge="naive", final_seeds=0, seed=3,
                   sandbox="none", ahead=True, resume=(out / "run.toml").exists())  # fmt: skip
    prepared = start.prepare(args)
    made, _ = start.strategy(args, 0, brain)
    thread = Ahead(None if alone else brain.abandon)

    def proposed() -> bool:
        hangs = paced == "hanging" and any(not event.is_set() for event in brain.waiting)
        return hangs or not thread._thread.is_alive()

    limits = Limits(prepared.target.timeout_s)
    with Ledger(out) as record:
        loop = Loop(
            replace(start.settings(prepared), trials=trials, **settings),
            strategy=made,
            judge=start.judge(args, prepared.target, prepared.budget),
            runner=Paced(
                prepared.target,
                open_box("none"),
                limits,
                until=lambda: None if paced == "late" else until(proposed, "a proposal"),
            ),
            workspace=prepared.workspace,
            ledger=record,
            ahead=thread,
        )
        try:
            loop.run()
        finally:
            thread.close()
    return list(ledger.read(out))


def trials_of(records: Sequence[Any]) -> list[Trial]:
    return [record for record in records if isinstance(record, Trial)]


def unused_of(records: Sequence[Any]) -> list[Json]:
    return [r.data for r in records if isinstance(r, Event) and r.name == ahead.UNUSED]


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return comparable(list(trials_of(one))) == comparable(list(trials_of(other)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], Drawing]:
    """A target, and a run on it in which all was proposed in time."""
    folder = tmp_path_factory.mktemp("ahead")
    toy = folder / "toy"
    toy.mkdir()
    (toy / "train.py").write_text(TRAIN)
    (toy / "program.md").write_text("Make it small.\n")
    brain = Drawing()
    return toml(toy), turn(toy, folder / "r", brain, 6), brain


def test_each_proposal_is_made_for_both_outcomes_of_the_trial_before(
    whole: tuple[Path, list[Any], Drawing],
) -> None:
    _, records, brain = whole
    trials = trials_of(records)
    assert [t.id for t in trials] == [0, 1, 2, 3, 4, 5, 6]
    assert "ahead" not in trials[1].proposal.notes, "nothing ran but the baseline"
    for before, trial in pairwise(trials[1:]):
        kept = before.decision.verdict == "keep"
        assert trial.proposal.notes["ahead"] == ("keep" if kept else "discard")
        assert trial.context.incumbent == (before.id if kept else before.parent)
        (call,) = trial.proposal.calls
        line = f"\n{before.id}. {before.proposal.description}: still running"
        assert f"{line}, taken as better\n" * kept + f"{line}\n" * (not kept) in (
            call.messages[1].content + "\n"
        )
    verdicts = {t.decision.verdict for t in trials[1:-1]}
    assert verdicts == {"keep", "discard"}, "else this shows one case only"
    assert len(brain.asked) == 1 + 2 * 5, "trial 1, then both cases; none after the last"


def test_what_was_made_for_nothing_is_recorded_and_charged(
    whole: tuple[Path, list[Any], Drawing],
) -> None:
    _, records, _ = whole
    trials, unused = trials_of(records), unused_of(records)
    assert [facts["trial"] for facts in unused] == [2, 3, 4, 5, 6]
    for facts, trial in zip(unused, trials[2:], strict=True):
        assert {facts["ahead"], trial.proposal.notes["ahead"]} == {"keep", "discard"}
        assert facts["tokens_read"] == 100 and facts["tokens_cached"] == 90
        assert (facts["tokens_written"], facts["seconds"], facts["dollars"]) == (10, 2.0, 0.5)
    order = [r.data["trial"] if isinstance(r, Event) else r.id for r in records[2:]]
    assert order == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6], "before the trial that another led to"
    summary = of_records(records, {}, "r")
    assert (summary.tokens_read, summary.tokens_written) == (1100, 110)
    assert (summary.brain_seconds, summary.dollars) == (22.0, 5.5)
    spent = sum(t.seconds for t in trials)
    assert spent - 6 * 2.0 < summary.trainer_seconds <= spent, "what was not waited for is theirs"
    assert Caps(tokens=1210).reached(trials, 0, unused) and not Caps(tokens=1210).reached(trials, 0)
    assert Caps(dollars=5.5).reached(trials, 0, unused) and not Caps(dollars=5.5).reached(trials, 0)


@pytest.mark.parametrize("alone", [False, True])
def test_it_does_not_matter_whether_a_proposal_was_in_time(
    whole: tuple[Path, list[Any], Drawing], tmp_path: Path, alone: bool
) -> None:
    folder, records, _ = whole
    late = turn(folder, tmp_path / "r", Drawing(), 6, paced="late", alone=alone)
    assert same(late, records)


def test_a_killed_run_goes_on_with_the_same_proposals(
    whole: tuple[Path, list[Any], Drawing], tmp_path: Path
) -> None:
    folder, records, _ = whole
    for wanted in (2, 4):
        out = tmp_path / str(wanted) / "r"
        out.parent.mkdir()
        command = [sys.executable, "-m", "tests.test_loop_ahead", str(folder), str(out)]
        with subprocess.Popen(command, env=outside(), cwd=ROOT) as process:
            path = out / ledger.LEDGER
            until(lambda path=path, wanted=wanted: path.exists() and sum(  # type: ignore[misc]
                b'"kind": "trial"' in line for line in path.read_bytes().splitlines()
            ) > wanted, "its trials")  # fmt: skip
            os.kill(process.pid, signal.SIGKILL)
        assert same(turn(folder, out, Drawing(), 6), records)


def test_what_is_not_needed_is_broken_off(toy: Path, tmp_path: Path) -> None:
    """The request for the unlikelier case never ends, and holds nothing up."""
    (toy / "train.py").write_text(TRAIN.replace("LR - 0.4", "LR - 0.1").replace("32)", "8)"))
    records = turn(toml(toy), tmp_path / "r", Drawing(hangs=KEPT), 4, paced="hanging")
    assert [t.decision.verdict for t in trials_of(records)[1:]] == ["discard"] * 4
    broken = unused_of(records)
    assert [(f["trial"], f["ahead"], f["broken_off"]) for f in broken] == [
        (2, "keep", True), (3, "keep", True), (4, "keep", True)
    ]  # fmt: skip
    assert of_records(records, {}, "r").tokens_read == 400, "its tokens are not known"


def test_a_duplicate_of_the_trial_in_flight_does_not_run(
    whole: tuple[Path, list[Any], Drawing], tmp_path: Path
) -> None:
    folder, records, _ = whole
    again = turn(folder, tmp_path / "r", Drawing(answer="LR = 0.7"), 2, strategy="bare")
    outcome = trials_of(again)[2].outcome
    assert isinstance(outcome, Rejected) and outcome.reason is Reason.DUPLICATE
    for trial in trials_of(records)[2:]:
        schema = trial.proposal.calls[0].schema
        assert schema is not None
        flight = trials_of(records)[trial.id - 1].proposal.answer
        kept = trial.proposal.notes["ahead"] == "keep"
        assert kept or flight not in schema["properties"]["move"]["enum"]


def test_a_server_that_is_down_in_between_costs_time_and_no_trial(
    whole: tuple[Path, list[Any], Drawing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_run, "FIRST_PAUSE_S", 0.01)
    folder, records, _ = whole
    brain = Drawing()
    brain.errors = [ServerDown("it is being moved")]
    found = turn(folder, tmp_path / "r", brain, 6)
    assert same(found, records)
    assert [e.name for e in found if isinstance(e, Event)].count("brain_down") == 1


def test_a_brain_that_is_gone_ends_the_run_after_the_trial_in_flight(
    whole: tuple[Path, list[Any], Drawing], tmp_path: Path
) -> None:
    folder, records, _ = whole
    brain = Drawing()
    brain.errors = [BrainError("it is gone")]
    with pytest.raises(BrainError, match="it is gone"):
        turn(folder, tmp_path / "r", brain, 6)
    assert [t.id for t in ledger.trials(tmp_path / "r")] == [0, 1]
    assert same(turn(folder, tmp_path / "r", Drawing(), 6), records), "and it can go on"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_a_thread_keeps_no_process_alive(
    whole: tuple[Path, list[Any], Drawing], tmp_path: Path, stop: signal.Signals
) -> None:
    folder, _, _ = whole
    command = [sys.executable, "-m", "tests.test_loop_ahead", str(folder), str(tmp_path / "r"), "x"]
    with subprocess.Popen(command, env=outside(), cwd=ROOT) as process:
        path = tmp_path / "r" / "hanging"
        until(path.exists, "a request")
        process.send_signal(stop)
        assert process.wait(timeout=30) != 0
    assert [t.id for t in ledger.trials(tmp_path / "r")] == [0]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--strategy", "tpe"), "--ahead: tpe asks no brain"),
        (("--strategy", "hybrid"), "--ahead: hybrid learns from the outcome"),
        (("--strategy", "random_edit"), "--ahead: random_edit asks no brain"),
    ],
)
def test_who_cannot_propose_ahead_is_refused(
    toy: Path, tmp_path: Path, run_loop: Cli, scripted: Any, asked: tuple[str, str], says: str
) -> None:
    brain = ("--brain", f"scripted:{scripted('LR = 0.2')}")
    done = run_loop("--ahead", *asked, *brain, "--target", toy, "--out", tmp_path / "r")
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_the_command_proposes_ahead_and_says_what_that_disturbs(
    toy: Path, tmp_path: Path, run_loop: Cli, scripted: Any
) -> None:
    brain = ("--brain", f"scripted:{scripted('LR = 0.2', 'WIDTH = 4', 'LR = 9.0')}")
    out = tmp_path / "r"
    done = run_loop("--ahead", *brain, "--trials", 3, "--target", toy, "--out", out)
    assert done.returncode == 0, done.stderr
    assert [t.proposal.notes.get("ahead") for t in ledger.trials(out)][2:] != [None, None]
    assert run_loop("--resume", "--trials", 4, "--out", out).returncode == 0
    assert "ahead" in ledger.trials(out)[4].proposal.notes, "a resumed run goes on as it began"
    wall, work = Budget.parse("300s"), Budget.parse("1e11flops")
    assert "300s" in ahead.said("llamacpp:x", wall)[0]
    assert ahead.said("llamacpp:x", work) == ahead.said("openai:x", wall) == ()
    with pytest.raises(UsageError, match="no brain is loaded while"):
        ahead.check(start.strategy(RunArgs(out), 0, Drawing())[0], "swap")


# --- what is shown --------------------------------------------------------------------------------


def a_state(toy: Path, *trials: Trial, incumbent: int = 0) -> State:
    return State(target.load(toml(toy)), TRAIN, trials[incumbent], trials, seed=1)


def test_the_last_trial_is_shown_as_running_for_better_or_worse(toy: Path) -> None:
    state = a_state(toy, a_trial(0), a_trial(1), a_trial(2, description="LR: 1 -> 2"))
    assert describe(masked(state).trials[-1]) == "2. LR: 1 -> 2: still running\n"
    kept = masked(replace(state, incumbent=state.trials[2]))
    assert describe(kept.incumbent) == "2. LR: 1 -> 2: still running, taken as better\n"
    assert kept.incumbent is kept.trials[-1] and isinstance(kept.incumbent, Running)
    assert kept.trials[:-1] == state.trials[:-1] and masked(kept) == kept
    assert masked(state).tried() == state.tried() and {m.text for m in listed(kept)}


def test_what_was_known_at_once_is_shown_as_it_is(toy: Path) -> None:
    for last in (a_trial(0), a_trial(1, Rejected(Reason.NO_EDIT))):
        state = a_state(toy, *([a_trial(0)] if last.id else []), last)
        assert masked(state) is state


def test_the_newest_crash_that_is_known_shows_its_tail(toy: Path) -> None:
    crash = a_trial(1, Crashed("train", Reason.EXCEPTION, "boom"))
    text, _ = history(masked(a_state(toy, a_trial(0), crash, a_trial(2))).trials, 999, len)
    assert "boom" in text and text.endswith("still running\n")


def main(folder: str, out: str, hangs: str = "") -> None:
    """The run of `whole`, to be killed. `hangs`: at its first proposal ahead, for ever."""
    brain = Drawing("still running" if hangs else "\0")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hangs:
        threading.Thread(target=_tell, args=(brain, Path(out)), daemon=True).start()
    turn(Path(folder), Path(out), brain, 6, paced="in time", alone=bool(hangs))


def _tell(brain: Drawing, out: Path) -> None:
    while not brain.waiting:
        time.sleep(0.02)
    (out / "hanging").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
