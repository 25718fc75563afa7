"""`pointwise`: each move on its own, and the likeliest Yes is made."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_collection import corpus, prompts
from data_collection.collect import run
from loop import ledger, strategies
from loop.brains.scripted import Scripted
from loop.context import State
from loop.errors import BrainError
from loop.moves import menu
from loop.strategies.experience import Experience
from loop.strategies.pointwise import examples, score
from loop.strategies.sampling import Sampling
from loop.strategy import Strategy
from loop.trial import Reason, Rejected, Reply
from tests.conftest import TRAIN, Cli, a_trial
from tests.test_data_collection_render import frontier, read, render  # noqa: F401
from tests.test_loop_strategies import state, with_code  # noqa: F401 (a fixture)

WON = (
    Experience("LR", 0.1, 0.2, gain=0.5, win=True),
    Experience("WIDTH", 8, 4, gain=0.3, win=True),
    Experience("LR", 0.2, 0.1, gain=-0.4, win=False),
    Experience("DEPTH", 2, 1, gain=0.9, win=True),
)


def arm(*likely: dict[str, float], experience: tuple[Experience, ...] = ()) -> Strategy:
    script = [Reply("Yes", logprobs=told) for told in likely]
    brain = Scripted("scripted:x", "d", script, window=4096, position=0)
    name = "pointwise_few_shot" if experience else "pointwise"
    return strategies.build(name, brain, Sampling(), experience)


def test_it_makes_the_move_that_is_likeliest_to_help(state: State) -> None:  # noqa: F811
    moves = menu(state)
    likely = [{"Yes": -2.0, "No": -0.2}] * len(moves)
    likely[2] = {"Yes": -1.0, "No": -0.6}
    draft = arm(*likely).propose(state)
    assert draft.answer == moves[2].text and draft.description == moves[2].description
    assert len(draft.calls) == len(moves) == 4
    assert draft.notes == {"moves": 4, "score": -0.4}


def test_the_question_is_exactly_this(state: State) -> None:  # noqa: F811
    calls = arm({"Yes": -1.0}).propose(state).calls
    by_text = {call.messages[1].content: call for call in calls}
    question = (
        "Settings now:\nLR = 0.1\nWIDTH = 8\n\nChange: lower WIDTH from 8 to 4.\n"
        "Does it improve val_bpb?"
    )
    assert by_text[question].messages[0].content == (
        "You judge changes to the settings of a training script, one at a time. Lower val_bpb is "
        "better.\nAnswer with one word: Yes or No.\n"
    )
    assert {(call.temperature, call.max_tokens) for call in calls} == {(0.0, 1)}
    prefix = question.partition("\nChange")[0]
    assert all(text.startswith(prefix) for text in by_text), "shared, so that it is read once"


def test_examples_say_yes_and_no_in_turns(state: State) -> None:  # noqa: F811
    (call, *_) = arm({"Yes": -1.0}, experience=WON).propose(state).calls
    assert call.messages[1].parts[0] == (
        "Changes to other versions of this script:\n"
        "- raise LR from 0.1 to 0.2. Yes\n- lower LR from 0.2 to 0.1. No\n"
    ), "as many of either, and no knob that the target lacks"
    assert examples((), state) == []


def test_a_question_is_asked_once_as_long_as_the_incumbent_stands(state: State) -> None:  # noqa: F811
    script = [Reply("Yes", logprobs={"Yes": -float(n)}, prompt_tokens=7) for n in range(1, 9)]
    brain = Scripted("scripted:x", "d", script, window=4096, position=0)
    strategy = strategies.build("pointwise", brain, Sampling())
    first = strategy.propose(state)
    assert brain.position == 4
    tried = replace(state, trials=(*state.trials, with_code(
        a_trial(5), TRAIN.replace("LR = 0.1", "LR = 0.2"))), seed=12)  # fmt: skip
    again = strategy.propose(tried)
    assert brain.position == 4 and len(again.calls) == 3
    known = {call.messages: call.replies[0] for call in first.calls}
    for call in again.calls:
        (reply,) = call.replies
        assert reply.logprobs == known[call.messages].logprobs
        assert (reply.prompt_tokens, reply.completion_tokens, reply.seconds) == (0, 0, 0.0)
    kept = replace(tried, source=TRAIN.replace("LR = 0.1", "LR = 0.2"))
    strategy.propose(kept)
    assert brain.position > 4, "other settings are other questions"


@pytest.mark.parametrize(
    ("told", "nats"),
    [
        ({"Yes": -1.0, "No": -3.0}, 2.0),
        ({"Yes": math.log(0.2), " yes": math.log(0.2), "NO": math.log(0.1)}, math.log(4)),
        ({"No": -0.5, "Maybe": -4.0}, -3.5),
        ({"a": -1.0}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_score_is_the_nats_of_yes_over_no(told: dict[str, float], nats: float) -> None:
    assert score(told) == pytest.approx(nats)


def test_a_brain_that_tells_no_logprobs_is_refused(state: State) -> None:  # noqa: F811
    with pytest.raises(BrainError, match=r"tells no log-probabilities.*--strategy menu"):
        arm({}).propose(state)


def sure(folder: Path) -> Path:
    script = folder / "s.jsonl"
    script.write_text('{"text": "Yes", "logprobs": {"Yes": -0.1, "No": -3.0}}\n')
    return script


def test_nothing_is_left_when_all_was_tried(toy: Path, run_loop: Cli, tmp_path: Path) -> None:
    done = run_loop("--target", toy, "--brain", f"scripted:{sure(tmp_path)}", "--trials", 30,
                    "--strategy", "pointwise", "--judge", "naive",
                    "--out", tmp_path / "r")  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, last = ledger.trials(tmp_path / "r")
    assert isinstance(last.outcome, Rejected) and last.outcome.reason is Reason.NOTHING_LEFT


def test_rows_for_it_ask_what_the_loop_asked(toy: Path, run_loop: Cli, tmp_path: Path) -> None:
    run_loop("--target", toy, "--brain", f"scripted:{sure(tmp_path)}", "--strategy", "pointwise",
             "--trials", 5, "--judge", "naive", "--out", tmp_path / "r")  # fmt: skip
    run([str(tmp_path / "r"), "--out", str(tmp_path / "c"), "--cap", "0"])
    trials = {trial.id: trial for trial in ledger.trials(tmp_path / "r")}
    seen = 0
    for row, standing in prompts.standings(corpus.rows(tmp_path / "c")):
        if not isinstance(standing, str):
            trial = trials[row["trial"]]
            made = prompts.prompt("pointwise", standing.state, (trial,), 4096, prompts._estimate)
            assert isinstance(made, prompts.Prompt) and not made.widened
            assert made.messages in [call.messages for call in trial.proposal.calls]
            seen += 1
    assert seen == 5


def test_rows_for_it_say_yes_to_wins_and_no_to_so_many_others(
    frontier: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    label = {row["key"]: row["label"] for row in read(frontier)}
    counts = []
    for negatives in ("1", "100"):
        out = tmp_path / negatives
        found = render("sft", "pointwise", frontier, out, "--negatives", negatives)
        for row in found:
            helps = row["completion"][0]["content"] == "Yes"
            assert helps == (label[row["key"]] == "win")
        counts.append(Counter(row["completion"][0]["content"] for row in found))
    few, all_ = counts
    assert few["Yes"] == all_["Yes"] > 0
    assert few["No"] < all_["No"]
