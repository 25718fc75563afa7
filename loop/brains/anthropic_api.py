"""`anthropic:MODEL`: Anthropic's API, by the vendor's client.

The key is $ANTHROPIC_API_KEY. The stable beginning of a prompt (the system message, and the first
part of a user message) carries a marker, up to which the API keeps what it has read. Newer models
take no temperature, and some always think: the first is tried by one tiny request when the model is
connected, the second asked of the model's capabilities; what is left out is named in `digest`, so
that it stands in every record. There is no seed. Source: Claude API reference, Messages, Models,
Prompt caching, Structured outputs, Thinking.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from loop.brains.openai_api import check_address
from loop.brains.retry import one_line, persist, refusal, told_apart
from loop.errors import BrainError, ContextOverflow
from loop.prices import price_of
from loop.trial import Json, Message, Reply

KEY = "ANTHROPIC_API_KEY"

WINDOW = 200_000
"""Tokens, where the API does not tell."""

BYTES_PER_TOKEN = 2.5
"""For counting without a request each time: newer tokenizers have 2.5 to 4 bytes a token."""

MESSAGE_TOKENS = 16
"""What a message takes beside its text, generously."""

THINKING_TOKENS = 8192
"""Allowed beside a reply to a model that thinks: the API counts both as one."""

NO_THINKING = ("disabled", "between_tools")
"""The settings that turn thinking off; a model takes one of them or none."""

FINISH: dict[str, Literal["stop", "length", "tool_call"]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_call",
}


class Anthropic:
    """One model of the API."""

    def __init__(
        self, model: str, *, base_url: str | None, window: int | None, think: bool, timeout: float
    ):
        import anthropic

        self.name, self.model = f"anthropic:{model}", model
        key = os.environ.get(KEY)
        if not key:
            raise BrainError(f"{self.name} needs a key: set {KEY} in the environment")
        base_url = base_url or os.environ.get("ANTHROPIC_BASE_URL") or None
        if base_url:
            check_address(base_url)
        self._client: Any = anthropic.Anthropic(
            api_key=key, base_url=base_url, max_retries=0, timeout=timeout
        )
        self.price = None if base_url else price_of(self.name)
        told = self._call(lambda: self._client.models.retrieve(model))
        self.window = window or told.max_input_tokens or WINDOW
        self._thinking, self.thinks = _thinking(told.capabilities, think)
        self._effort: Json = self._thinking.get("output_config", {})
        self._temperature = not self.thinks
        if self._temperature:
            self._message({"messages": [{"role": "user", "content": "Say OK."}]}, 16, 0.5)
        left_out = ["seed"] if self._temperature else ["seed", "temperature"]
        self.digest = f"{told.id} without {', '.join(left_out)}{', thinking' * self.thinks}"

    def count(self, text: str) -> int:
        """Tokens of `text`, estimated with caution: two fifths of its bytes."""
        return int(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN) + 1

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
        """`n` replies, of as many requests: all after the first find the prompt in the cache. The
        API tells no log-probabilities.

        Raises ContextOverflow, ServerDown, and BrainError for what the API refuses.
        """
        counted = sum(self.count(m.content) + MESSAGE_TOKENS for m in messages)
        if counted + max_tokens > self.window:
            raise ContextOverflow(
                f"{self.name}: prompt (about {counted} tokens) and reply ({max_tokens}) do not fit "
                f"the window of {self.window}: show less, or give a larger --window"
            )
        body = _conversation(messages)
        if stop:
            body["stop_sequences"] = list(stop)
        if schema is not None:
            body["output_config"] = self._effort | {"format": _format(schema)}
        return tuple(self._reply(body, max_tokens, temperature) for _ in range(n))

    def _reply(self, body: Json, max_tokens: int, temperature: float) -> Reply:
        began = time.perf_counter()
        answer = self._message(body, max_tokens, temperature)
        seconds = time.perf_counter() - began
        if answer.stop_reason == "model_context_window_exceeded":
            raise ContextOverflow(f"{self.name}: prompt and reply did not fit: show less")
        usage = answer.usage
        cached, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        prompt = usage.input_tokens + cached + written
        price = self.price
        return Reply(
            text="".join(block.text for block in answer.content if block.type == "text"),
            finish=FINISH.get(str(answer.stop_reason), "other"),
            reasoning="".join(b.thinking for b in answer.content if b.type == "thinking"),
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=usage.output_tokens,
            seconds=seconds,
            dollars=price.dollars(prompt, cached, usage.output_tokens, written) if price else None,
        )

    def _message(self, body: Json, max_tokens: int, temperature: float) -> Any:
        """One answer; asked anew without a temperature by a model that refuses to have one."""
        room = max_tokens + (THINKING_TOKENS if self.thinks else 0)
        sent = {"model": self.model, "max_tokens": room} | self._thinking | body
        # The client has no argument for a temperature any more; older models still take one.
        warm = {"extra_body": {"temperature": temperature}} if self._temperature else {}
        try:
            return self._call(lambda: self._client.messages.create(**sent, **warm))
        except BrainError as error:
            if not warm or "temperature" not in str(error):
                raise
        self._temperature = False
        return self._message(body, max_tokens, temperature)

    def _call(self, request: Callable[[], Any]) -> Any:
        return persist(lambda: self._send(request), self.name)

    def _send(self, request: Callable[[], Any]) -> Any:
        import anthropic

        return told_apart(anthropic, request, self._client.base_url, self._status)

    def _status(self, error: Any) -> Exception:
        told = error.body.get("error") if isinstance(error.body, dict) else None
        said = str(told.get("message") if isinstance(told, dict) else told or error.message)
        if error.status_code == 404:
            there = ", ".join(sorted(self._listed())) or "none"
            return BrainError(f"Anthropic has no model '{self.model}'; there are: {there}")
        if error.status_code == 400 and ("output_config" in said or "schema" in said):
            return BrainError(
                f"{self.name} does not take this JSON schema: {one_line(said)}; use a strategy "
                "without one"
            )
        headers = error.response.headers
        return refusal(self.name, error.status_code, said, key=KEY, headers=headers)

    def _listed(self) -> list[str]:
        page = self._call(lambda: self._client.models.list(limit=100))
        return [model.id for model in page.data]


def load(
    model: str,
    *,
    base_url: str | None = None,
    window: int | None = None,
    think: bool = False,
    timeout: float = 600.0,
) -> Anthropic:
    """Name of a model -> brain that has answered once.

    `window`: tokens (default: what the API tells). `think`: let it think as it does by default;
    otherwise not, or as little as it can. `timeout`: seconds for one answer. `digest` is the
    model's id and what it was not given. Raises UsageError or BrainError.
    """
    return Anthropic(model, base_url=base_url, window=window, think=think, timeout=timeout)


def _thinking(capabilities: Any, think: bool) -> tuple[Json, bool]:
    """The settings that ask for thinking or for none, and whether the model will think."""
    types = getattr(getattr(capabilities, "thinking", None), "types", None)
    if think:
        asks = types is not None and types.adaptive.supported
        return ({"thinking": {"type": "adaptive"}} if asks else {}), True
    if types is None:
        return {}, False
    for kind in NO_THINKING:
        if getattr(types, kind).supported:
            return {"thinking": {"type": kind}}, False
    return {"output_config": {"effort": "low"}}, True


def _conversation(messages: Sequence[Message]) -> Json:
    """System text apart, as the API has it; markers behind what stays the same between requests."""
    system = [m.content for m in messages if m.role == "system" and m.content.strip()]
    turns = [{"role": m.role, "content": _blocks(m)} for m in messages if m.role != "system"]
    body: Json = {"messages": turns}
    if system:
        body["system"] = [_block("\n\n".join(system), stable=True)]
    return body


def _blocks(message: Message) -> list[Json]:
    """One block, or the stable first part and the rest; the API takes no blank block."""
    first, rest = message.parts[0], "".join(message.parts[1:])
    if message.role == "user" and first.strip() and rest.strip():
        return [_block(first, stable=True), _block(rest)]
    return [_block(message.content)]


def _block(text: str, stable: bool = False) -> Json:
    marker = {"cache_control": {"type": "ephemeral"}} if stable else {}
    return {"type": "text", "text": text, **marker}


def _format(schema: Json) -> Json:
    """The schema as the API takes it: what it cannot enforce becomes part of a description."""
    import anthropic

    return {"type": "json_schema", "schema": anthropic.transform_schema(schema)}
