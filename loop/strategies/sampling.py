"""How an arm samples its brain."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """The same for all arms of a comparison, except where a method prescribes its own.

    `samples`: votes of self-consistency. `share`: of the trials in which a hybrid asks its brain.
    """

    temperature: float = 0.7
    max_tokens: int = 512
    samples: int = 3
    share: float = 0.3
