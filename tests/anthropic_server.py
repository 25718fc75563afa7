"""Anthropic's Messages and Models APIs on loopback, answered by the embedded model.

As the API reference tells it: a newer model refuses a temperature and thinks always, an older one
takes one and can be told not to think; what lies before a `cache_control` marker is kept, and read
from the cache by the next request that begins alike.
"""

from loop.brain import Brain
from loop.trial import Message
from tests.loopback import Answer, Json, Loopback

OLDER, NEWER = "claude-haiku-4-5", "claude-opus-5-5"


class AnthropicServer(Loopback):
    def __init__(self, engine: Brain, key: str) -> None:
        self.engine, self.key = engine, key
        self._kept: set[str] = set()
        super().__init__()

    def answer(self, method: str, path: str, body: Json, headers: dict[str, str]) -> Answer:
        if self.key not in (headers.get("x-api-key"), headers.get("authorization", "")[7:]):
            return _error(401, "authentication_error", f"invalid x-api-key {self.key}")
        if path == "/v1/models":
            return 200, {"data": [_model(OLDER), _model(NEWER)], "has_more": False}
        if path.startswith("/v1/models/"):
            name = path.rpartition("/")[2]
            if name not in (OLDER, NEWER):
                return _error(404, "not_found_error", f"model: {name}")
            return 200, _model(name)
        return self._message(body)

    def _message(self, body: Json) -> Answer:
        if body["model"] == NEWER and "temperature" in body:
            return _error(400, "invalid_request_error", "`temperature` is deprecated")
        if body["model"] == NEWER and (body.get("thinking") or {}).get("type") == "disabled":
            return _error(400, "invalid_request_error", "thinking.type.disabled is not supported")
        form = (body.get("output_config") or {}).get("format")
        blocks = [*body.get("system", ()), *(b for m in body["messages"] for b in m["content"])]
        if any(not block["text"].strip() for block in blocks if isinstance(block, dict)):
            return _error(400, "invalid_request_error", "text content blocks must be non-empty")
        reply = self.engine.chat(
            _messages(body),
            temperature=body.get("temperature", 1.0),
            max_tokens=min(body["max_tokens"], 64),
            schema=form["schema"] if form else None,
            stop=body.get("stop_sequences", ()),
        )[0]
        content = [{"type": "text", "text": reply.text}]
        if body["model"] == NEWER:
            content.insert(0, {"type": "thinking", "thinking": "Hm.", "signature": "x"})
        return 200, {
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"],
            "content": content,
            "stop_reason": {"length": "max_tokens"}.get(reply.finish, "end_turn"),
            "stop_sequence": None,
            "usage": self._usage(blocks, reply.prompt_tokens, reply.completion_tokens),
        }  # fmt: skip

    def _usage(self, blocks: list[Json], prompt: int, completion: int) -> Json:
        marked = [i for i, b in enumerate(blocks) if isinstance(b, dict) and "cache_control" in b]
        prefix = "".join(b["text"] for b in blocks[: marked[-1] + 1]) if marked else ""
        tokens = min(self.engine.count(prefix), prompt)
        known = prefix in self._kept
        self._kept.add(prefix)
        return {
            "input_tokens": prompt - tokens,
            "cache_read_input_tokens": tokens if known else 0,
            "cache_creation_input_tokens": 0 if known else tokens,
            "output_tokens": completion,
        }


def _messages(body: Json) -> list[Message]:
    found = [Message("system", tuple(b["text"] for b in body.get("system", ())))]
    for turn in body["messages"]:
        content = turn["content"]
        parts = (content,) if isinstance(content, str) else tuple(b["text"] for b in content)
        found.append(Message(turn["role"], parts))
    return [message for message in found if message.content]


def _model(name: str) -> Json:
    def can(*names: str) -> Json:
        kinds = ("adaptive", "between_tools", "disabled", "enabled")
        return {kind: {"supported": kind in names} for kind in kinds}

    types = can("adaptive") if name == NEWER else can("disabled", "enabled")
    return {
        "id": name, "type": "model", "display_name": name, "created_at": "2026-09-22T00:00:00Z",
        "lifecycle": "active", "max_input_tokens": 2048,
        "capabilities": {"thinking": {"supported": True, "types": types}},
    }  # fmt: skip


def _error(status: int, kind: str, message: str) -> Answer:
    return status, {"type": "error", "error": {"type": kind, "message": message}}
