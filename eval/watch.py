"""`watch DIR`: the pages of a running loop or plan, following it, on this machine only.

Read only: 127.0.0.1, GET and HEAD, and a Host that is this address (else another site could have a
browser resolve its own name to it and read along). A small script, the only one that the policy
allows, fetches the page again when a ledger has changed and puts in what is new: a reload by the
browser would shut what the reader opened and, while a long page is laid out, lose the place. Where
scripts are off the page reloads itself every quarter of a minute.
"""

import http.server
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval import headtohead, live, pages, report, words
from eval.plan import RECORD
from eval.results import RUNS
from eval.summary import summarise
from loop import flags
from loop.errors import AutoresearchError, UsageError
from loop.flags import flag
from loop.ledger import LEDGER

ADDRESS = "127.0.0.1"
PATIENCE = 10
"""A page that took a second to make is made again after this many seconds at the earliest."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'; object-src 'none'; img-src 'none'",
}


@dataclass(frozen=True)
class WatchArgs:
    """Follow a running loop or plan in a browser on this machine."""

    dir: Path = flag(help="folder of a run, or of a plan's runs", positional=True)
    port: int = flag(8765, "on 127.0.0.1; 0: any that is free")


def run(argv: Sequence[str]) -> int:
    """The verb `watch`, until Ctrl-C. Raises UsageError: no such folder, or the port is taken."""
    args = flags.parse("watch", WatchArgs, argv)
    with serve(args.dir, args.port) as server:
        print(f"watching {args.dir} at {address(server)} until Ctrl-C", flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("stopped watching; the run goes on")
    return 0


def serve(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of `folder`, bound and not yet serving. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name that of a run or of a plan's runs")
    try:
        return http.server.ThreadingHTTPServer((ADDRESS, port), partial(_Handler, Pages(folder)))
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on port {port} ({error}); name another --port") from None


def address(server: http.server.ThreadingHTTPServer) -> str:
    """Where a browser finds it."""
    return f"http://{ADDRESS}:{server.server_port}/"


class Pages:
    """The pages of `root` by path: `/`, of a plan `/runs/ARM/SEED`, and each under `/live` its
    panel alone. A page is made anew when what it is made from has changed, and not too often."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[str, tuple[str, float, float, str]] = {}  # tag, when, how long, page
        self._one = threading.Lock()

    def get(self, path: str) -> str | None:
        """The page at `path`, None: there is none."""
        panel = path == "/live" or path.startswith("/live/")
        rest = path.removeprefix("/live") if panel else path
        folder = self._folder(rest)
        if folder is None:
            return None
        with self._one:
            return _panel(folder) if panel else self._page(rest, folder)

    def _folder(self, path: str) -> Path | None:
        """Only folders that lie there as the plan lays them: nothing of `path` is resolved."""
        if path in ("", "/"):
            return self.root
        known = {f"/{RUNS}/{p.parent.parent.name}/{p.parent.name}": p.parent
                 for p in (self.root / RUNS).glob(f"*/*/{LEDGER}")}  # fmt: skip
        return known.get(path)

    def _page(self, path: str, folder: Path) -> str:
        tag, now = live.tag(folder), time.monotonic()
        if path in self._made:
            old, at, took, text = self._made[path]
            if old == tag or now - at < PATIENCE * took:
                return text
        text = _page(folder)
        self._made[path] = (tag, now, time.monotonic() - now, text)
        return text


def _page(folder: Path) -> str:
    """The report of `folder` as far as it is, with the panel above it."""
    state = live.look(folder)
    try:
        if (folder / RECORD).is_file():
            return headtohead.html(headtohead.compare(folder), state)
        return report.page([summarise(folder)], state)
    except AutoresearchError:
        return pages.html("watch.html.j2", ("report.css",), words.visible, state)


def _panel(folder: Path) -> str:
    return pages.html("live.html.j2", (), words.visible, live.look(folder))


class _Handler(http.server.BaseHTTPRequestHandler):
    server_version, sys_version = "autoresearch", ""
    timeout = 30

    def __init__(
        self, pages_: Pages, request: Any, client: Any, server: http.server.HTTPServer
    ) -> None:
        self._pages, self._port = pages_, server.server_port
        super().__init__(request, client, server)

    def do_GET(self) -> None:
        self._answer(self.wfile.write)

    def do_HEAD(self) -> None:
        self._answer(lambda _: None)

    def _answer(self, write: Callable[[bytes], Any]) -> None:
        port = self._port
        if self.headers.get_all("Host") not in ([f"{ADDRESS}:{port}"], [f"localhost:{port}"]):
            return self.send_error(403, "Forbidden", "this page is for this machine only")
        found = self._pages.get(self.path.partition("?")[0])
        if found is None:
            return self.send_error(404)
        body = found.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        write(body)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a terminal that is watched every two seconds says nothing else."""
