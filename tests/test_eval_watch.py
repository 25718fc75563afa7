"""The live page: a real server on a real folder, asked as a browser would and as none should."""

import http.client
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from eval import live, watch
from loop.errors import UsageError
from loop.ledger import Ledger
from loop.trial import Record, Reply, Trial
from tests import browser, plan_folder
from tests.conftest import ROOT, Cli, a_trial, git, outside
from tests.test_eval_report import HOSTILE, Page


def a_run(folder: Path, *records: Record) -> Path:
    with Ledger(folder) as ledger:
        for record in records or (a_trial(), a_trial(1)):
            ledger.append(record)
    (folder / "run.toml").write_text(
        '[args]\ntrials = 5\n[target]\nname = "toy"\neditable = "train.py"\n'
    )
    return folder


def saying(number: int, text: str) -> Trial:
    trial: Trial = a_trial(number, description=text)
    (call,) = trial.proposal.calls
    said = replace(trial.proposal, calls=(replace(call, replies=(Reply(text),)),))
    return replace(trial, proposal=said)


def in_flight(run: Path, number: int) -> None:
    """The run as its loop leaves it while trial `number` trains: commit, scratch, log."""
    work, scratch = run / "work", run / "scratch" / str(number)
    work.mkdir()
    git(work, "init", "--quiet")
    for text, message in (("LR = 0.1\n", "start"), (f"LR = 0.{number}\n", "trial")):
        (work / "train.py").write_text(text)
        git(work, "add", ".")
        git(work, "commit", "--quiet", "-m", message)
    git(work, "update-ref", f"refs/trials/{number}", "HEAD")
    scratch.mkdir(parents=True)
    (scratch / "train.py").write_text("LR")
    (run / "logs").mkdir()
    (run / "logs" / f"{number}.log").write_text("x" * 9000 + "\nstep 3 loss 2.1\n")


@pytest.fixture
def serving() -> Iterator["Serving"]:
    found = Serving()
    yield found
    found.close()


