"""Ollama's other half on loopback: it takes files, creates, copies and deletes models, and serves
them by the embedded llama.cpp. What it renders is the GGUF's own template, or a wrong one on
command. Source: Ollama, docs/api.md and server/create.go.
"""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from adapters.base import Base, open_base
from adapters.served import serve
from tests.loopback import Answer, Json, Loopback, _Handler


class OllamaStore(Loopback):
    """`models`: name -> what it was created of. `full`: its disk is; `wrong`: added to a prompt."""

    def __init__(self, folder: Path, version: str = "0.34.2") -> None:
        self.folder, self.version = folder, version
        self.models: dict[str, Json] = {}
        self.full, self.wrong, self.old = False, "", False
        self._alone = threading.Lock()
        super().__init__()
        self._server.RequestHandlerClass = type("Handler", (_Blobs,), {"loopback": self})

    def answer(self, method: str, path: str, body: Json, headers: dict[str, str]) -> Answer:
        routes: dict[str, Any] = {
            "/api/version": lambda: (200, {"version": self.version}),
            "/api/show": lambda: self._show(body["model"]),
            "/api/create": lambda: self._create(body),
            "/api/copy": lambda: self._copy(body),
            "/api/delete": lambda: self._delete(body["model"]),
            "/api/chat": lambda: self._chat(body),
            "/api/generate": lambda: self._generate(body),
        }
        with self._alone:
            answer: Answer = routes[path]()
            return answer

    def blob(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")

    def keep(self, digest: str, data: bytes) -> Answer:
        if self.full:
            return 500, {"error": "write /blobs/x: no space left on device"}
        if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
            return 400, {"error": "digest mismatch"}
        self.blob(digest).write_bytes(data)
        return 201, {}

    def _show(self, name: str) -> Answer:
        if name not in self.models:
            return 404, {"error": f"model '{name}' not found"}
        model = self.models[name]
        lines = [
            f"{key:30s} {json.dumps(value)}"
            for key, values in (model.get("parameters") or {}).items()
            for value in (values if isinstance(values, list) else [values])
        ]
        shown = {key: model[key] for key in ("template", "system") if key in model}
        file = f"# Modelfile\nFROM {self._weights(model)}\nTEMPLATE x\n"
        return 200, shown | {"modelfile": file, "parameters": "\n".join(lines)}

    def _create(self, body: Json) -> Answer:
        for digest in [*(body.get("files") or {}).values(), *(body.get("adapters") or {}).values()]:
            if not self.blob(digest).is_file():
                return 400, {"error": f"blob {digest} not found"}
        if source := body.get("from"):
            if source not in self.models:
                return 404, {"error": f"model '{source}' not found"}
            body = self.models[source] | body
        self.models[_full(body["model"])] = body
        return 200, {"status": "success"}

    def _copy(self, body: Json) -> Answer:
        self.models[_full(body["destination"])] = self.models[_full(body["source"])]
        return 200, {}

    def _delete(self, name: str) -> Answer:
        gone = self.models.pop(_full(name), None)
        return (200, {}) if gone else (404, {"error": f"model '{name}' not found"})

    def _chat(self, body: Json) -> Answer:
        if self.old or not body.get("_debug_render_only"):
            return 200, {"message": {"role": "assistant", "content": ""}, "done": True}
        base, file, lora = self._files(body["model"])
        with serve(base, file, lora) as engine:
            prompt = engine.render(body["messages"]) + self.wrong
        return 200, {"_debug_info": {"rendered_template": prompt}}

    def _generate(self, body: Json) -> Answer:
        assert body["raw"] and body["logprobs"], "a server with a template of its own would answer"
        if self.old:
            return 200, {"response": "x", "done": True}
        base, file, lora = self._files(body["model"])
        with serve(base, file, lora) as engine:
            top = engine.texts(engine.tokens(body["prompt"]), body["top_logprobs"])
        told = [{"token": text, "logprob": value} for text, value in top.items()]
        return 200, {"response": "x", "logprobs": [told[0] | {"top_logprobs": told}]}

    def _files(self, name: str) -> tuple[Base, Path, Path | None]:
        model = self.models[_full(name)]
        weights = self._weights(model)
        adapters = [self.blob(digest) for digest in (model.get("adapters") or {}).values()]
        return open_base(str(weights)), weights, adapters[0] if adapters else None

    def _weights(self, model: Json) -> Path:
        (digest,) = model["files"].values()
        return self.blob(digest)


class _Blobs(_Handler):
    def do_POST(self) -> None:
        store = self.loopback
        assert isinstance(store, OllamaStore)
        if not self.path.startswith("/api/blobs/"):
            return super().do_POST()
        data = self._body()
        store.asked.append((self.path, {}))
        self._send(*store.keep(self.path.rpartition("/")[2], data), {}, False)
        return None

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _body(self) -> bytes:
        """The client sends a file in chunks, without saying its length."""
        if length := self.headers.get("content-length"):
            return self.rfile.read(int(length))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
