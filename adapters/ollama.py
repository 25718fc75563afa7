"""An Ollama server, by its API: what it has, and an export that replaces a model at once.

A model is created under a side name, checked there, and only then copied over the name that is
asked for, so that whatever goes wrong before leaves the previous model served. A server on another
machine does as well: files are sent by their digest. Source: Ollama, docs/api.md.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from adapters.gates import TOP, number
from loop.errors import AutoresearchError, UsageError
from loop.trial import Json

T = TypeVar("T")

OLDEST = (0, 5, 5)
"""The first version whose API creates a model from files that were sent to it."""
ADAPTER_FROM, ADAPTER_UNTIL = (0, 30, 0), (0, 34, 1)
"""Versions that serve a GGUF LoRA of any architecture: from the first to before the second."""


class Server:
    """The server at $OLLAMA_HOST (default 127.0.0.1:11434)."""

    def __init__(self) -> None:
        import httpx
        import ollama

        try:
            self._client: Any = ollama.Client(timeout=None)
        except (ValueError, httpx.InvalidURL) as error:
            raise UsageError(f"OLLAMA_HOST is no address ({error}); write HOST:PORT") from None
        self.version = str(self._request("GET", "/api/version")["version"])
        if number(self.version) < OLDEST:
            raise AutoresearchError(
                f"Ollama {self.version} cannot create a model from files: update it to 0.5.5 or "
                "newer"
            )

    def takes_adapters(self) -> bool:
        """Whether this version serves a GGUF LoRA beside its base."""
        return ADAPTER_FROM <= number(self.version) < ADAPTER_UNTIL

    def shown(self, model: str) -> Json:
        """What the server tells of a model. Raises AutoresearchError: it has none of that name."""
        return self._request("POST", "/api/show", {"model": model})

    def blob(self, model: str) -> Path:
        """Path of the model's GGUF on the server's own machine."""
        found = re.search(r"^FROM (/\S+)$", str(self.shown(model).get("modelfile")), re.MULTILINE)
        if found is None:
            raise AutoresearchError(
                f"Ollama does not say which file {model} is: name a .gguf with --base"
            )
        return Path(found[1])

    def send(self, path: Path) -> str:
        """Give the server a file; returns its digest, under which it is known from then on."""
        return str(self._carefully(lambda: self._client.create_blob(path)))

    def create(self, model: str, **parts: Any) -> None:
        """Create `model` of `files`, `from_`, `adapters`, `template`, `system`, `parameters`."""
        self._carefully(lambda: self._client.create(model=model, **parts))

    @contextmanager
    def replacing(self, model: str) -> Iterator[str]:
        """A side name to create and check a model under; on leaving it becomes `model`, unless the
        block is left by an error. Either way nothing stays under the side name."""
        name, _, tag = model.partition(":")
        side = f"{name}-unfinished:{tag or 'latest'}"
        try:
            yield side
            self._request("POST", "/api/copy", {"source": side, "destination": model})
        finally:
            self._delete(side)

    def render(self, model: str, messages: Sequence[Json]) -> str | None:
        """The prompt as the server renders it, thinking off; None: it is too old to tell."""
        answer = self._request(
            "POST",
            "/api/chat",
            {
                "model": model, "messages": list(messages), "think": False, "stream": False,
                "_debug_render_only": True, "options": {"num_predict": 1},
            },
        )  # fmt: skip
        told = answer.get("_debug_info") or {}
        return told.get("rendered_template")

    def logprobs(self, model: str, prompt: str) -> dict[str, float] | None:
        """Text of the likeliest tokens after the raw `prompt` -> log-probability, TOP of them;
        None: the server is too old to tell."""
        answer = self._request(
            "POST",
            "/api/generate",
            {
                "model": model, "prompt": prompt, "raw": True, "stream": False, "logprobs": True,
                "top_logprobs": TOP, "options": {"num_predict": 1, "temperature": 0},
            },
        )  # fmt: skip
        told = answer.get("logprobs") or [{}]
        top = told[0].get("top_logprobs")
        return {at["token"]: float(at["logprob"]) for at in top} if top else None

    def _delete(self, model: str) -> None:
        """Remove a model if it is there, in silence: whatever brought us here is worth more."""
        import httpx
        import ollama

        try:
            self._client._request_raw("DELETE", "/api/delete", json={"model": model})
        except (ollama.ResponseError, ConnectionError, httpx.TransportError):
            return

    def _request(self, method: str, path: str, body: Json | None = None) -> Json:
        answer = self._carefully(lambda: self._client._request_raw(method, path, json=body))
        try:
            found = answer.json() if answer.content else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise AutoresearchError(f"what listens at {self._where} is not Ollama: set OLLAMA_HOST")
        return found

    @property
    def _where(self) -> str:
        return str(self._client._client.base_url)

    def _carefully(self, ask: Callable[[], T]) -> T:
        import httpx
        import ollama

        try:
            return ask()
        except ollama.ResponseError as error:
            said = " ".join(str(error.error).split())[:200]
            if error.status_code == 404:
                said += "; see: ollama list"
            elif "no space left" in said:
                said += "; make room there (ollama rm MODEL)"
            raise AutoresearchError(f"Ollama at {self._where} refuses: {said}") from None
        except (ConnectionError, httpx.TransportError) as error:
            raise AutoresearchError(
                f"no Ollama answers at {self._where} ({type(error).__name__}): start it with "
                "`ollama serve`, or set OLLAMA_HOST"
            ) from None


def parameters(shown: Json) -> Json:
    """The parameters of a model, from the lines that `/api/show` gives: `name value`, one each; a
    name that repeats (`stop`) becomes a list."""
    found: dict[str, list[Any]] = {}
    for line in str(shown.get("parameters") or "").splitlines():
        name, _, text = line.strip().partition(" ")
        try:
            value = json.loads(text)
        except ValueError:
            value = text.strip()
        found.setdefault(name, []).append(value)
    found.pop("", None)
    return {name: values if name == "stop" else values[-1] for name, values in found.items()}
