"""`ollama:MODEL`: a model that an Ollama server runs, by the `ollama` client.

The server is at $OLLAMA_HOST (default 127.0.0.1:11434). Left to itself it runs a model with a
window of a few thousand tokens, cuts a longer prompt without a word and answers all the same. So
`num_ctx` is always sent, cutting is forbidden (`truncate`, `shift`), and what the server says it
has read is compared with what it was sent: older servers do not know those two fields.
Source: Ollama, docs/api.md and api/types.go.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

from loop.brains.retry import Fault, one_line, persist, refusal
from loop.errors import BrainError, ContextOverflow, UsageError
from loop.trial import Json, Message, Reply

WINDOW = 8192
"""Tokens, where no window is asked for and the model was trained on at least as many."""

BYTES_PER_TOKEN = 3
"""For counting, as no tokenizer can be asked: code and English have 3 to 5 bytes a token."""

MESSAGE_TOKENS = 16
"""What a chat template adds around a message, generously."""

LEAST_READ = 0.25
"""Of the tokens counted beforehand; reading fewer than that share, a server has cut the prompt."""

UNLOADED_S = 60.0
"""Seconds that a server may take to give a model's memory free."""

FINISH: dict[str, Literal["stop", "length", "tool_call", "other"]] = {
    "stop": "stop",
    "length": "length",
}


