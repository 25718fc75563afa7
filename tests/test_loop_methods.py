"""The arms that follow a paper: the wording it prescribes, and the order in which things are asked.

Exact messages of every call lie in tests/expected/<arm>.txt, as for the other arms.
"""

from pathlib import Path

import pytest

from loop import strategies
from loop.brains.scripted import Scripted
from loop.context import State
from loop.edit import Edited, apply
from loop.strategies import self_consistency as vote
from loop.strategies.sampling import Sampling
from loop.strategy import Draft
from loop.trial import Call, Reason, Rejected, Reply
from tests.test_loop_strategies import EXPECTED, state

__all__ = ["state"]  # the fixture

THOUGHT, ANSWER = "Perhaps a higher rate.", "LR = 0.2"


def propose(name: str, state: State, *texts: str, samples: int = 3) -> Draft:
    brain = Scripted("scripted:x", "d", [Reply(t) for t in texts], window=32768, position=0)
    return strategies.build(name, brain, Sampling(samples=samples)).propose(state)


def transcript(calls: tuple[Call, ...]) -> str:
    return "".join(
        f"##### call {at}: {call.purpose}, T = {call.temperature}, n = {len(call.replies)}\n"
        + "".join(f"### {m.role}\n{m.content}\n" for m in call.messages)
        for at, call in enumerate(calls, 1)
    )


@pytest.mark.parametrize("name", ["cot", "re2", "re2_cot", "self_consistency"])
def test_the_messages_are_exactly_those_expected(name: str, state: State) -> None:
    texts = [ANSWER] if name == "re2" else [THOUGHT, ANSWER]
    if name == "self_consistency":
        texts = [THOUGHT, "Or a wider net.", "Or neither.", ANSWER, "WIDTH = 16", "LR = 0.2"]
    shown = transcript(propose(name, state, *texts).calls)
    path = EXPECTED / f"{name}.txt"
    if not path.exists():
        path.write_text(shown)
        pytest.fail(f"{path} was written: read it, then run again")
    assert shown == path.read_text()


def test_cot_is_kojimas_two_stages(state: State) -> None:
    """Kojima et al. 2022 (arXiv 2205.11916), section 3: the first prompt ends with "Let's think
    step by step."; the second holds the first, the reasoning, and a trigger such as "Therefore, the
    answer (arabic numerals) is"."""
    first, second = propose("cot", state, THOUGHT, ANSWER).calls
    assert first.messages[-1].content.endswith("Let's think step by step.")
    assert second.messages[: len(first.messages)] == first.messages
    reasoning, trigger = second.messages[len(first.messages) :]
    assert (reasoning.role, reasoning.content) == ("assistant", THOUGHT)
    assert trigger.content.startswith("Therefore, the change is")
    assert "KNOB = value" in trigger.content, "the format is asked for with the answer alone"
    assert all("KNOB = value" not in message.content for message in first.messages)


@pytest.mark.parametrize("name", ["re2", "re2_cot"])
def test_re2_reads_the_whole_question_twice(name: str, state: State) -> None:
    """Xu et al. 2023 (arXiv 2309.06275), section 2: "Q: {question} / Read the question again:
    {question} / #Answer format#"."""
    user = propose(name, state, THOUGHT, ANSWER).calls[0].messages[-1].content
    before, again, after = user.partition("\nRead the question again:\n")
    assert again and before.startswith("This is train.py") and after.startswith(before)
    ending = after.removeprefix(before)
    assert "train.py" not in ending, "nothing of the question stands a third time"
    if name == "re2":
        assert user.count("KNOB = value") == 1 and "KNOB = value" in ending
    else:
        assert ending == "\nLet's think step by step."


def test_samples_share_one_request_at_the_papers_temperature(state: State) -> None:
    """Wang et al. 2022 (arXiv 2203.11171), section 3.1: sampled with T = 0.7, then a majority
    vote over the answers, the reasoning marginalised out."""
    draft = propose("self_consistency", state, *[THOUGHT] * 3, ANSWER, "WIDTH = 16", "LR = 0.22")
    thoughts, *extractions = draft.calls
    assert (thoughts.temperature, len(thoughts.replies)) == (0.7, 3) and len(extractions) == 3
    assert draft.answer == ANSWER, "the winning bucket takes the value that was sampled first"
    assert draft.notes == {
        "votes": ["LR up x2", "WIDTH up x2", "LR up x2"], "agreement": 2 / 3, "voted": True,
    }  # fmt: skip


def test_an_unusable_sample_abstains_and_a_tie_goes_to_the_first(state: State) -> None:
    draft = propose("self_consistency", state, *[THOUGHT] * 3, "none", "WIDTH = 16", ANSWER)
    assert draft.answer == "WIDTH = 16" and draft.notes["voted"] is False
    assert draft.notes["votes"] == [None, "WIDTH up x2", "LR up x2"]
    silent = propose("self_consistency", state, *[THOUGHT] * 3, "none", "no", "nil")
    assert silent.notes["agreement"] == 0.0
    answer = silent.answer
    assert isinstance(answer, str) and isinstance(apply(answer, state.source), Rejected)


@pytest.mark.parametrize("samples", [1, 5])
def test_the_number_of_samples_can_be_chosen(samples: int, state: State) -> None:
    draft = propose("self_consistency", state, THOUGHT, ANSWER, samples=samples)
    assert len(draft.notes["votes"]) == samples == len(draft.calls) - 1


def test_a_vote_is_never_by_the_metric() -> None:
    assert vote.elect(["b", "a", "a"]) == 1 and vote.elect(["b", "a"]) == 0
    assert vote.elect([None, None]) == 0 and vote.elect([None, "a"]) == 1


def test_other_edits_agree_when_their_syntax_trees_do(state: State) -> None:
    block = "<<<<<<< SEARCH\nprint(\"---\")\n=======\nprint(  '---' ); X = 1{}\n>>>>>>> REPLACE"
    votes = [vote.ballot(block.format(end), state) for end in ("", "  # a remark")]
    assert votes[0] is not None and votes[0] == votes[1]
    assert isinstance(apply(block.format(""), state.source), Edited)


def test_a_vote_is_not_repaired(state: State) -> None:
    brain = Scripted("scripted:x", "d", [Reply("none")], window=32768, position=0)
    arm = strategies.build("self_consistency", brain, Sampling())
    draft = arm.propose(state)
    assert arm.repair(state, draft, Rejected(Reason.NO_EDIT, "no edit")) is None


def test_expectations_are_kept() -> None:
    kept = {path.stem for path in Path(EXPECTED).glob("*.txt")}
    assert {"bare", "menu", "cot", "re2", "re2_cot", "self_consistency"} <= kept
