"""A plan executed for real, on a target of a tenth of a second: turns, stops, kills, failures."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.plan import parse
from eval.results import Results, load, problems
from eval.worker import EvalArgs, Job, Shared
from loop.errors import BrainError
from loop.ledger import LEDGER, read, trials
from loop.start import RunArgs
from loop.trial import Measurement, Trial
from tests.conftest import Cli, outside
from tests.plan_folder import CONTROLS

PLAN = (
    """\
seeds = {seeds}
trials = {trials}
target = "toy"
judge = "naive"
final_seeds = 1
[primary]
contrast = ["random_edit", "random_search"]
smallest_effect = 0.1
"""
    + CONTROLS
)
BARE = """
[[arms]]
name = "bare"
strategy = "bare"
brain = "{brain}"
{more}
"""
NOBODY = "http://127.0.0.1:9/v1"
KJV = (
    """\
seeds = 2
trials = 2
profile = "cpu"
variant = "kjv"
budget = "2e9flops"
judge = "naive"
final_seeds = 2
runner = "forked"
[primary]
contrast = ["random_edit", "random_search"]
smallest_effect = 0.02
"""
    + CONTROLS
)


@pytest.fixture
def place(toy: Path) -> Path:
    return seeded(toy)


def seeded(toy: Path) -> Path:
    """The folder of the toy target, which takes a training seed, for a plan beside it."""
    text = (toy / "train.py").read_text()
    text = "import os\nSEED = int(os.environ['S'])\n" + text
    (toy / "train.py").write_text(text.replace("return 1.0", "return SEED % 97 / 1e4 + 1.0"))
    (toy / "target.toml").write_text(
        'editable = "train.py"\ncommand = ["{python}", "train.py"]\nseed = "env:S"\n'
        '[metric]\nname = "val_bpb"\n[knobs]\nLR = [0.1, 0.2, 0.3, 0.4]\nWIDTH = [8, 16, 32, 64]\n'
    )
    return toy.parent


def write(place: Path, seeds: object = 2, trials: int = 3, more: str = "") -> Path:
    path = place / "plan.toml"
    path.write_text(PLAN.format(seeds=seeds, trials=trials) + more)
    return path


def command(place: Path, *more: object) -> list[str]:
    return ["eval", str(place / "plan.toml"), "--out", str(place / "out"), "--sandbox", "none",
            *map(str, more)]  # fmt: skip


def begin(place: Path, *more: object, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "autoresearch", *command(place, *more)], env=outside(**env),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def comparable(out: Path) -> dict[str, list[object]]:
    """What two executions of a plan must agree on: all but clocks."""
    return {
        str(path.parent.relative_to(out)): [
            (r.id, r.parent, r.proposal.answer, r.outcome, r.decision)
            if isinstance(r, Trial)
            else (r.trial, r.purpose, r.seed, r.outcome) if isinstance(r, Measurement) else r
            for r in read(path.parent)
        ]
        for path in sorted(out.rglob(LEDGER))
    }  # fmt: skip


def same(ours: Results, theirs: Results) -> bool:
    pairs = ((ours.best, theirs.best), (ours.final, theirs.final))
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def test_arms_take_turns_and_everything_is_measured(
    place: Path, run_cli: Cli, scripted: Callable[..., Path]
) -> None:
    script = scripted("LR = 0.3", "LR = 0.3", "no idea")
    write(place, more=BARE.format(brain=f"scripted:{script}", more=""))
    done = run_cli(*command(place))
    assert done.returncode == 0, done.stdout + done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    turns = [(w[0], w[2], w[4]) for w in words if w[1:2] == ["seed"] and w[4].isdigit()]
    arms = ("random_edit", "random_search", "bare")
    assert turns == [(a, str(s), str(t)) for s in (0, 1) for t in range(4) for a in arms]
    results = load(place / "out")
    assert results.left_out == ("The target keeps no text aside: the final check has fresh seeds "
                                "alone.",)  # fmt: skip
    assert np.isfinite(results.final).all() and np.isfinite(results.best).all()
    assert (results.baseline == results.baseline[0]).all(), "a pair shares its training seed"
    assert results.runs["bare", 1].trials[1].proposal.answer == "LR = 0.3", "a script of its own"
    assert len({t.proposal.edit.file_sha256 for s in results.runs.values()
                if (t := s.trials[0]).proposal.edit}) == 1  # fmt: skip
    before = comparable(place / "out")
    again = run_cli(*command(place))
    assert again.returncode == 0 and "6 of 6 runs are complete already" in again.stdout
    assert comparable(place / "out") == before


def test_a_run_that_improved_nothing_has_its_final_check(
    place: Path, run_cli: Cli, scripted: Callable[..., Path]
) -> None:
    write(place, 1, 1, BARE.format(brain=f"scripted:{scripted('no idea')}", more=""))
    assert run_cli(*command(place)).returncode == 0
    results = load(place / "out")
    finals = [r for r in read(place / "out/runs/bare/0") if isinstance(r, Measurement)]
    assert [(m.trial, m.purpose) for m in finals] == [(0, "final")]
    assert results.final[2, 0] == results.final_baseline[2, 0] == results.final_baseline[0, 0]


def test_workers_give_the_same(place: Path, run_cli: Cli) -> None:
    write(place, 3, 2)
    assert run_cli(*command(place)).returncode == 0
    alone = load(place / "out")
    before = comparable(place / "out")
    done = run_cli(*command(place)[:3], place / "two", "--sandbox", "none", "--workers", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("complete") == 6
    assert same(load(place / "two"), alone) and comparable(place / "two") == before


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_finished_trials_and_the_same_command_goes_on(
    place: Path, workers: int
) -> None:
    write(place, 2, 10)
    process = begin(place, "--workers", workers)
    wait_for(lambda: sum(len(trials(p.parent)) for p in place.glob("out/runs/*/*/" + LEDGER)) > 6)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "go on with the same command" in said, said
    before = comparable(place / "out")
    done = subprocess.run(process.args, env=outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = comparable(place / "out")
    assert all(after[name][: len(lines)] == lines for name, lines in before.items())
    assert np.isfinite(load(place / "out").final).all()


def test_terminated_it_abandons_what_is_in_flight(place: Path) -> None:
    write(place, 2, 60)
    process = begin(place, "--workers", 2)
    wait_for(lambda: len(list(place.glob("out/runs/*/*/" + LEDGER))) > 2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "abandoned" in said, said
    wait_for(lambda: not list(children(process.pid)))


def wait_for(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.05)


def children(group: int) -> Iterator[int]:
    """Processes of a group that still run."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            yield int(path.parent.name)