class Ollama:
    """One model on one server. It stays loaded (`keep_alive`) until `unload`."""

    def __init__(
        self, model: str, *, window: int | None, think: bool, keep_alive: float | str,
        timeout: float,
    ):  # fmt: skip
        import httpx
        import ollama

        self.name, self.model = f"ollama:{model}", model
        self.think, self.keep_alive = think, keep_alive
        try:
            self._client: Any = ollama.Client(timeout=timeout)
        except (ValueError, httpx.InvalidURL) as error:
            raise UsageError(f"OLLAMA_HOST is no address ({error}); write HOST:PORT") from None
        self.version = str(self._ask("GET", "/api/version")["version"])
        shown = self._show()
        self.digest = f"{self._listed()[_full(model)]} ollama-{self.version}"
        trained = _trained_on(shown)
        if window and trained and window > trained:
            raise UsageError(f"{self.name} was trained on {trained} tokens: no window of {window}")
        self.window = window or min(WINDOW, trained or WINDOW)
        self.load()

    def count(self, text: str) -> int:
        """Tokens of `text`, estimated with caution: a third of its bytes."""
        return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)

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
        """`n` replies with the seeds `seed`, `seed + 1`, ..., one after the other.

        Raises ContextOverflow when the prompt does not fit or was cut, ServerDown when the server
        stays away, BrainError for what it refuses. Some models ignore `schema`: validate.
        """
        counted = sum(self.count(m.content) + MESSAGE_TOKENS for m in messages)
        if counted + max_tokens > self.window:
            raise ContextOverflow(
                f"{self.name}: prompt (about {counted} tokens) and reply ({max_tokens}) do not fit "
                f"the window of {self.window}: show less, or give a larger --window"
            )
        options: Json = {"temperature": temperature, "num_predict": max_tokens, "stop": list(stop)}
        body: Json = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "think": self.think,
            "truncate": False,
            "shift": False,
        }
        if schema is not None:
            body["format"] = schema
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": logprobs}
        return tuple(
            self._reply(body | {"options": options | {"seed": seed + i}}, counted) for i in range(n)
        )

    def load(self) -> None:
        """Have the model in memory, with this window. A server that grants less is believed."""
        self._chat({"messages": []})
        loaded = [m for m in self._ask("GET", "/api/ps")["models"] if self._is_this(m)]
        granted = int(loaded[0].get("context_length") or 0) if loaded else 0
        if 0 < granted < self.window:
            self.window = granted

    def unload(self) -> None:
        """Free the model's memory, and return when it is free; the next `chat` loads it again."""
        self._chat({"messages": [], "keep_alive": 0})
        until = time.monotonic() + UNLOADED_S
        while any(self._is_this(m) for m in self._ask("GET", "/api/ps")["models"]):
            if time.monotonic() > until:
                raise BrainError(
                    f"{self.name} is still loaded after {UNLOADED_S:.0f} s: something else keeps "
                    "it in use; end that, or run with --gpu share"
                )
            time.sleep(0.1)

    def _reply(self, body: Json, counted: int) -> Reply:
        began = time.perf_counter()
        answer = self._chat(body)
        seconds = time.perf_counter() - began
        message = answer.get("message") or {}
        read, written = answer.get("prompt_eval_count") or 0, answer.get("eval_count") or 0
        self._check_whole(read, written, counted)
        finish = FINISH.get(str(answer.get("done_reason")), "other")
        return Reply(
            text=message.get("content") or "",
            finish="tool_call" if message.get("tool_calls") else finish,
            reasoning=message.get("thinking") or "",
            prompt_tokens=read,
            cached_tokens=answer.get("prompt_eval_cached_count") or 0,
            completion_tokens=written,
            seconds=seconds,
            logprobs=_first_token(answer.get("logprobs")),
        )

    def _check_whole(self, read: int, written: int, counted: int) -> None:
        """A prompt that is too long is cut to half the window, or loses its first messages."""
        halved = abs(read - self.window // 2) <= MESSAGE_TOKENS and counted > 0.75 * self.window
        if halved or 0 < read < LEAST_READ * counted or read + written > self.window:
            raise ContextOverflow(
                f"{self.name}: the server cut the prompt: it read {read} tokens of about {counted} "
                f"(window {self.window}); show less, or give a larger --window"
            )

    def _show(self) -> Json:
        shown = self._ask("POST", "/api/show", {"model": self.model})
        able = shown.get("capabilities") or ["completion"]
        if "completion" not in able:
            raise BrainError(f"{self.name} cannot chat, only: {', '.join(able)}; name another")
        if self.think and "thinking" not in able:
            raise UsageError(f"{self.name} cannot think: leave out --think")
        return shown

    def _listed(self) -> dict[str, str]:
        """Name -> digest of every model on the server."""
        found = self._ask("GET", "/api/tags")["models"]
        return {_full(m.get("model") or m["name"]): m["digest"] for m in found}

    def _is_this(self, loaded: Json) -> bool:
        return _full(loaded.get("model") or loaded.get("name") or "") == _full(self.model)

    def _chat(self, body: Json) -> Json:
        """Every request says the window: a different one makes the server load the model anew."""
        options = {"num_ctx": self.window} | body.get("options", {})
        fixed = {"model": self.model, "stream": False, "options": options}
        return self._ask("POST", "/api/chat", {"keep_alive": self.keep_alive} | body | fixed)

    def _ask(self, method: str, path: str, body: Json | None = None) -> Json:
        return persist(lambda: self._send(method, path, body), self.name)

    def _send(self, method: str, path: str, body: Json | None) -> Json:
        """One request, through the client's own: its methods hide the newer fields."""
        import httpx
        import ollama

        try:
            answer = self._client._request_raw(method, path, json=body).json()
        except ollama.ResponseError as error:
            raise self._refused(error.status_code, str(error.error)) from None
        except httpx.TimeoutException:
            raise Fault("no answer in time (--brain-timeout)") from None
        except ConnectionError:
            where = self._client._client.base_url
            raise Fault(f"nothing listens at {where}; start it with: ollama serve") from None
        except (httpx.TransportError, ValueError) as error:
            raise Fault(
                f"the answer broke off ({one_line(error) or type(error).__name__})"
            ) from None
        if not isinstance(answer, dict):
            raise BrainError(f"what listens at {self._client._client.base_url} is not Ollama")
        return answer

    def _refused(self, status: int, said: str) -> Exception:
        if status == 404:
            there = ", ".join(sorted(self._listed())) or "none"
            return BrainError(
                f"Ollama has no model '{self.model}'; there are: {there}; or: ollama pull "
                f"{self.model}"
            )
        if "format" in said or "schema" in said or "grammar" in said:
            return BrainError(f"{self.name} does not take this JSON schema: {one_line(said)}")
        return refusal(self.name, status, said)


def load(
    model: str,
    *,
    window: int | None = None,
    think: bool = False,
    keep_alive: float | str = -1,
    timeout: float = 600.0,
) -> Ollama:
    """Name of a model on the server -> brain, with the model loaded.

    `window`: tokens, sent as `num_ctx` (default: 8192, or what the model was trained on if less).
    `think`: let a thinking model think. `keep_alive`: seconds, or e.g. "5m"; negative: for ever.
    `timeout`: seconds for one answer, which loading the model is part of. `digest` is the server's
    digest of the model and the server's version. Raises UsageError or BrainError.
    """
    return Ollama(model, window=window, think=think, keep_alive=keep_alive, timeout=timeout)


def _first_token(told: list[Json] | None) -> dict[str, float]:
    """`logprobs` of an answer -> nats by token of the first place. A server before 0.12.11 tells
    none."""
    return {at["token"]: at["logprob"] for at in (told or [{}])[0].get("top_logprobs") or ()}


def _full(model: str) -> str:
    """A name without a tag means `latest`."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _trained_on(shown: Json) -> int:
    """Tokens of the window that a model was trained with; 0 if the server does not say."""
    info = shown.get("model_info") or {}
    return int(info.get(f"{info.get('general.architecture')}.context_length") or 0)
