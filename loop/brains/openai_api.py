"""`openai:MODEL`: OpenAI's API, or with a base URL any server that speaks its protocol.

The key is $OPENAI_API_KEY; a server on this machine usually wants none. Models differ in what they
take: some have no temperature, some cannot leave out reasoning. What a model refuses is found out
by one tiny request when it is connected, is left out from then on, and is named in `digest`, so
that it stands in every record. Source: OpenAI API reference, Chat Completions and Models.
"""

import os
import re
import time
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from loop.brains.retry import one_line, persist, refusal, told_apart
from loop.errors import BrainError, ContextOverflow, UsageError
from loop.prices import price_of
from loop.trial import Json, Message, Reply

KEY = "OPENAI_API_KEY"

WINDOW = 128_000
"""Tokens that every current model of the vendor takes; other servers are asked for theirs."""

BYTES_PER_TOKEN = 3
"""For counting, as no tokenizer can be asked: code and English have 3 to 5 bytes a token."""

MESSAGE_TOKENS = 16
"""What a chat template adds around a message, generously."""

THINKING_TOKENS = 8192
"""Allowed beside a reply to a model that reasons: the protocol counts both as one."""

LEAST_REASONING = ("none", "minimal", "low")
"""The settings that ask for little reasoning; models take some of them or none."""

FINISH: dict[str, Literal["stop", "length", "tool_call", "other"]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_call",
}


class OpenAI:
    """One model behind one address. `compatible`: the server is somebody else's than the vendor."""

    def __init__(
        self, model: str, *, base_url: str | None, window: int | None, think: bool, timeout: float
    ):
        import openai

        self.name, self.model, self.think = f"openai:{model}", model, think
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self.compatible, key = base_url is not None, os.environ.get(KEY)
        if not key and not self.compatible:
            raise BrainError(f"{self.name} needs a key: set {KEY} in the environment")
        if base_url:
            check_address(base_url)
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=base_url, max_retries=0, timeout=timeout
        )
        self.price = None if self.compatible else price_of(self.name)
        self._refused: set[str] = set()
        self._reasoning = [] if think or self.compatible else list(LEAST_REASONING)
        listed = self._listed()
        self.window = window or self._window(listed)
        answer = self._settle()
        left_out = f" without {', '.join(sorted(self._refused))}" if self._refused else ""
        self.digest = f"{answer.model}{left_out}"

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
        """`n` replies: of one request where the server takes `n`, else of several.

        The first reply of a request carries its prompt tokens, seconds and dollars; the completion
        tokens are shared out by length, since the protocol gives only their sum. Raises
        ContextOverflow, ServerDown, and BrainError for what the server refuses.
        """
        counted = sum(self.count(m.content) + MESSAGE_TOKENS for m in messages)
        if counted + max_tokens > self.window:
            raise ContextOverflow(
                f"{self.name}: prompt (about {counted} tokens) and reply ({max_tokens}) do not fit "
                f"the window of {self.window}: show less, or give a larger --window"
            )
        body: Json = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": temperature,
        }
        if stop:
            body["stop"] = list(stop)
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": logprobs}
        replies: list[Reply] = []
        while len(replies) < n:
            asked = body | {"n": n - len(replies), "seed": seed + len(replies)}
            began = time.perf_counter()
            answer = self._ask(asked, max_tokens, schema)
            replies += self._replies(answer, time.perf_counter() - began)
        return tuple(replies[:n])

    def _replies(self, answer: Any, seconds: float) -> list[Reply]:
        """The choices of one answer, which shares its usage among them."""
        if not answer.choices:
            raise BrainError(f"{self.name} answers without a choice: is it a chat model?")
        usage = answer.usage
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        details = usage.prompt_tokens_details if usage else None
        cached = (details.cached_tokens if details else None) or 0
        written = (details.cache_write_tokens if details else None) or 0
        dollars = self.price.dollars(prompt, cached, completion, written) if self.price else None
        texts = [(c.message.content or "", _reasoning(c.message)) for c in answer.choices]
        shares = _shares(completion, [len(text) + len(thought) for text, thought in texts])
        return [
            Reply(
                text=text,
                finish="tool_call" if choice.message.tool_calls else _finish(choice),
                reasoning=thought,
                prompt_tokens=0 if i else prompt,
                cached_tokens=0 if i else cached,
                completion_tokens=shares[i],
                seconds=0.0 if i else seconds,
                dollars=0.0 if i and dollars is not None else dollars,
                logprobs=_first_token(choice.logprobs),
            )
            for i, (choice, (text, thought)) in enumerate(zip(answer.choices, texts, strict=True))
        ]

    def _settle(self) -> Any:
        """One tiny request with every setting, so that what is refused is known from the start."""
        hello: Json = {"messages": [{"role": "user", "content": "Say OK."}]}
        return self._ask(hello | {"temperature": 0.5, "seed": 1}, 16, None)

    def _ask(self, body: Json, max_tokens: int, schema: Json | None) -> Any:
        """One answer; asked anew without a setting that is refused."""
        while True:
            sent = self._composed(body, max_tokens, schema)
            try:
                return persist(lambda sent=sent: self._send(sent), self.name)  # type: ignore[misc]
            except _RefusedSetting as refused:
                if not self._does_without(refused, sent):
                    raise refused.error from None

    def _composed(self, body: Json, max_tokens: int, schema: Json | None) -> Json:
        reasons = self.think or (bool(self._reasoning) and self._reasoning[0] != "none")
        room = max_tokens + (THINKING_TOKENS if reasons and not self.compatible else 0)
        newer = not self.compatible or "max_tokens" in self._refused
        sent = {k: v for k, v in body.items() if k not in self._refused and (k, v) != ("n", 1)}
        sent["max_completion_tokens" if newer else "max_tokens"] = room
        if self._reasoning:
            sent["reasoning_effort"] = self._reasoning[0]
        if self.compatible and "chat_template_kwargs" not in self._refused:
            sent["extra_body"] = {"chat_template_kwargs": {"enable_thinking": self.think}}
        if schema is not None:
            form = {"name": "answer", "strict": "strict" not in self._refused, "schema": schema}
            sent["response_format"] = {"type": "json_schema", "json_schema": form}
        return sent

    def _does_without(self, refused: "_RefusedSetting", sent: Json) -> bool:
        """Whether there is another way to ask: the setting at fault is changed or left out."""
        if refused.names("reasoning_effort") and self._reasoning:
            del self._reasoning[: 1 if refused.code == "unsupported_value" else None]
            return True
        for setting in ("temperature", "seed", "n", "max_tokens", "chat_template_kwargs"):
            if refused.names(setting) and setting not in self._refused:
                self._refused.add(setting)
                return True
        if refused.names("response_format", "schema") and "response_format" in sent:
            if "strict" not in self._refused:
                self._refused.add("strict")
                return True
            refused.error = BrainError(
                f"{self.name} does not take this JSON schema: {one_line(refused.said)}; "
                "use a strategy without one"
            )
        return False

    def _send(self, sent: Json) -> Any:
        return self._call(lambda: self._client.chat.completions.create(model=self.model, **sent))

    def _call(self, request: Any) -> Any:
        import openai

        return told_apart(openai, request, self._client.base_url, self._status)

    def _status(self, error: Any) -> Exception:
        said = str(error.body.get("message") if isinstance(error.body, dict) else error.message)
        if error.status_code == 404:
            return BrainError(
                f"{self._client.base_url} has no model '{self.model}' "
                f"({one_line(said)}); there are: {', '.join(sorted(self._listed())) or 'none'}"
            )
        told = refusal(self.name, error.status_code, said, key=KEY, headers=error.response.headers)
        if error.status_code in (400, 422) and not isinstance(told, ContextOverflow):
            return _RefusedSetting(said, error.param or "", error.code or "", told)
        return told

    def _listed(self) -> dict[str, Json]:
        """Id -> what the server tells of it, of every model there is."""
        page = persist(lambda: self._call(self._client.models.list), self.name)
        return {model.id: model.model_dump() for model in page.data or ()}

    def _window(self, listed: dict[str, Json]) -> int:
        """The window of the vendor, or what a server says: llama.cpp `n_ctx`, vLLM otherwise."""
        if not self.compatible:
            return WINDOW
        told = listed.get(self.model) or (next(iter(listed.values())) if len(listed) == 1 else {})
        found = (told.get("meta") or {}).get("n_ctx") or told.get("max_model_len")
        if not found:
            raise UsageError(
                f"{self._client.base_url} does not tell the window of '{self.model}': say it with "
                "--window, since some servers cut longer prompts silently"
            )
        return int(found)


