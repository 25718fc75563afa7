"""What all arms that ask a brain share: the brain, the sampling, and one attempt at repair."""

from dataclasses import replace

from loop.brain import Brain
from loop.context import State
from loop.edit import usable
from loop.errors import ContextOverflow
from loop.strategies.sampling import Sampling
from loop.strategy import Draft
from loop.trial import Call, Json, Message, Reason, Rejected

REPAIR = """\
That was not accepted: {error}.
Answer again, with one other change, in the form that was asked for.
"""
BEYOND_REPAIR = (Reason.NOTHING_LEFT, Reason.CONTEXT_OVERFLOW, Reason.TOO_LARGE)


class Asking:
    """Base of the arms. `window`: tokens for a prompt beside the reply."""

    def __init__(self, brain: Brain, sampling: Sampling) -> None:
        self.brain, self.sampling = brain, sampling
        self.model, self.model_digest = brain.name, brain.digest
        self.window = brain.window - sampling.max_tokens

    def ask(
        self,
        messages: tuple[Message, ...],
        seed: int,
        *,
        n: int = 1,
        schema: Json | None = None,
        purpose: str = "propose",
    ) -> Call:
        """One request for `n` replies, and the record of it."""
        temperature, max_tokens = self.sampling.temperature, self.sampling.max_tokens
        replies = self.brain.chat(
            messages, n=n, temperature=temperature, max_tokens=max_tokens, seed=seed, schema=schema
        )
        return Call(messages, replies, temperature, max_tokens, seed, schema, purpose=purpose)

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> Draft | None:
        """Tell the brain once why its answer was not accepted. None: it cannot be told."""
        if rejected.reason in BEYOND_REPAIR or not draft.calls:
            return None
        last = draft.calls[-1]
        told = REPAIR.format(error=rejected.detail or rejected.reason)
        messages = (
            *last.messages,
            Message("assistant", (last.replies[0].text,)),
            Message("user", (told,)),
        )
        try:
            call = self.ask(messages, state.seed + 1, schema=last.schema, purpose="repair")
        except ContextOverflow:
            return None
        answer = usable(call.replies[0])
        return replace(
            draft,
            answer=answer,
            description="",
            calls=(*draft.calls, call),
            notes=draft.notes | {"repaired": rejected.reason},
        )