class Serving:
    """Servers of folders, each in a thread, until the test is over."""

    def __init__(self) -> None:
        self._servers: list[ThreadingHTTPServer] = []

    def __call__(self, folder: Path) -> int:
        server = watch.serve(folder)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._servers.append(server)
        return int(server.server_port)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def ask(
    port: int, path: str = "/", method: str = "GET", host: str | None = None
) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers with small names) of a request to 127.0.0.1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", f"127.0.0.1:{port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, {k.lower(): v for k, v in answer.getheaders()}


# --- who may ask what


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    with watch.serve(a_run(tmp_path / "run")) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_only_a_host_that_is_this_address_is_answered(tmp_path: Path, serving: Serving) -> None:
    port = serving(a_run(tmp_path / "run"))
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert ask(port, host=host)[0] == 200
    for host in (
        "evil.example", f"evil.example:{port}", "127.0.0.1", "localhost", f"127.0.0.1:{port + 1}",
        f"127.0.0.1:{port}.evil.example", f"[::1]:{port}", "",
    ):  # fmt: skip
        status, body, _ = ask(port, host=host)
        assert status == 403 and "trial" not in body, host
        assert ask(port, "/live", host=host)[0] == 403


def test_two_hosts_are_none(tmp_path: Path, serving: Serving) -> None:
    port = serving(a_run(tmp_path / "run"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("GET", "/", skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{port}")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_reading_is_understood(tmp_path: Path, serving: Serving, method: str) -> None:
    assert ask(serving(a_run(tmp_path / "run")), method=method)[0] == 501


def test_head_has_the_headers_and_no_body(tmp_path: Path, serving: Serving) -> None:
    port = serving(a_run(tmp_path / "run"))
    status, body, headers = ask(port, method="HEAD")
    assert (status, body) == (200, "")
    assert int(headers["content-length"]) == len(ask(port)[1].encode())


@pytest.mark.parametrize(
    "path",
    [
        "/run.toml", "/ledger.jsonl", "/../run/ledger.jsonl", "/%2e%2e/x", "//etc/passwd",
        "/runs/menu/9", "/runs/menu/0/ledger.jsonl", "/runs/menu/../menu/0", "/runs/../runs/menu/0",
        "/live/etc/passwd", "/livex",
    ],
)  # fmt: skip
def test_no_file_is_served_by_its_name(tmp_path: Path, serving: Serving, path: str) -> None:
    assert ask(serving(plan_folder.write(tmp_path, 1, 2)), path)[0] == 404


def test_every_answer_forbids_what_a_page_of_ours_does_not_need(
    tmp_path: Path, serving: Serving
) -> None:
    port = serving(a_run(tmp_path / "run"))
    for path in ("/", "/live", "/nothing"):
        headers = ask(port, path)[2]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    read = Page(ask(port)[1])
    (policy,) = [
        a["content"] or "" for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script-src 'sha256-" in policy and "connect-src 'self'" in policy
    assert "unsafe" not in policy and read.count("script") == 1


# --- what it shows


def test_a_run_that_stopped_says_so_with_its_figures(tmp_path: Path, serving: Serving) -> None:
    text = Page(ask(serving(a_run(tmp_path / "run")), "/live")[1]).text
    assert "stopped" in text and "after trial 1 of 5" in text and "1.5000" in text


def test_a_run_in_flight_shows_its_edit_log_and_last_reply(
    tmp_path: Path, serving: Serving
) -> None:
    run = a_run(tmp_path / "run", a_trial(), saying(1, "I would raise LR."))
    in_flight(run, 2)
    with Ledger(run):  # held, as its loop holds it
        text = Page(ask(serving(run))[1]).text
    assert "running" in text and "trial 2 of 5: training" in text
    assert "+LR = 0.2" in text and "-LR = 0.1" in text
    assert "step 3 loss 2.1" in text and "x" * 2000 not in text
    assert "Last reply, of trial 1" in text and "I would raise LR." in text


@pytest.mark.parametrize(
    ("scratch", "doing"),
    [
        ("2", "training"),
        ("1-replicate-77", "replicate of trial 1"),
        ("0-noise-3", "noise of trial 0"),
        ("", "deciding"),
    ],
)
def test_what_is_being_done_is_read_from_the_folder(
    tmp_path: Path, scratch: str, doing: str
) -> None:
    run = a_run(tmp_path / "run")
    in_flight(run, 2)
    shutil.rmtree(run / "scratch")
    (run / "scratch" / scratch).mkdir(parents=True)
    (run / "scratch" / scratch / "train.py").write_text("")
    if not scratch:
        shutil.rmtree(run / "scratch")
    with Ledger(run):
        assert live.look(run).doing == doing
    assert live.look(run).doing == "stopped"


def test_a_page_is_new_once_the_ledger_has_grown(tmp_path: Path, serving: Serving) -> None:
    run = a_run(tmp_path / "run")
    port = serving(run)
    first, tag = ask(port)[1], live.tag(run)
    assert f'data-tag="{tag}"' in first
    with Ledger(run) as ledger:
        ledger.append(a_trial(2, description="a third thing"))
    assert live.tag(run) != tag
    deadline = time.monotonic() + 60
    while "a third thing" not in (page := ask(port)[1]):  # a costly page is not made anew at once
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert f'data-tag="{live.tag(run)}"' in page
    assert "after trial 2 of 5" in Page(ask(port, "/live")[1]).text


def test_a_plan_links_to_each_of_its_runs(tmp_path: Path, serving: Serving) -> None:
    out = plan_folder.write(tmp_path, 2, 3, without=[("menu", 1)])
    port = serving(out)
    page = Page(ask(port)[1])
    links = [a["href"] or "" for _, a in page.tags if (a.get("href") or "").startswith("/runs/")]
    assert len(links) == 5 and "/runs/menu/1" not in links
    assert "5 of 6 runs have all their trials" in page.text
    assert "A plan to test pages with" in page.text
    for link in links:
        assert ask(port, link)[0] == 200
        assert ask(port, f"/live{link}")[0] == 200


def test_before_the_first_record_it_waits(tmp_path: Path, serving: Serving) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    port = serving(folder)
    assert "Waiting for the first record" in ask(port)[1]
    a_run(folder)
    assert ask(port, "/live")[0] == 200
    assert live.tag(folder) != "empty"


def test_a_ledger_that_cannot_be_read_is_told(tmp_path: Path, serving: Serving) -> None:
    run = a_run(tmp_path / "run")
    with (run / "ledger.jsonl").open("a") as ledger:
        ledger.write("nonsense\n")
    status, body, _ = ask(serving(run))
    assert status == 200 and "line 3 is corrupt" in Page(body).text
    assert str(tmp_path) not in body


def test_foreign_text_adds_nothing_to_the_panel(tmp_path: Path, serving: Serving) -> None:
    plain = HOSTILE.translate({ord(c): "x" for c in "<>&\"'`"})
    found = []
    for name, text in (("a", HOSTILE), ("b", plain)):
        run = a_run(tmp_path / name, a_trial(), saying(1, text))
        in_flight(run, 2)
        (run / "logs" / "2.log").write_text(text, errors="replace")
        with Ledger(run):
            found.append(Page(ask(serving(run), "/live")[1]))
    assert [tag for tag, _ in found[0].tags] == [tag for tag, _ in found[1].tags]
    assert found[0].count("script") == found[0].count("img") == 0


def test_a_graphics_card_is_shown_as_nvidia_smi_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A10, 87, 9000, 23028'\necho 'Odd, [N/A], 1, 2'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(live, "_seen", [(float("-inf"), ())])
    assert live.gpus() == (live.Gpu("NVIDIA A10", 87, 9000, 23028),)


# --- the verb


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        watch.serve(tmp_path / "nowhere")
    with watch.serve(tmp_path) as server, pytest.raises(UsageError, match="name another --port"):
        watch.serve(tmp_path, server.server_port)
    with pytest.raises(UsageError, match="name another --port"):
        watch.serve(tmp_path, 70_000)


def test_the_verb_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    import signal

    run = a_run(tmp_path / "run")
    code = "import sys; from eval import watch; sys.exit(watch.run(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run), "--port", "0"], stdout=subprocess.PIPE, text=True,
        env=outside(), cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout
    line = process.stdout.readline()
    port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
    assert ask(port)[0] == 200
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "the run goes on" in rest


@pytest.mark.slow
def test_in_a_browser_it_follows_without_a_reload(
    tmp_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.required()
    run = a_run(tmp_path / "run", a_trial(), saying(1, HOSTILE))
    port = serving(run)

    def grow() -> None:
        with Ledger(run) as ledger:
            ledger.append(a_trial(2, description="what came later"))

    # The page is fetched, then grows: what the browser shows in the end came by its script.
    asked = threading.Event()
    made = watch.Pages.get

    def get(pages: watch.Pages, path: str) -> str | None:
        found = made(pages, path)
        if path == "/" and not asked.is_set():
            asked.set()
            grow()
        return found

    monkeypatch.setattr(watch.Pages, "get", get)
    monkeypatch.setattr(watch, "PATIENCE", 0)  # the browser's time runs faster than ours
    dom = browser.dom(f"http://127.0.0.1:{port}/", tmp_path / "profile", 15_000)
    assert asked.is_set() and "what came later" in dom
    assert "document.title='owned'" in dom and "<title>Autoresearch report</title>" in dom
    assert Page(dom).count("script") == 1 and Page(dom).count("img") == 0


def test_the_command_knows_the_verb(run_cli: Cli) -> None:
    assert run_cli("watch", "--help").returncode == 0
