"""`menu`: reason first, then choose one move from a list, under a JSON schema.

The engine enforces the schema where it can; the client validates again, since some ignore it.
"""

import json

import jsonschema

from loop.brain import Brain
from loop.context import State
from loop.edit import sha256, usable
from loop.moves import Move, menu
from loop.strategies.sampling import Sampling
from loop.strategy import Draft
from loop.trial import Json, Message, Reason, Rejected

INSTRUCTIONS = """\
You tune the settings of a training script, one change at a time. {goal}
From a list of possible changes you choose the one that is most likely to help.
Answer as JSON: first "reason" (one short sentence), then "move" (one entry of the list).
"""
SETTINGS = "Settings now:\n{settings}\n"
HISTORY = "\nTried so far (id. change: result, decision):\n{history}"
MOVES = "\nPossible changes:\n{moves}\n\nWhich one is most likely to improve {metric}?"
REASON_CHARS = 160


class Menu:
    """The arm that cannot make an invalid edit: it chooses among valid ones."""

    name = "menu"
    template_hash = sha256(INSTRUCTIONS + SETTINGS + HISTORY + MOVES)

    def __init__(self, brain: Brain, sampling: Sampling) -> None:
        self._brain, self._sampling = brain, sampling
        self.model, self.model_digest = brain.name, brain.digest

    def propose(self, state: State) -> Draft:
        moves = menu(state)
        if not moves:
            return Draft(Rejected(Reason.NOTHING_LEFT, "every single-knob move has been tried"))
        target = state.target
        goal = f"{'Lower' if target.direction == 'min' else 'Higher'} {target.metric} is better."
        system = INSTRUCTIONS.format(goal=goal)
        settings = SETTINGS.format(
            settings="\n".join(f"{name} = {value!r}" for name, value in state.values().items())
        )
        choices = MOVES.format(
            moves="\n".join(f"- {move.text}" for move in moves), metric=target.metric
        )
        tried, shown = self._sampling.history(
            self._brain, state, HISTORY, system, settings, choices
        )
        messages = (Message("system", (system,)), Message("user", (settings, tried, choices)))
        schema = schema_of(moves)
        call = self._sampling.ask(self._brain, messages, state.seed, schema)
        text = usable(call.replies[0])
        move = text if isinstance(text, Rejected) else chosen(text, moves, schema)
        if isinstance(move, Rejected):
            return Draft(move, "", (call,), shown)
        return Draft(move.text, move.description, (call,), shown, {"moves": len(moves)})


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


def chosen(text: str, moves: list[Move], schema: Json) -> Move | Rejected:
    """The move that the JSON `text` chooses, validated, or why it chooses none."""
    try:
        answer = json.loads(text)
        jsonschema.validate(answer, schema)
    except (json.JSONDecodeError, RecursionError) as error:
        return Rejected(Reason.INVALID_JSON, f"not JSON: {error}")
    except jsonschema.ValidationError as error:
        return Rejected(Reason.INVALID_JSON, f"not the schema: {error.message[:200]}")
    return next(move for move in moves if move.text == answer["move"])
