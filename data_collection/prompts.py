"""The prompt that the loop sends in a row's state, made by the arms' own code."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from data_collection.features import trial as trial_of
from loop import knobs, target
from loop.context import State
from loop.errors import ContextOverflow, TargetError
from loop.moves import Move, menu
from loop.strategies import bare, pointwise
from loop.strategies import menu as menu_arm
from loop.strategies.question import ask_for_edit
from loop.target import Target
from loop.trial import Json, Message, Trial

Count = Callable[[str], int]
CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Standing:
    """A row with the state that its proposal was made in."""

    row: Json
    trial: Trial
    state: State


@dataclass(frozen=True)
class Prompt:
    """`moves`: what a menu offers, in order. `widened`: was the tried move added to the menu?"""

    messages: tuple[Message, ...]
    moves: tuple[Move, ...] = ()
    widened: bool = False


def counter(tokenizer: str) -> tuple[Count, str]:
    """How tokens are counted, and what that is called: by a tokenizer's file, or an estimate.

    `tokenizer`: a tokenizer.json, a folder that holds one, or a GGUF file. Raises UsageError.
    """
    if not tokenizer:
        return _estimate, f"an estimate, {CHARS_PER_TOKEN} characters each"
    from data_collection.tokens import load

    return load(Path(tokenizer)), tokenizer


def _estimate(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)


def standings(rows: Iterator[Json]) -> Iterator[tuple[Json, Standing | str]]:
    """Rows of whole runs, in order -> each with its state, or why it has none to be shown.

    The trials of a run are kept while it is read, without what was said to brains.
    """
    run = ""
    trials: list[Trial] = []
    kept: dict[int, Trial] = {}
    for row in rows:
        if row["run_id"] != run:
            run, trials, kept = row["run_id"], [], {}
        trial = trial_of(row)
        yield row, _standing(row, trial, trials, kept)
        light = replace(trial, proposal=replace(trial.proposal, calls=(), answer=""))
        trials.append(light)
        if trial.decision.verdict != "discard":
            kept[trial.id] = light


def _standing(
    row: Json, trial: Trial, trials: list[Trial], kept: dict[int, Trial]
) -> Standing | str:
    if trial.decision.verdict == "baseline":
        return "a baseline proposes nothing"
    if row["left_out"]:
        return str(row["left_out"]).replace("_", " ")
    if row["source"] is None:
        return "its file is not known"
    incumbent = kept.get(-1 if trial.context.incumbent is None else trial.context.incumbent)
    if incumbent is None:
        return "its incumbent is not in the corpus"
    found = _target(row["target_spec"])
    if found is None:
        return "its target cannot be read"
    return Standing(row, trial, State(found, row["source"], incumbent, tuple(trials), row["seed"]))


@lru_cache(maxsize=16)
def _target(text: str) -> Target | None:
    spec = json.loads(text)
    try:
        return target.from_toml({"folder": ".", "command": ["{python}", "x"], **spec})
    except (TypeError, ValueError, KeyError, TargetError):
        return None


def prompt(
    strategy: str, state: State, tried: tuple[Trial, ...], window: int, count: Count
) -> Prompt | str:
    """What `strategy` sends in `state`, or why nothing. `window`: tokens beside the reply.

    For a menu, `tried` names the trials whose moves must be among those offered: a move of another
    size than the target's steps is added to its knob's space, and is said to be.
    """
    try:
        if strategy == "bare":
            return Prompt(bare.messages(ask_for_edit(state, window, count)))
        if strategy == "pointwise":
            return _judged(state, tried, window, count)
        return _menu(state, tried, window, count)
    except ContextOverflow:
        return "its prompt does not fit the window"
    except (SyntaxError, ValueError, RecursionError):
        return "its file does not parse"


def _menu(state: State, tried: tuple[Trial, ...], window: int, count: Count) -> Prompt | str:
    """Of single moves only. The moves on offer are those of the loop for this state."""
    widened = False
    for trial in tried:
        edit = trial.proposal.edit
        if edit is None or len(edit.knobs) != 1:
            continue
        name, new = edit.knobs[0].knob, knobs.literal(edit.knobs[0].new)
        if any(move.knob == name and move.new == new for move in menu(state)):
            continue
        wider = replace(state.target, knobs=state.target.knobs | {name: _wider(state, name, new)})
        state = replace(state, target=wider)
        widened = True
    moves = menu(state)
    if not moves:
        return "its menu is empty"
    messages, _ = menu_arm.messages(state, moves, window, count)
    if sum(count(message.content) for message in messages) > window:
        return "its prompt does not fit the window"
    return Prompt(messages, tuple(moves), widened)


def _judged(state: State, tried: tuple[Trial, ...], window: int, count: Count) -> Prompt | str:
    """The question about the one move of the one trial in `tried`."""
    edit = tried[0].proposal.edit
    if edit is None or len(edit.knobs) != 1:
        return "no single move"
    change = edit.knobs[0]
    name, new = change.knob, knobs.literal(change.new)
    move = Move(name, knobs.read(state.source)[name], new)
    (messages,) = pointwise.messages(state, [move])
    if sum(count(message.content) for message in messages) > window:
        return "its prompt does not fit the window"
    return Prompt(messages, (move,), move not in menu(state))


def _wider(state: State, name: str, new: knobs.Value) -> knobs.Knob:
    """The knob's space with `new` one step from where the knob is, its other step kept."""
    old = knobs.read(state.source)[name]
    known = state.target.knobs.get(name)
    near = known.moves(old) if known else []
    if not isinstance(new, int | float) or not isinstance(old, int | float):
        return knobs.Knob(name, choices=tuple(dict.fromkeys((*near, old, new))))
    other = [n for n in near if isinstance(n, int | float) and (n > old) != (new > old)]
    values: list[int | float] = [*other, old, new]
    return knobs.Knob(name, choices=tuple(sorted(values)))
