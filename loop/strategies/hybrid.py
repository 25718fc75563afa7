"""`hybrid`: the optimiser proposes, the brain may override on a fixed share of the trials, and the
optimiser learns from all of them (the arm that came first in arXiv 2603.24647).

In the brain's trials it sees what the optimiser would try, the best trials with their settings, and
the latest ones, and answers under a schema with the settings that it wants changed.
"""

import json
from typing import Any

import jsonschema

from loop import knobs, optimiser
from loop.context import State, history
from loop.edit import sha256, usable
from loop.strategies.asking import Asking
from loop.strategies.question import OVERHEAD, goal
from loop.strategies.tpe import draft as of_configuration
from loop.strategy import Draft
from loop.trial import Json, Message, Reason, Rejected, Scored, Trial

INSTRUCTIONS = """\
You work with an optimiser on the settings of a training script. {goal}
The optimiser proposes settings; you may change some of them before they are tried.
Answer as JSON: first "reason" (one short sentence), then "settings" (only those you change; an
empty object accepts the proposal as it is).
"""
SPACE = "Settings and their values:\n{space}\n"
BEST = "\nBest trials so far:\n{best}"
HISTORY = "\nLatest trials (id. change: result, decision):\n{history}"
PROPOSAL = "\nThe optimiser proposes:\n{proposal}\n\nWhich settings do you change?"
BEST_SHOWN = 5
REASON_CHARS = 160


class Hybrid(Asking):
    """Optimiser and brain take turns, by a coin of the proposal's own seed."""

    name = "hybrid"
    template_hash = sha256(INSTRUCTIONS + SPACE + BEST + HISTORY + PROPOSAL)

    def propose(self, state: State) -> Draft:
        drawn = optimiser.propose(state)
        if not drawn:
            return Draft(Rejected(Reason.NOTHING_LEFT, "the target has no knobs"))
        if state.rng.random() >= self.sampling.share:
            return of_configuration(drawn, state, "tpe")
        return self._override(drawn, state)

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """What the optimiser would have tried comes round again by itself."""

    def _override(self, drawn: optimiser.Values, state: State) -> Draft:
        system = INSTRUCTIONS.format(goal=goal(state))
        space = SPACE.format(space="\n".join(_space(state.target.knobs[name]) for name in drawn))
        best = BEST.format(best="".join(_best(trial) for trial in _ranked(state.trials)))
        lines = "\n".join(f"{name} = {value!r}" for name, value in drawn.items())
        ask = PROPOSAL.format(proposal=lines)
        count = self.brain.count
        room = self.window - OVERHEAD - sum(map(count, (system, space, best, HISTORY, ask)))
        text, shown = history(state.trials, room, count)
        tried = HISTORY.format(history=text) if text else ""
        messages = (Message("system", (system,)), Message("user", (space, best, tried, ask)))
        call = self.ask(messages, state.seed, schema=schema_of(state, drawn))
        text_or = usable(call.replies[0])
        changed = text_or if isinstance(text_or, Rejected) else overrides(text_or, state, drawn)
        if isinstance(changed, Rejected):
            return Draft(changed, "", (call,), shown, {"by": "brain"})
        draft = of_configuration(drawn | changed, state, "brain")
        notes = {"by": "brain", "overrides": len(changed)}
        return Draft(draft.answer, draft.description, (call,), shown, notes)


def schema_of(state: State, drawn: optimiser.Values) -> Json:
    """The JSON schema of an answer: a reason, then any of the settings, each in its space."""
    properties = {name: _type(state.target.knobs[name]) for name in drawn}
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": REASON_CHARS},
            "settings": {
                "type": "object",
                "properties": properties,
                "additionalProperties": False,
            },
        },
        "required": ["reason", "settings"],
        "additionalProperties": False,
    }


def overrides(text: str, state: State, drawn: optimiser.Values) -> optimiser.Values | Rejected:
    """The settings that the JSON `text` changes, validated, or why it is none."""
    try:
        answer = json.loads(text)
        jsonschema.validate(answer, schema_of(state, drawn))
    except (json.JSONDecodeError, RecursionError) as error:
        return Rejected(Reason.INVALID_JSON, f"not JSON: {error}")
    except jsonschema.ValidationError as error:
        return Rejected(Reason.INVALID_JSON, f"not the schema: {error.message[:200]}")
    return {name: _of_type(drawn[name], value) for name, value in answer["settings"].items()}


def _of_type(like: knobs.Value, value: Any) -> knobs.Value:
    """JSON has one kind of number; the file has two."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(like, float) and isinstance(value, int):
        return float(value)
    return int(value) if isinstance(like, int) and isinstance(value, float) else value


def _type(knob: knobs.Knob) -> Json:
    if knob.choices:
        return {"enum": [list(c) if isinstance(c, tuple) else c for c in knob.choices]}
    return {"type": "number", "minimum": knob.low, "maximum": knob.high}


def _space(knob: knobs.Knob) -> str:
    if knob.choices:
        return f"{knob.name}: one of {', '.join(map(repr, knob.choices))}"
    return f"{knob.name}: {knob.low:g} to {knob.high:g}"


def _ranked(trials: tuple[Trial, ...]) -> list[Trial]:
    """The best scored trials, the best first."""
    scored = [(t.outcome.metric, t) for t in trials if isinstance(t.outcome, Scored)]
    scored.sort(key=lambda pair: pair[0].value * (1 if pair[0].direction == "min" else -1))
    return [trial for _, trial in scored[:BEST_SHOWN]]


def _best(trial: Trial) -> str:
    assert isinstance(trial.outcome, Scored), "only scored trials are ranked"
    settings = ", ".join(f"{k}={v!r}" for k, v in optimiser.configuration(trial).items())
    return f"{trial.id}. {trial.outcome.metric.value:.4f}: {settings}\n"
