"""A server on loopback that can misbehave on command: the servers of the tests stand on it."""

import json
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Json = dict[str, Any]
Answer = tuple[int, Json]


@dataclass(frozen=True)
class Fault:
    """What becomes of one request. `drop`: the connection ends in mid-answer; `hang`: seconds."""

    status: int = 0
    body: Json = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    hang: float = 0.0


class Loopback:
    """Answers by `answer`. The `faults` are used up first, by requests whose path ends `at`."""

    def __init__(self, port: int = 0) -> None:
        self.faults: deque[Fault] = deque()
        self.at = ""
        self.asked: list[tuple[str, Json]] = []
        self.headers: list[dict[str, str]] = []
        handler = type("Handler", (_Handler,), {"loopback": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = False  # closing waits for the answers under way
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bodies(self, path: str) -> list[Json]:
        """What was sent to `path`, in order."""
        return [body for asked, body in self.asked if asked == path]

    def answer(self, method: str, path: str, body: Json, headers: dict[str, str]) -> Answer:
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unused_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Handler(BaseHTTPRequestHandler):
    loopback: Loopback

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        size = int(self.headers.get("content-length") or 0)
        body: Json = json.loads(self.rfile.read(size) or b"{}")
        path, here = self.path.partition("?")[0], self.loopback
        headers = {key.lower(): value for key, value in self.headers.items()}
        here.asked.append((path, body))
        here.headers.append(headers)
        fault = Fault()
        if here.faults and path.endswith(here.at):
            fault = here.faults.popleft()
        time.sleep(fault.hang)
        if fault.status:
            self._send(fault.status, fault.body, fault.headers, fault.drop)
        else:
            self._send(*here.answer(method, path, body, headers), fault.headers, fault.drop)

    def _send(self, status: int, body: Json, headers: dict[str, str], drop: bool) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if drop else data)
        except OSError:
            return  # the client has gone
        if drop:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test says what it has to say."""
