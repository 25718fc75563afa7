"""What tokens cost at an API, by `prices.toml`, which names its sources and their dates."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loop.brain import Brain
from loop.errors import UsageError
from loop.trial import Json

PRICES = Path(__file__).parent / "prices.toml"
_DATED = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens: read anew, read from the cache, written to it, and replied."""

    prompt: float
    cached: float
    written: float
    completion: float

    def dollars(self, prompt: int, cached: int, completion: int, written: int = 0) -> float:
        """What a request costs. `prompt`: all tokens of it, `cached` and `written` among them."""
        anew = prompt - cached - written
        return (
            anew * self.prompt
            + cached * self.cached
            + written * self.written
            + completion * self.completion
        ) / 1e6


def price_of(name: str) -> Price | None:
    """The price of the brain `provider:model`, or None where none is known."""
    provider, _, model = name.partition(":")
    models: Json = _table().get(provider, {}).get("models", {})
    entry = models.get(model) or models.get(_DATED.sub("", model))
    if entry is None:
        return None
    return Price(**{"written": entry["prompt"]} | entry)


def source_of(name: str) -> str:
    """Where the price of `provider:model` was read, and when."""
    entry = _table()[name.partition(":")[0]]
    return f"{entry['source']}, {entry['date']}"


def require(brain: Brain) -> None:
    """Raises UsageError if `brain` is one that may cost dollars, and nobody knows how many."""
    if getattr(brain, "price", "free") is None:
        raise UsageError(
            f"--max-dollars cannot hold: no price is known for {brain.name} there; write it into "
            f"{PRICES}, or take --max-tokens"
        )


@cache
def _table() -> Json:
    return tomllib.loads(PRICES.read_text(encoding="utf-8"))