@pytest.mark.slow
def test_kills_lose_nothing_and_change_nothing(place: Path, run_cli: Cli) -> None:
    write(place, 2, 6)
    assert run_cli(*command(place)).returncode == 0
    undisturbed, expected = comparable(place / "out"), load(place / "out")
    (place / "out").rename(place / "whole")
    dice = random.Random(3)
    for number in range(12):
        process = begin(place, "--workers", 1 + number % 2)
        try:
            process.wait(timeout=dice.uniform(1.0, 4.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
        assert process.returncode in (0, -signal.SIGKILL), said
        wait_for(lambda pid=process.pid: not list(children(pid)))  # type: ignore[misc]
    done = run_cli(*command(place))
    assert done.returncode == 0, done.stdout + done.stderr
    assert comparable(place / "out") == undisturbed and same(load(place / "out"), expected)


def test_an_arm_whose_brain_is_down_does_not_stop_the_others(place: Path, run_cli: Cli) -> None:
    more = BARE.format(brain="openai:x", more=f'base_url = "{NOBODY}"')
    write(place, more=more)
    done = run_cli(*command(place, "--patience", 0))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "2 runs not complete (bare/0, bare/1)" in done.stderr and "give the same" in done.stderr
    assert list(problems(place / "out")) == ["bare/0"], "an arm that is down is not asked again"
    results = load(place / "out")
    assert np.isfinite(results.final[:2]).all() and np.isnan(results.final[2]).all()
    assert any("bare has no complete run" in sentence for sentence in results.left_out)


def test_a_run_that_fails_does_not_stop_the_others(place: Path, run_cli: Cli) -> None:
    write(place)
    assert run_cli(*command(place)).returncode == 0
    ledger = place / "out/runs/random_edit/1" / LEDGER
    ledger.write_text("{}\n" + ledger.read_text())
    (place / "out/runs/random_search/0" / LEDGER).unlink()
    done = run_cli(*command(place))
    assert done.returncode == 1 and "1 run not complete (random_edit/1)" in done.stderr
    assert "line 1 is corrupt" in done.stderr and "complete" in done.stdout, "the other was made"
    assert np.isfinite(load(place / "out").final[1]).all()


def test_a_plan_that_is_edited_needs_a_reason(place: Path, run_cli: Cli) -> None:
    write(place, 1, 1)
    assert run_cli(*command(place)).returncode == 0
    write(place, 2, 2)
    done = run_cli(*command(place))
    assert done.returncode == 2 and "trials: 1 -> 2" in done.stderr
    assert len(trials(place / "out/runs/random_edit/0")) == 2, "nothing was run"
    done = run_cli(*command(place, "--amend", "one was too few"))
    assert done.returncode == 0, done.stdout + done.stderr
    results = load(place / "out")
    assert results.best.shape == (2, 2, 3) and np.isfinite(results.final).all()
    assert 'because: "one was too few"' in results.left_out[0]
    (place / "plan.toml").write_text(
        (place / "plan.toml").read_text().replace("naive", "noise-aware")
    )
    done = run_cli(*command(place, "--amend", "a better judge"))
    assert done.returncode == 1 and "was begun with judge 'naive'" in done.stderr


def test_one_eval_at_a_time(place: Path, run_cli: Cli) -> None:
    write(place, 2, 60)
    process = begin(place)
    wait_for((place / "out" / "plan.json").exists)
    done = run_cli(*command(place))
    assert done.returncode == 2 and "another eval is at work" in done.stderr
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "arguments are required: plan, --out"),
        ("gone.toml --out {out}", "cannot read the plan"),
        ("{plan} --out {out} --workers 0", "--workers is 0"),
        ("{plan} --out {out} --executor magic", "invalid choice: 'magic'"),
        ("{plan} --out {plan}/x", "cannot write in"),
    ],
)
def test_wrong_usage(place: Path, run_cli: Cli, more: str, said: str) -> None:
    plan = write(place)
    done = run_cli("eval", *more.format(plan=plan, out=place / "out").split())
    assert done.returncode in (1, 2) and said in done.stderr and done.stderr.count("\n") == 1
    assert not (place / "out").exists()


