"""The Brain protocol: what a strategy may ask of a language model."""

from collections.abc import Sequence
from typing import Protocol

from loop.trial import Json, Message, Reply

__all__ = ["Brain", "Message", "Reply"]


class Brain(Protocol):
    """A language model behind one method. Attributes are read into every record."""

    name: str
    """`provider:model`, as typed on the command line."""
    digest: str
    """What identifies the weights: a sha256, a server's digest, or a dated model id."""
    window: int
    """Tokens that prompt and completion may take together."""

    def count(self, text: str) -> int:
        """Tokens that `text` takes, by the model's own tokenizer or a cautious estimate."""
        ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int = 0,
        schema: Json | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
    ) -> tuple[Reply, ...]:
        """Ask once, get `n` replies, each with the nats of its `logprobs` likeliest first tokens.

        Raises ContextOverflow when the prompt and `max_tokens` do not fit `window`, and BrainError
        when the model cannot be reached or loaded. A reply that ignores `schema` is returned as it
        is: the caller validates; one without `logprobs` comes from a model that tells none.
        """
        ...
