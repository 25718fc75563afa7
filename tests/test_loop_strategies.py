"""Strategies: their exact messages, and that a menu and its control differ in the choice alone.

The expectations lie in tests/expected/. To accept a change of a template, delete the file, run the
test twice, and read the difference before it is committed.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from loop import strategies, target
from loop.brains.scripted import Scripted
from loop.context import State
from loop.edit import Edited, apply, code_hash
from loop.errors import ContextOverflow, UsageError
from loop.knobs import Knob
from loop.moves import listed, menu
from loop.strategies import experience
from loop.strategies.experience import Experience, way
from loop.strategies.menu import chosen
from loop.strategies.sampling import Sampling
from loop.strategy import Draft, Strategy
from loop.trial import Crashed, Edit, Reason, Rejected, Reply, Trial
from tests.conftest import TRAIN, a_trial

EXPECTED = Path(__file__).parent / "expected"
CHOICE = '{"reason": "r", "move": "LR = 0.2"}'


@pytest.fixture
def state(toy: Path) -> State:
    """A fixed state: a baseline, a kept trial, a crash, and a rejected reply."""
    trials = (
        with_code(a_trial(0, code_hash=""), TRAIN),
        a_trial(1, description="LR: 0.05 -> 0.1", verdict="keep"),
        a_trial(2, Crashed("train", Reason.EXCEPTION, "Traceback\nValueError: ```no```")),
        a_trial(3, Rejected(Reason.NO_EDIT, "no edit was found in the reply"), description="hm"),
        a_trial(
            4, Crashed("train", Reason.OUT_OF_MEMORY, "a\nb\nc\nMemoryError"), description="big"
        ),
    )
    return State(target.load(toy), TRAIN, trials[1], trials, seed=11)


def with_code(trial: Trial, source: str) -> Trial:
    digest = code_hash(source)
    assert isinstance(digest, str)
    return replace(trial, proposal=replace(trial.proposal, edit=Edit("", code_hash=digest)))


def arm(name: str, *texts: str, window: int = 32768) -> Strategy:
    script = [Reply(text) for text in texts or ("LR = 0.2",)]
    brain = Scripted("scripted:x", "d", script, window=window, position=0)
    return strategies.build(name, brain, Sampling())


@pytest.mark.parametrize("name", ["bare", "menu"])
def test_the_messages_are_exactly_those_expected(name: str, state: State) -> None:
    (call,) = arm(name).propose(state).calls
    shown = "".join(f"##### {m.role}\n{m.content}\n" for m in call.messages)
    shown += f"##### schema\n{json.dumps(call.schema, indent=1)}\n"
    path = EXPECTED / f"{name}.txt"
    if not path.exists():
        path.write_text(shown)
        pytest.fail(f"{path} was written: read it, then run again")
    assert shown == path.read_text()
    assert (call.temperature, call.max_tokens, call.seed) == (0.7, 512, 11)


def after(state: State, draft: Draft, source: str = "") -> State:
    """The state after `draft`, which led to `source`, was set back."""
    number = state.trials[-1].id + 1
    trial = replace(a_trial(number), parent=state.incumbent.id)
    context = replace(trial.context, incumbent=state.incumbent.id)
    proposal = replace(trial.proposal, notes=draft.notes)
    trial = replace(trial, context=context, proposal=proposal)
    trial = with_code(trial, source) if source else trial
    return replace(state, trials=(*state.trials, trial), seed=state.seed + 1)


@pytest.mark.parametrize("name", ["bare", "menu", "few_shot"])
def test_the_next_prompt_begins_with_all_that_the_last_one_told(name: str, state: State) -> None:
    """Another trial and another seed change nothing before the end of the history."""
    strategy = experienced(name, "", "")
    draft = strategy.propose(state)
    later = strategy.propose(after(state, draft))
    (system, first), (same, second) = draft.calls[0].messages, later.calls[0].messages
    assert system == same
    end = "\n4. big: crashed in train (out_of_memory), discard\n"
    told = first.content.partition(end)[0] + end
    assert first.content.startswith(told) and second.content.startswith(told)


def test_a_menu_lists_what_was_open_as_the_incumbent_was_kept(state: State) -> None:
    draft = arm("menu", CHOICE).propose(state)
    later = after(state, draft, TRAIN.replace("LR = 0.1", "LR = 0.2"))
    assert {m.text for m in listed(later)} == {"LR = 0.05", "LR = 0.2", "WIDTH = 4", "WIDTH = 16"}
    call = arm("menu", CHOICE).propose(later).calls[0]
    assert call.schema is not None and call.schema["properties"]["move"]["enum"] == [
        move.text for move in menu(later)
    ], "what was tried is listed and cannot be chosen"
    kept = replace(later, incumbent=later.trials[-1])
    assert "LR = 0.2" not in {move.text for move in listed(kept)}, "the next list lacks it"


def test_a_list_keeps_its_order_while_the_incumbent_stands(state: State) -> None:
    orders: Counter[str] = Counter()
    for seed in range(80):
        first = replace(state, seed=seed)
        later = after(first, arm("menu", CHOICE).propose(first))
        assert listed(first) == listed(later) == listed(after(later, Draft("")))
        orders[listed(first)[0].text] += 1
    assert len(orders) == 4 and min(orders.values()) > 8, "each comes first about as often"
    draft = arm("menu", CHOICE).propose(state)
    others = [replace(after(state, draft), incumbent=state.trials[0], seed=n) for n in range(20)]
    assert len({tuple(m.text for m in listed(other)) for other in others}) > 5, "another's order"


def test_bare_passes_the_answer_on(state: State) -> None:
    draft = arm("bare", "Raise it.\nLR = 0.2").propose(state)
    assert (draft.answer, draft.description) == ("Raise it.\nLR = 0.2", "")
    assert draft.shown.history == (0, 1, 2, 3, 4) and draft.shown.omitted == ()


def test_bare_leaves_out_old_trials_before_it_gives_up(state: State) -> None:
    many = replace(state, trials=tuple(a_trial(n) for n in range(200)))
    draft = arm("bare", window=1500).propose(many)
    assert draft.shown.history and draft.shown.history[-1] == 199
    assert draft.shown.omitted[0].endswith("of 200 trials, the oldest")
    with pytest.raises(ContextOverflow, match=r"train.py takes [\d,]+ tokens and does not fit"):
        arm("bare", window=700).propose(state)


def test_a_rejected_answer_may_be_repaired_once_and_both_calls_are_kept(state: State) -> None:
    strategy = arm("bare", "nothing", "LR = 0.2")
    draft = strategy.propose(state)
    again = strategy.repair(state, draft, Rejected(Reason.NO_EDIT, "no edit was found"))
    assert again is not None and again.answer == "LR = 0.2"
    assert [call.purpose for call in again.calls] == ["propose", "repair"]
    assert "no edit was found" in again.calls[1].messages[-1].content


def test_a_menu_holds_every_untried_single_move(state: State) -> None:
    texts = {move.text for move in menu(state)}
    assert texts == {"LR = 0.05", "LR = 0.2", "WIDTH = 4", "WIDTH = 16"}
    tried = with_code(a_trial(5), TRAIN.replace("LR = 0.1", "LR = 0.2"))
    left = {move.text for move in menu(replace(state, trials=(*state.trials, tried)))}
    assert left == texts - {"LR = 0.2"}


def test_a_menu_is_shuffled_by_its_seed(state: State) -> None:
    orders = {seed: tuple(m.text for m in menu(replace(state, seed=seed))) for seed in range(200)}
    assert orders[7] == tuple(m.text for m in menu(replace(state, seed=7)))
    first = Counter(order[0] for order in orders.values())
    assert len(first) == 4 and min(first.values()) > 25, "each comes first about as often"


def test_a_menu_leaves_the_training_seed_alone(state: State) -> None:
    seeded = replace(state, target=replace(state.target, seed="knob:WIDTH"))
    assert {move.knob for move in menu(seeded)} == {"LR"}


def test_every_move_of_a_menu_is_an_edit(state: State) -> None:
    for move in menu(state):
        assert isinstance(apply(move.text, state.source), Edited)


def test_menu_takes_the_move_that_the_json_names(state: State) -> None:
    draft = arm("menu", '{"reason": "faster", "move": "WIDTH = 16"}').propose(state)
    assert (draft.answer, draft.description) == ("WIDTH = 16", "WIDTH: 8 -> 16")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"move": "LR = 0.2"}', '{"reason": "r", "move": "LR = 0.3"}',
     '{"reason": "r", "move": "LR = 0.2", "x": 1}', '{"reason": 1, "move": "LR = 0.2"}',
     '{"reason": "' + "r" * 200 + '", "move": "LR = 0.2"}', "1" * 5000, "[" * 99_999],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_menu_validates_what_the_engine_let_through(text: str, state: State) -> None:
    answer = chosen(text, menu(state))
    assert isinstance(answer, Rejected) and answer.reason is Reason.INVALID_JSON


@pytest.mark.parametrize("name", ["menu", "random_edit"])
def test_a_menu_that_is_used_up_says_so(name: str, state: State) -> None:
    fixed = replace(state, target=replace(state.target, knobs={}))
    draft = arm(name).propose(fixed)
    assert isinstance(draft.answer, Rejected) and draft.answer.reason is Reason.NOTHING_LEFT
    assert draft.calls == (), "nothing is asked"


def test_random_edit_is_uniform_over_the_same_menu(state: State) -> None:
    control = strategies.build("random_edit", None, Sampling())
    drawn = Counter(control.propose(replace(state, seed=seed)).answer for seed in range(400))
    assert set(drawn) == {move.text for move in menu(state)}
    assert min(drawn.values()) > 60, "100 expected of each; 60 is 4.6 standard deviations off"


def test_random_search_draws_every_knob_and_repeats_with_the_seed(state: State) -> None:
    control = strategies.build("random_search", None, Sampling())
    draft = control.propose(state)
    assert draft.answer == control.propose(state).answer
    assert isinstance(draft.answer, str)
    assert [line.split(" = ")[0] for line in draft.answer.splitlines()] == ["LR", "WIDTH"]
    assert isinstance(apply(draft.answer, state.source), Edited)


def test_the_global_random_state_does_not_matter(state: State) -> None:
    import random

    answers = set()
    for number in range(3):
        random.seed(number)
        for name in ("random_edit", "random_search"):
            answers.add(strategies.build(name, None, Sampling()).propose(state).answer)
    assert len(answers) == 2


def test_every_strategy_has_its_own_name_and_hash() -> None:
    arms = [experienced(name) for name in strategies.ARMS]
    assert [a.name for a in arms] == list(strategies.ARMS)
    assert len({a.template_hash for a in arms}) == len(arms)
    controls = [strategies.build(name, None, Sampling(), SEEN) for name in strategies.CONTROLS]
    assert [c.name for c in controls] == list(strategies.CONTROLS)


def test_an_unknown_strategy_and_a_missing_brain_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="unknown strategy 'x'; there are: bare"):
        strategies.build("x", None, Sampling())
    with pytest.raises(UsageError, match="asks a brain; name one with --brain"):
        strategies.build("bare", None, Sampling())


# --- what helped elsewhere -----------------------------------------------------------------------

SEEN = (
    Experience("WIDTH", 8, 4, gain=0.3, win=True),
    Experience("WIDTH", 16, 8, gain=0.2, win=True),
    Experience("WIDTH", 32, 16, gain=0.1, win=True),
    Experience("LR", 0.1, 0.2, gain=0.5, win=True),
    Experience("LR", 0.2, 0.1, gain=-0.4, win=False),
    Experience("DROPOUT", 0.1, 0.2, gain=0.9, win=True),
)


def experienced(name: str, *texts: str) -> Strategy:
    brain = Scripted("scripted:x", "d", [Reply(text) for text in texts], window=32768, position=0)
    return strategies.build(name, brain, Sampling(), SEEN)


def test_replay_repeats_what_won_most_often(state: State) -> None:
    assert experienced("replay").propose(state).answer == "WIDTH = 4"
    tried = replace(state, trials=(*state.trials, with_code(
        a_trial(5), TRAIN.replace("WIDTH = 8", "WIDTH = 4"))))  # fmt: skip
    assert experienced("replay").propose(tried).answer == "LR = 0.2"


def test_replay_knows_nothing_else_and_then_chooses_by_chance(state: State) -> None:
    only = (Experience("WIDTH", 8, 4, gain=-0.3, win=False),)
    strategy = strategies.build("replay", None, Sampling(), only)
    answers = {
        str(strategy.propose(replace(state, seed=seed)).answer) for seed in range(20)
    }  # fmt: skip
    assert "WIDTH = 4" in answers, "measured and lost ranks above never measured"
    assert len(answers) == 1


def test_few_shot_shows_the_best_wins_and_is_the_menu_otherwise(state: State) -> None:
    answer = '{"reason": "r", "move": "WIDTH = 4"}'
    (shots,) = experienced("few_shot", answer).propose(state).calls
    (plain,) = arm("menu", answer).propose(state).calls
    examples, *rest = shots.messages[1].parts
    assert examples == (
        "Changes that helped other versions of this script:\n"
        "- LR: 0.1 -> 0.2 (better by 0.50)\n"
        "- WIDTH: 8 -> 4 (better by 0.30)\n"
        "- WIDTH: 16 -> 8 (better by 0.20)\n"
    ), "two of a knob and direction, no loss, no knob that the target lacks"
    assert tuple(rest) == plain.messages[1].parts and shots.schema == plain.schema
    assert shots.messages[0] == plain.messages[0]


def test_experience_is_needed_and_checked(state: State, tmp_path: Path) -> None:
    for name in strategies.EXPERIENCED:
        with pytest.raises(UsageError, match="--experience FILE"):
            arm(name)
    path = tmp_path / "e.json"
    for text in ("", "[]", "{}", '[{"knob": "LR"}]', '[{"knob": "LR", "old": 1, "new": 2}]'):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"e\.json"):
            experience.read(path)
    with pytest.raises(UsageError, match="cannot read"):
        experience.read(tmp_path / "none.json")
    path.write_text(json.dumps([vars(seen) for seen in SEEN]))
    assert experience.read(path) == SEEN


def test_the_way_of_a_move() -> None:
    number, ladder = Knob("A", low=1, high=2), Knob("B", choices=("S", "SL", "L"))
    assert [way(number, 1.0, 2.0), way(number, 2.0, 1.0)] == ["up", "down"]
    assert [way(ladder, "S", "L"), way(ladder, "L", "SL")] == ["up", "down"]
    assert way(ladder, "LSL", "L") == "to 'L'"
