"""How fast the embedded model reads and writes, against llama.cpp's own server asked straight.

The other side is the same file and the same threads in a server that has the library's defaults,
called inside the process: no window to check, no address, no caps. One request at a time.
"""

import os
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from benchmarks.harness import Bench
from benchmarks.measure import Cost, Figure, Goal, alternate, cost, of, ratio
from loop import brains
from loop.brains import models
from loop.errors import BrainError
from loop.trial import Message

MODEL = "smollm2-135m"
READ, WRITTEN = 600, 64
"""Tokens: about as many as a menu's prompt has, and its answer."""
TALE = "Tell a long story."
WITHIN: Goal = ("<=", 1.1)
Ask = Callable[[str, int], tuple[int, int]]
"""A prompt, most tokens of the reply -> tokens read anew, tokens written."""


def run(bench: Bench) -> Iterator[Figure]:
    """Reading with nothing cached; writing with all of the prompt cached."""
    brain, straight = brains.connect(f"llamacpp:{MODEL}"), Straight()

    def chat(text: str, most: int) -> tuple[int, int]:
        reply = brain.chat((Message("user", (text,)),), max_tokens=most)[0]
        return reply.prompt_tokens - reply.cached_tokens, reply.completion_tokens

    for verb, work in (("reads", reads), ("writes", writes)):
        sides = {"ours": work(chat), "straight": work(straight.ask)}
        for warm in sides.values():
            warm()
        straight.told.clear()
        costs = alternate(sides, bench.rounds)
        own = max(told[verb] for told in straight.told)
        note = f"llama.cpp's own clock: {own:.0f} tokens/s, asked straight, at its best"
        yield ratio(f"{verb} a token / asked straight", costs["ours"], costs["straight"], WITHIN)
        yield of(verb, [1 / spent.seconds for spent in costs["ours"]], "tokens/s", note=note)


def reads(ask: Ask) -> Callable[[], Cost]:
    """Reads a prompt that differs from its first token on. Returns what a token took."""
    words = " ".join(f"knob{number}" for number in range(READ))[: READ * 3]
    numbers = count()
    return lambda: _each(lambda: ask(f"{next(numbers)} {words}", 1)[0])


def writes(ask: Ask) -> Callable[[], Cost]:
    """Writes on a prompt that it knows. Returns what a token took."""

    def work() -> Cost:
        ask(TALE, 1)
        return _each(lambda: ask(TALE, WRITTEN)[1])

    return work


class Straight:
    """llama.cpp's server as the library has it. `told`: its own tokens a second, by request."""

    def __init__(self) -> None:
        try:
            import xllamacpp  # type: ignore[import-untyped,unused-ignore]
        except ImportError as error:
            raise BrainError(f"xllamacpp is not here ({error}): pip install it") from None
        params = xllamacpp.CommonParams()
        params.model.path = str(models.cached(MODEL)[0])
        params.n_ctx, params.n_parallel, params.verbosity = 8192, 1, -1
        threads = len(os.sched_getaffinity(0))
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server: Any = xllamacpp.Server(params)
        self.told: list[dict[str, float]] = []

    def ask(self, text: str, most: int) -> tuple[int, int]:
        """As `Ask`."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": most}
        answer = self._server.handle_chat_completions(body | {"temperature": 0.0})
        told = answer["timings"]
        speeds = {"reads": told["prompt_per_second"], "writes": told["predicted_per_second"]}
        self.told.append(speeds)
        return told["prompt_n"], told["predicted_n"]


def _each(work: Callable[[], int]) -> Cost:
    done: list[int] = []
    spent = cost(lambda: done.append(work()))
    return Cost(spent.seconds / done[0], spent.processor / done[0])
