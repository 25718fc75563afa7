"""`llamacpp:MODEL`: a GGUF model inside this process, by llama.cpp's own server (xllamacpp).

MODEL is `smollm2-135m`, fetched on first use, or the path of a GGUF file; with `adapter`, a GGUF
LoRA is applied to it. The server is asked over its loopback address, behind a key that only this
process knows, rather than through its in-process handlers: those block Ctrl-C and cannot count
tokens, while closing a connection also stops the generation. Source of the requests and replies:
llama.cpp, tools/server/README.md.
"""

import http.client
import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from loop.brains import models
from loop.errors import BrainError, ContextOverflow, UsageError
from loop.trial import Json, Message, Reply

WINDOW = 8192
"""Tokens, where no window is asked for and the model was trained on at least as many."""

SAMPLING = {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
"""llama.cpp's own defaults, pinned: a newer build or a model's metadata must not change them."""

FINISH: dict[str, Literal["stop", "length", "tool_call"]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_call",
}


class LlamaCpp:
    """A loaded model. One slot: the whole window belongs to the one request that is served.

    The prefix that a prompt shares with an earlier one is not read again. It then was read in other
    batches than the same prompt read whole, and rounds differently (0.1 nat at Q8_0), so that a
    seed repeats a reply only after the same calls in the same order. A `cold` brain reads every
    prompt whole: slower, but the same messages, seed and number of threads give the same reply
    whatever came before.
    """

    def __init__(
        self, name: str, model: Path, digest: str, *, window: int | None, adapter: Path | None,
        threads: int, think: bool, cold: bool,
    ):  # fmt: skip
        self.name, self.digest = name, digest
        self.think, self.cold = think, cold
        self.api_key = secrets.token_hex(16)
        self._open: set[http.client.HTTPConnection] = set()
        self._server: Any = _serve(model, adapter, window or WINDOW, threads, self.api_key)
        self.address: str = self._server.listening_address
        trained: int = self._ask("GET", "/v1/models")["data"][0]["meta"]["n_ctx_train"]
        self.window = min(window or WINDOW, trained)
        if window and window > trained:
            self.close()
            raise UsageError(f"{name} was trained on {trained} tokens: no window of {window}")

    def close(self) -> None:
        """Free the model. Asking again afterwards is a BrainError."""
        self._server = None

    def abandon(self) -> None:
        """Break off what another thread is asking: that is a BrainError there, and frees the slot.

        The server stops a generation whose connection is closed, between two batches.
        """
        for connection in tuple(self._open):
            with suppress(OSError, AttributeError):  # ended by itself, or not yet connected
                connection.sock.shutdown(socket.SHUT_RDWR)

    def count(self, text: str) -> int:
        """Tokens of `text` by the model's tokenizer, special tokens recognised as in a prompt."""
        return len(
            self._ask("POST", "/tokenize", {"content": text, "parse_special": True})["tokens"]
        )

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

        A `schema` becomes a grammar, so that a reply is valid unless `max_tokens` cuts it. Raises
        ContextOverflow before anything is computed, BrainError for a schema that llama.cpp does not
        support or text that is not Unicode.
        """
        body: Json = {
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "chat_template_kwargs": {"enable_thinking": self.think},
        }
        self._check_fit(body, max_tokens)
        body |= SAMPLING | {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "stop": list(stop),
            "cache_prompt": not self.cold,
        }
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": logprobs}
        return tuple(self._reply(body, seed + i) for i in range(n))

    def _check_fit(self, body: Json, max_tokens: int) -> None:
        counted = self._ask("POST", "/v1/chat/completions/input_tokens", body)
        prompt: int = counted["input_tokens"]
        if prompt + max_tokens > self.window:
            raise ContextOverflow(
                f"{self.name}: prompt ({prompt} tokens) and reply ({max_tokens}) do not fit the "
                f"window of {self.window}: show less, or give a larger window"
            )

    def _reply(self, body: Json, seed: int) -> Reply:
        began = time.perf_counter()
        # The server's seed has 32 bits, the highest of which values means "random".
        answer = self._ask("POST", "/v1/chat/completions", body | {"seed": seed % (2**32 - 1)})
        seconds = time.perf_counter() - began
        choice, usage = answer["choices"][0], answer["usage"]
        return Reply(
            text=choice["message"].get("content") or "",
            finish=FINISH.get(choice["finish_reason"], "other"),
            reasoning=choice["message"].get("reasoning_content") or "",
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            completion_tokens=usage["completion_tokens"],
            seconds=seconds,
            logprobs=_first_token(choice.get("logprobs")),
        )

    def _ask(self, method: str, path: str, body: Json | None = None) -> Any:
        if self._server is None:
            raise BrainError(f"{self.name} is closed: connect to it again")
        try:
            sent = json.dumps(body, ensure_ascii=False).encode() if body else None
        except UnicodeEncodeError as error:
            bad = error.object[error.start]
            raise BrainError(f"{self.name}: cannot send {bad!r}, which is not Unicode") from None
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"))
        self._open.add(connection)
        try:
            connection.request(method, path, sent, headers)
            response = connection.getresponse()
            status, answer = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BrainError(f"{self.name}: the embedded server broke off ({error})") from None
        finally:
            self._open.discard(connection)
            connection.close()
        if status != 200:
            said = " ".join(str(answer.get("error", {}).get("message", answer)).split())
            raise BrainError(f"{self.name}: {said[:300]}")
        return answer


def load(
    model: str,
    *,
    window: int | None = None,
    adapter: str | None = None,
    threads: int | None = None,
    think: bool = False,
    cold: bool = False,
) -> LlamaCpp:
    """Name of an embedded model or path of a GGUF -> brain.

    `window`: tokens (default: 8192, or what the model was trained on if less). `adapter`: path of a
    GGUF LoRA. `threads`: default all cores this process may use. `think`: let a model think that
    can. `cold`: never reuse a prefix (see LlamaCpp). The `digest` is the sha256 of the GGUF, and
    with an adapter both, joined by "+". Raises UsageError for a file that is not there
    and BrainError for one that does not load.
    """
    if model in models.WHEELS or not model.endswith(".gguf"):
        path, digest = models.cached(model)
    else:
        path = _gguf(model)
        digest = models.sha256(path)
    lora = _gguf(adapter) if adapter else None
    if lora:
        digest += "+" + models.sha256(lora)
    return LlamaCpp(
        f"llamacpp:{model}",
        path,
        digest,
        window=window,
        adapter=lora,
        threads=threads or len(os.sched_getaffinity(0)),
        think=think,
        cold=cold,
    )


def _first_token(told: Json | None) -> dict[str, float]:
    """`logprobs` of a choice, in OpenAI's format -> nats by token of the first place."""
    places = (told or {}).get("content") or [{}]
    return {at["token"]: at["logprob"] for at in places[0].get("top_logprobs", ())}


def _gguf(name: str) -> Path:
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise BrainError(f"{path} is not a GGUF file: give the path of one")
    return path


def _serve(model: Path, adapter: Path | None, window: int, threads: int, key: str) -> Any:
    try:
        import xllamacpp  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise BrainError(f"llamacpp brains need xllamacpp ({error}): pip install it") from None

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    params.n_ctx, params.n_parallel = window, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    # A request is abandoned between two batches: smaller ones make Ctrl-C and exit prompt.
    params.n_batch = 512
    # Prompts of several strategies take turns; the default would keep 8 GiB of them.
    params.cache_ram_mib = 512
    params.api_keys, params.ui, params.endpoint_slots = [key], False, False
    params.verbosity = -1
    try:
        return xllamacpp.Server(params)
    except RuntimeError:
        raise BrainError(
            f"llama.cpp cannot load {model}{f' with {adapter}' if adapter else ''}: the file is "
            f"damaged or of a kind it does not know, or memory is short for a window of {window}"
        ) from None
