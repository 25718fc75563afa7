"""What was trained, in torch: log-probabilities of the base with and without an adapter.

The base is the served GGUF itself, dequantised to float32 by transformers, so that only the adapter
and the arithmetic can differ from what is served.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import Base
from adapters.peft_folder import Card
from finetune.base import find, tokenizer
from loop.errors import AutoresearchError
from loop.trial import Json


class Trained:
    """The base in torch, on the CPU, in float32 (4 bytes a parameter)."""

    def __init__(self, base: Base) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            with _quietly():
                self._model: Any = AutoModelForCausalLM.from_pretrained(
                    base.path.parent,
                    gguf_file=base.path.name,
                    dtype=torch.float32,
                    quantization_config=GgufConfig(dequantize=True),
                )
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise AutoresearchError(
                f"transformers cannot read {base.path} ({' '.join(str(error).split())[:200]}): "
                "give a base in another type with --base, or export with --unchecked"
            ) from None

    def logprobs(
        self, prompts: Sequence[Sequence[int]], adapter: Path | None = None
    ) -> NDArray[np.float32]:
        """Log-probabilities of the token after each prompt: [prompts, vocabulary]."""
        import torch

        self._model.eval()
        with _quietly():
            from peft import PeftModel

            wrapped = PeftModel.from_pretrained(self._model, adapter) if adapter else None
        try:
            with torch.inference_mode():
                rows = [
                    torch.log_softmax(
                        (wrapped or self._model)(torch.tensor([ids])).logits[0, -1], -1
                    )
                    for ids in map(list, prompts)
                ]
        finally:
            if wrapped is not None:
                self._model = wrapped.unload()
        return np.stack([row.numpy() for row in rows])


class Rendering:
    """The tokenizer and chat template that finetune used: the adapter's own, where it has one, else
    the one that finetune takes from the base."""

    def __init__(self, folder: Path, card: Card, base: Base) -> None:
        from transformers import AutoTokenizer

        with _quietly():
            if (folder / "tokenizer_config.json").is_file():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            else:
                same = card.base_digest == base.digest and base.path.suffix == ".gguf"
                self._tokenizer = tokenizer(find(str(base.path) if same else card.base))

    def render(self, messages: Sequence[Json]) -> str:
        """The prompt of a conversation; thinking off."""
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
        )

    def tokens(self, text: str) -> list[int]:
        """Ids of `text`, special tokens in it recognised."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


@contextmanager
def _quietly() -> Iterator[None]:
    """Progress bars and advice of the libraries have no place among the gates."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
