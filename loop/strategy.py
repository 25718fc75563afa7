"""The Strategy protocol: (state) -> Draft, the answer that the loop turns into an edit."""

from dataclasses import dataclass, field
from typing import Protocol

from loop.context import Shown, State
from loop.edit import Edited
from loop.trial import Call, Json, Rejected


@dataclass(frozen=True)
class Draft:
    """What a strategy came up with.

    `answer`: text in the edit language of `loop.edit` (a control writes `KNOB = value` lines), or
    why there is none. `description`: "" leaves it to the loop, which knows what the edit amounts
    to. `calls`: every request to a brain that led there. `notes`: for the record.
    """

    answer: str | Rejected
    description: str = ""
    calls: tuple[Call, ...] = ()
    shown: Shown = field(default_factory=Shown)
    notes: Json = field(default_factory=dict)


class Strategy(Protocol):
    """How a proposal comes about. Stateless between trials: all it knows is the state."""

    name: str
    template_hash: str
    model: str
    """Name of the brain it asks; "" for a control."""
    model_digest: str

    def propose(self, state: State) -> Draft:
        """Raises BrainError when its brain cannot answer at all."""
        ...

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> Draft | None:
        """One more attempt after `draft` was rejected, its calls added; None: no use."""
        ...


def described(draft: Draft, edited: Edited | Rejected) -> str:
    """In the words of the strategy; else the knobs that moved; else what the answer says first.

    A model may have written it: one line, fit for a commit message, a table and a terminal.
    """
    text = draft.description
    if not text and not isinstance(draft.answer, Rejected):
        text = draft.answer.strip().partition("\n")[0]
        if isinstance(edited, Edited) and edited.edit.knobs:
            text = ", ".join(f"{c.knob}: {c.old} -> {c.new}" for c in edited.edit.knobs)
    printable = "".join(c if c.isprintable() else " " for c in text[:1000])
    return " ".join(printable.split())[:200]
