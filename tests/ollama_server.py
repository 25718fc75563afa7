"""Ollama's protocol on loopback, answered by the embedded model.

As docs/api.md and the issues of ollama/ollama tell it: `/api/chat` (without messages it loads, and
with `keep_alive` 0 it unloads a while later), `/api/show`, `/api/ps`, `/api/tags`, `/api/version`;
a prompt beyond `num_ctx` is cut to half of it, silently, unless the server is new enough to be told
not to.
"""

import threading
import time
from typing import Any

from loop.brain import Brain
from loop.errors import BrainError
from loop.trial import Message
from tests.loopback import Answer, Json, Loopback

MODEL = "smollm2:135m"
DIGEST = "5f3b" * 16
UNLOADING_S = 0.3
CREATED = "2026-11-30T12:00:00.000000Z"


class OllamaServer(Loopback):
    """`honours`: it knows `truncate`. `most`: the largest window it grants."""

    def __init__(
        self, engine: Brain, *, honours: bool = True, most: int = 1 << 20, port: int = 0
    ) -> None:
        self.engine, self.honours, self.most = engine, honours, most
        self.window = 0  # of the loaded model; 0: not loaded
        self.events: list[str] = []
        self._leaves = 0.0
        self._alone = threading.Lock()
        super().__init__(port)

    @property
    def loaded(self) -> bool:
        if self._leaves and time.monotonic() > self._leaves:
            self.window, self._leaves = 0, 0.0
        return self.window > 0

    def answer(self, method: str, path: str, body: Json, headers: dict[str, str]) -> Answer:
        routes: dict[str, Any] = {
            "/api/version": lambda: (200, {"version": "0.34.2"}),
            "/api/tags": lambda: (200, {"models": [_listed(MODEL), _listed("bge-m3:latest")]}),
            "/api/ps": lambda: (200, {"models": self._running()}),
            "/api/show": lambda: self._show(body),
            "/api/chat": lambda: self._chat(body),
        }
        if path not in routes:
            return 404, {"error": "not found"}
        with self._alone:
            answer: Answer = routes[path]()
            return answer

    def _running(self) -> list[Json]:
        if not self.loaded:
            return []
        sizes = {"size": 2**28, "size_vram": 0, "context_length": self.window}
        return [_listed(MODEL) | sizes | {"expires_at": "2318-01-01T00:00:00Z"}]

    def _show(self, body: Json) -> Answer:
        if body["model"] not in (MODEL, "bge-m3"):
            return 404, {"error": f"model '{body['model']}' not found"}
        able = ["embedding"] if body["model"] == "bge-m3" else ["completion"]
        info = {"general.architecture": "llama", "llama.context_length": 8192}
        return 200, {"details": {"family": "llama"}, "model_info": info, "capabilities": able}

    def _chat(self, body: Json) -> Answer:
        if body["model"] != MODEL:
            return 404, {"error": f"model '{body['model']}' not found"}
        if body.get("think"):
            return 400, {"error": f'"{MODEL}" does not support thinking'}
        options = body.get("options") or {}
        if not body["messages"]:
            if body.get("keep_alive") == 0:
                self.events.append("unload")
                self._leaves = time.monotonic() + UNLOADING_S
                return 200, _done("", "unload")
            self._load(options)
            return 200, _done("", "load")
        self._load(options)
        return self._generate(body, options)

    def _load(self, options: Json) -> None:
        if not self.loaded:
            self.events.append("load")
        self._leaves = 0.0
        self.window = min(options.get("num_ctx", 4096), self.most)

    def _generate(self, body: Json, options: Json) -> Answer:
        self.events.append("chat")
        messages = [Message(m["role"], (m["content"],)) for m in body["messages"]]
        tokens = sum(self.engine.count(m.content) + 4 for m in messages)
        if tokens > self.window:
            if self.honours and body.get("truncate") is False:
                return 400, {"error": "the input length exceeds the context length"}
            messages = [self._cut(messages[-1])]
        try:
            reply = self.engine.chat(
                messages,
                temperature=options.get("temperature", 0.8),
                max_tokens=min(options.get("num_predict", 128), self.window // 4),
                seed=options.get("seed", 0),
                schema=body.get("format"),
                stop=options.get("stop") or (),
            )[0]
        except BrainError as error:
            return 400, {"error": f"invalid JSON schema in format: {error}"}
        read = self.window // 2 + 2 if tokens > self.window else reply.prompt_tokens
        counts = {
            "prompt_eval_count": read,
            "prompt_eval_cached_count": reply.cached_tokens,
            "eval_count": reply.completion_tokens,
            "total_duration": int(reply.seconds * 1e9),
        }
        return 200, _done(reply.text, reply.finish) | counts

    def _cut(self, message: Message) -> Message:
        text = message.content
        while self.engine.count(text) > self.window // 2 - 40:
            text = text[len(text) // 8 :]
        return Message(message.role, (text,))


def _listed(model: str) -> Json:
    return {"name": model, "model": model, "digest": DIGEST, "size": 2**28, "details": {}}


def _done(text: str, reason: str) -> Json:
    message = {"role": "assistant", "content": text}
    return {
        "model": MODEL, "created_at": CREATED, "message": message, "done": True,
        "done_reason": reason,
    }  # fmt: skip