def test_an_adapter_that_is_not_there_is_said_before_anything_runs(
    place: Path, run_cli: Cli
) -> None:
    write(place, more=BARE.format(brain="llamacpp:smollm2-135m", more='adapter = "gone"'))
    done = run_cli(*command(place))
    assert done.returncode == 2 and "the adapter gone is not there" in done.stderr
    assert not (place / "out" / "runs").exists()


def test_arms_that_ask_the_same_brain_share_it(
    tmp_path: Path, scripted: Callable[..., Path]
) -> None:
    plan = parse({"seeds": 1, "trials": 1, "arms": [{"name": s, "strategy": s} for s in
                 ("tpe", "random_edit")], "primary": {"contrast": ["tpe", "random_edit"],
                 "smallest_effect": 1, "endpoint": "best"}})  # fmt: skip
    shared = Shared(Job(plan, tmp_path, EvalArgs(tmp_path, tmp_path)), lambda note: None)
    bare, cot, tpe = (
        RunArgs(tmp_path, strategy=name, brain="llamacpp:smollm2-135m", window=512, threads=1)
        for name in ("bare", "cot", "tpe")
    )
    first = shared.brain(bare, 0)
    assert first is not None and shared.brain(cot, 5) is first
    assert shared.brain(replace(cot, window=600), 0) is not first, "another window"
    assert shared.brain(tpe, 0) is None, "a control"
    script = RunArgs(tmp_path, brain=f"scripted:{scripted('a', 'b')}")
    own = shared.brain(script, 0), shared.brain(script, 1)
    assert own[0] is not own[1]
    assert [b.chat([])[0].text for b in own if b] == ["a", "b"], "from its own place on"
    shared.close()
    with pytest.raises(BrainError, match="is closed"):
        first.chat([])


@pytest.mark.slow
def test_the_built_in_target_by_forks(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(KJV)
    args = ["eval", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "autoresearch", *args], env=outside(), check=False, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4. Does the adapter beat prompting? NOT MEASURED" in done.stdout
    results = load(tmp_path / "out")
    assert results.left_out == () and results.untouched and results.metric == "val_bpb"
    assert np.isfinite(results.final).all() and np.isfinite(results.best).all()
    assert (results.final_baseline[0] == results.final_baseline[1]).all(), "measured once"
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["text"] == KJV
