"""What a run may spend before it stops: dollars, tokens, hours. Asked between trials.

A trial in flight is finished, so a cap is overshot by less than one trial.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loop.trial import Json, Reply, Trial

UNUSED_TOKENS = ("tokens_read", "tokens_written")


@dataclass(frozen=True)
class Caps:
    """0: no cap. `dollars` and `tokens` (prompts and replies) count over the whole run, resumed or
    not; `hours` count from the start of this process."""

    dollars: float = 0.0
    tokens: int = 0
    hours: float = 0.0

    def reached(self, trials: Iterable[Trial], seconds: float, unused: Sequence[Json] = ()) -> str:
        """Which cap the run has reached, in a sentence; "" while it may go on.

        `unused`: what proposals cost that were made ahead for nothing (loop/ahead.py).
        """
        replies = [r for t in trials for call in t.proposal.calls for r in call.replies]
        dollars = sum(reply.dollars or 0.0 for reply in replies)
        dollars += sum(facts.get("dollars") or 0.0 for facts in unused)
        tokens = sum(map(tokens_of, replies))
        tokens += sum(facts.get(name, 0) for facts in unused for name in UNUSED_TOKENS)
        if 0 < self.dollars <= dollars:
            return f"${dollars:.2f} spent of --max-dollars {self.dollars:g}"
        if 0 < self.tokens <= tokens:
            return f"{tokens:,} tokens used of --max-tokens {self.tokens:,}"
        if 0 < self.hours * 3600 <= seconds:
            return f"{seconds / 3600:.2f} hours gone of --max-hours {self.hours:g}"
        return ""


def tokens_of(reply: Reply) -> int:
    """Tokens read and written for one reply, those out of a cache included."""
    return reply.prompt_tokens + reply.completion_tokens
