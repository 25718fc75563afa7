"""How an arm samples its brain."""

from dataclasses import dataclass

from loop.brain import Brain
from loop.context import Shown, State, history
from loop.trial import Call, Json, Message

OVERHEAD = 64  # tokens that a chat template adds around a few messages, generously


@dataclass(frozen=True)
class Sampling:
    """The same for all arms of a comparison, except where a method prescribes its own."""

    temperature: float = 0.7
    max_tokens: int = 512

    def ask(
        self,
        brain: Brain,
        messages: tuple[Message, ...],
        seed: int,
        schema: Json | None = None,
        purpose: str = "propose",
    ) -> Call:
        """One request for one reply, and the record of it."""
        replies = brain.chat(
            messages,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=seed,
            schema=schema,
        )
        return Call(
            messages, replies, self.temperature, self.max_tokens, seed, schema, purpose=purpose
        )

    def room(self, brain: Brain, *texts: str) -> int:
        """Tokens of the window left beside `texts` and a reply; negative if they do not fit."""
        return brain.window - self.max_tokens - sum(map(brain.count, texts)) - OVERHEAD

    def history(self, brain: Brain, state: State, frame: str, *texts: str) -> tuple[str, Shown]:
        """The trials so far in `frame`, as many as fit beside `texts`; "" before there are any."""
        text, shown = history(state.trials, self.room(brain, frame, *texts), brain.count)
        return (frame.format(history=text) if text else ""), shown