class _RefusedSetting(Exception):
    """A 400 that may be about one setting. `error`: what to raise if it is not."""

    def __init__(self, said: str, param: str, code: str, error: Exception) -> None:
        super().__init__(said)
        self.said, self.param, self.code, self.error = said, param, code, error

    def names(self, *settings: str) -> bool:
        """Is one of `settings` at fault? One letter counts only as the parameter or in quotes."""
        words = "|".join(rf"\b{s}\b" if len(s) > 1 else rf"['\"`]{s}['\"`]" for s in settings)
        return self.param in settings or bool(re.search(words, self.said))


def load(
    model: str,
    *,
    base_url: str | None = None,
    window: int | None = None,
    think: bool = False,
    timeout: float = 600.0,
) -> OpenAI:
    """Name of a model -> brain that has answered once.

    `base_url`: of a compatible server, e.g. http://127.0.0.1:8000/v1. `window`: tokens, if the
    server does not tell. `think`: let it reason as it does by default; otherwise as little as it
    can. `timeout`: seconds for one answer. `digest` is the id that the server answers with, and the
    settings that the model does not take. Raises UsageError or BrainError.
    """
    return OpenAI(model, base_url=base_url, window=window, think=think, timeout=timeout)


def check_address(url: str) -> None:
    """Raises UsageError for a base URL that is none, or that holds a secret (it is recorded)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("--base-url is no http(s) address; e.g. http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UsageError("--base-url is recorded: leave credentials and queries out of it")


def _reasoning(message: Any) -> str:
    return getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""


def _finish(choice: Any) -> Literal["stop", "length", "tool_call", "other"]:
    return FINISH.get(str(choice.finish_reason), "other")


def _first_token(told: Any) -> dict[str, float]:
    places = (told and told.content) or ()
    return {at.token: at.logprob for at in places[0].top_logprobs} if places else {}


def _shares(total: int, lengths: list[int]) -> list[int]:
    """`total` in proportion to `lengths`; the shares add up to it."""
    whole = sum(lengths) or len(lengths)
    ends = [sum(lengths[: i + 1]) * total // whole for i in range(len(lengths) - 1)] + [total]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
