"""`menu`: reason first, then choose one move from a list, under a JSON schema.

The engine enforces the schema where it can; the client validates again, since some ignore it.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import jsonschema

from loop.context import Shown, State, history
from loop.edit import sha256, usable
from loop.moves import ORDER, Move, listed, menu, order
from loop.strategies.asking import Asking
from loop.strategies.question import OVERHEAD, goal
from loop.strategy import Draft
from loop.trial import Json, Message, Reason, Rejected

INSTRUCTIONS = """\
You tune the settings of a training script, one change at a time. {goal}
From a list of possible changes you choose the one that is most likely to help.
Answer as JSON: first "reason" (one short sentence), then "move" (one entry of the list).
"""
SETTINGS = "Settings now:\n{settings}\n"
MOVES = "\nPossible changes:\n{moves}\n"
HISTORY = "\nTried so far (id. change: result, decision):\n{history}"
QUESTION = "\nWhich one, not tried on these settings yet, is most likely to improve {metric}?"
TEMPLATE = INSTRUCTIONS + SETTINGS + MOVES + HISTORY + QUESTION
REASON_CHARS = 160


def messages(
    state: State, moves: list[Move], window: int, count: Callable[[str], int]
) -> tuple[tuple[Message, ...], Shown]:
    """The settings, the list that `moves` are of, what was tried (fitted to `window` tokens by
    `count`), and the question: only the last two change while the incumbent stands."""
    system = INSTRUCTIONS.format(goal=goal(state))
    now = settings(state)
    choices = listed(state)
    assert set(moves) <= set(choices), "what may be chosen is on the list"
    offer = MOVES.format(moves="\n".join(f"- {move.text}" for move in choices))
    question = QUESTION.format(metric=state.target.metric)
    fixed = sum(map(count, (system, now, offer, HISTORY, question))) + OVERHEAD
    text, shown = history(state.trials, window - fixed, count)
    tried = HISTORY.format(history=text) if text else ""
    user = Message("user", (now, offer, tried, question))
    return (Message("system", (system,)), user), shown


def settings(state: State) -> str:
    """The knobs of the incumbent, a line each."""
    values = state.values().items()
    return SETTINGS.format(settings="\n".join(f"{name} = {value!r}" for name, value in values))


class Menu(Asking):
    """The arm that cannot make an invalid edit: it chooses among valid ones."""

    name = "menu"
    template_hash = sha256(TEMPLATE)

    def propose(self, state: State) -> Draft:
        moves = menu(state)
        if not moves:
            return Draft(Rejected(Reason.NOTHING_LEFT, "every single-knob move has been tried"))
        prompt, shown = self.messages(state, moves, self.window, self.brain.count)
        call = self.ask(prompt, state.seed, schema=schema_of(moves))
        notes = {"moves": len(moves), ORDER: order(state)}
        return self._draft(Draft("", "", (call,), shown, notes), moves)

    def messages(
        self, state: State, moves: list[Move], window: int, count: Callable[[str], int]
    ) -> tuple[tuple[Message, ...], Shown]:
        """The prompt, in at most `window` tokens by `count`, and what of the state is in it."""
        return messages(state, moves, window, count)

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> Draft | None:
        """Asks for the JSON once more."""
        again = super().repair(state, draft, rejected)
        return None if again is None else self._draft(again, menu(state))

    def _draft(self, draft: Draft, moves: list[Move]) -> Draft:
        """`draft` with the move that its last call chose as its answer."""
        text = usable(draft.calls[-1].replies[0])
        move = text if isinstance(text, Rejected) else chosen(text, moves)
        if isinstance(move, Rejected):
            return replace(draft, answer=move, description="")
        return replace(draft, answer=move.text, description=move.description)


def schema_of(moves: list[Move]) -> Json:
    """The JSON schema of an answer: a reason, then one of `moves` by its text."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": REASON_CHARS},
            "move": {"type": "string", "enum": [move.text for move in moves]},
        },
        "required": ["reason", "move"],
        "additionalProperties": False,
    }


def chosen(text: str, moves: list[Move]) -> Move | Rejected:
    """The move that the JSON `text` chooses, validated, or why it chooses none."""
    try:
        answer = json.loads(text)
        jsonschema.validate(answer, schema_of(moves))
    except (ValueError, RecursionError) as error:  # ValueError also for a number too long
        return Rejected(Reason.INVALID_JSON, f"not JSON: {error}")
    except jsonschema.ValidationError as error:
        return Rejected(Reason.INVALID_JSON, f"not the schema: {error.message[:200]}")
    return next(move for move in moves if move.text == answer["move"])
