"""What the embedded llama.cpp serves: exact log-probabilities and the prompt as it renders it.

Source: llama.cpp, tools/server/README.md (`/completion` with `n_probs`, which are taken before any
sampling; `/apply-template`; `/tokenize`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import Base
from loop.brains.llamacpp import LlamaCpp
from loop.errors import AutoresearchError
from loop.trial import Json

WINDOW = 1024
"""Tokens; the gates' prompts are short."""


class Served:
    """A GGUF, with or without a GGUF LoRA, in llama.cpp."""

    def __init__(self, brain: LlamaCpp, vocabulary: int) -> None:
        self._brain, self._vocabulary = brain, vocabulary
        self._word = self.tokens("a", special=False)[0]

    def render(self, messages: Sequence[Json]) -> str:
        """The prompt of a conversation, by the template in the GGUF; thinking off."""
        body = {
            "messages": list(messages),
            "chat_template_kwargs": {"enable_thinking": False},
        }
        return str(self._post("/apply-template", body)["prompt"])

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of `text`; `special`: with what the model wants at the beginning of a prompt."""
        body = {"content": text, "add_special": special, "parse_special": True}
        return list(self._post("/tokenize", body)["tokens"])

    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Log-probabilities of the token after `ids`, over the vocabulary: [vocabulary]. Every
        prompt is read whole, so that the answer does not depend on earlier questions."""
        found = np.full(self._vocabulary, -np.inf, np.float32)
        for at in self._completion(ids, self._vocabulary):
            found[at["id"]] = at["logprob"]
        return found

    def texts(self, ids: Sequence[int], most: int) -> dict[str, float]:
        """The same for the `most` likely tokens, by their text, as other servers give it."""
        likely_last = reversed(self._completion(ids, most))
        return {at["token"]: at["logprob"] for at in likely_last}

    def _completion(self, ids: Sequence[int], most: int) -> list[Json]:
        # The token itself is forced: one that ends the reply would come without probabilities.
        body = {
            "prompt": list(ids), "n_predict": 1, "n_probs": most, "temperature": 0.0,
            "cache_prompt": False, "logit_bias": [[self._word, 1000]],
        }  # fmt: skip
        return list(self._post("/completion", body)["completion_probabilities"][0]["top_logprobs"])

    def _post(self, path: str, body: Json) -> Any:
        import httpx

        headers = {"Authorization": f"Bearer {self._brain.api_key}"}
        with httpx.Client(trust_env=False, timeout=600) as client:
            try:
                answer = client.post(self._brain.address + path, json=body, headers=headers)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                raise AutoresearchError(f"the embedded llama.cpp broke off ({error})") from None
        return answer.json()


@contextmanager
def serve(base: Base, model: Path, lora: Path | None = None) -> Iterator[Served]:
    """Have a GGUF in memory. Raises BrainError when llama.cpp does not load it."""
    brain = LlamaCpp(
        f"llamacpp:{model}", model, "", window=min(WINDOW, base.window), adapter=lora,
        threads=len(os.sched_getaffinity(0)), think=False, cold=True,
    )  # fmt: skip
    try:
        yield Served(brain, base.vocabulary)
    finally:
        brain.close()
