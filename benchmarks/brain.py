"""How fast the embedded model reads and writes, in tokens a second, with one request at a time."""

from collections.abc import Iterator

from benchmarks.cache import BRAIN
from benchmarks.harness import Bench
from benchmarks.measure import Figure, cost, of
from loop import brains
from loop.trial import Message

READ, WRITTEN = 600, 64
"""Tokens: about as many as a menu's prompt has, and its answer."""


def run(bench: Bench) -> Iterator[Figure]:
    """Reading with nothing cached; writing with all of the prompt cached."""
    brain = brains.connect(BRAIN)
    words = " ".join(f"knob{number}" for number in range(READ))[: READ * 3]
    reading, writing = [], []
    for number in range(bench.rounds):
        prompt = (Message("user", (f"{number} {words}",)),)  # differs from its first token on
        seen = cost(lambda prompt=prompt: brain.chat(prompt, max_tokens=1))  # type: ignore[misc]
        reading.append(brain.count(prompt[0].content) / seen.seconds)
        tale = (Message("user", ("Tell a long story.",)),)
        brain.chat(tale, max_tokens=1)
        reply = brain.chat(tale, max_tokens=WRITTEN, seed=number)[0]
        writing.append(reply.completion_tokens / reply.seconds)
    yield of("reads", reading, "tokens/s", note=f"{BRAIN}, all cores, nothing cached")
    yield of("writes", writing, "tokens/s", note=f"{BRAIN}, all cores")
