"""One experiment: how it may end, what it cannot reach, and that nothing of it is left."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from loop.experiment import TAIL_CHARS, Limits, Runner, read_tail
from loop.sandbox import Box, working_bwrap
from loop.target import Target
from loop.trial import Crashed, Outcome, Reason, Scored, TimedOut

Run = Callable[..., Outcome]
BOXES = [
    "none",
    pytest.param("bwrap", marks=pytest.mark.skipif(not working_bwrap(), reason="no bubblewrap")),
]
boxed = pytest.mark.skipif(not working_bwrap(), reason="no bubblewrap here")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program as the target's train.py -> its outcome. `limits` as in Limits."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "prepare.py").write_text("x = 1\n")

    def start(
        code: str, box: str = "none", seconds: float = 20, metric_from: str = "stdout",
        env: dict[str, str] | None = None, reads: tuple[str, ...] = (), **limits: int,
    ) -> Outcome:  # fmt: skip
        (folder / "train.py").write_text(code)
        target = Target(
            "t", folder, "train.py", ("{python}", "train.py"), "val_bpb",
            metric_from=metric_from, fixed=("prepare.py",), reads=reads,
        )  # fmt: skip
        chosen = Box(working_bwrap()) if box == "bwrap" else Box()
        runner = Runner(target, chosen, Limits(seconds, **limits))
        return runner.run(folder, env or {}, tmp_path / "logs" / "1.log")[0]

    return start


# --- how it ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("box", BOXES)
def test_a_summary_block_is_a_score(run: Run, box: str) -> None:
    outcome = run(
        "print('step 1: loss 3.2')\nprint('val_bpb: 9')\n"
        "print('---\\nval_bpb:          0.997900\\npeak_vram_mb:     45060.2\\nnote: nan\\na: b')",
        box,
    )
    assert isinstance(outcome, Scored), outcome
    assert (outcome.metric.name, outcome.metric.value, outcome.metric.direction) == (
        "val_bpb", 0.9979, "min",
    )  # fmt: skip
    assert outcome.measurements == {"peak_vram_mb": 45060.2, "metric_channel": "printed"}


@pytest.mark.parametrize(
    ("code", "stage", "reason"),
    [
        ("raise ValueError('no')", "train", Reason.EXCEPTION),
        ("raise SystemExit(3)", "train", Reason.EXCEPTION),
        ("raise MemoryError", "train", Reason.OUT_OF_MEMORY),
        ("raise RuntimeError('CUDA out of memory. Tried to')", "train", Reason.OUT_OF_MEMORY),
        ("import os; os.kill(os.getpid(), 11)", "train", Reason.KILLED),
        ("print('bpb: 1')", "metric", Reason.METRIC_MISSING),
        ("", "metric", Reason.METRIC_MISSING),
        ("print('val_bpb: fine')", "metric", Reason.METRIC_MISSING),
        ("print('val_bpb: nan')", "metric", Reason.METRIC_NOT_FINITE),
        ("print('val_bpb: -inf')", "metric", Reason.METRIC_NOT_FINITE),
    ],
)
@pytest.mark.parametrize("box", BOXES)
def test_a_failure_is_told_apart(run: Run, code: str, stage: str, reason: Reason, box: str) -> None:
    outcome = run(code, box)
    assert isinstance(outcome, Crashed)
    assert (outcome.stage, outcome.reason) == (stage, reason)


def test_a_crash_keeps_the_end_of_its_log_capped_and_printable(run: Run) -> None:
    outcome = run("print('x' * 9999 + '\\x1b[31m\\x00'); raise ValueError('the last words')")
    assert isinstance(outcome, Crashed)
    assert "the last words" in outcome.tail and len(outcome.tail) <= TAIL_CHARS
    assert "\x1b" not in outcome.tail and "\x00" not in outcome.tail


def test_a_tail_may_begin_within_a_character(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes("é".encode() * TAIL_CHARS * 3 + b"\xff end")
    assert read_tail(tmp_path / "log").endswith(" end")


def test_a_command_that_is_not_there_is_a_crash_at_the_start(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    target = Target("t", folder, "train.py", ("no-such-program-here",), "val_bpb")
    outcome, _ = Runner(target, Box(), Limits(5)).run(folder, {}, tmp_path / "log")
    assert isinstance(outcome, Crashed) and outcome.stage == "start"
    assert "cannot start no-such-program-here: No such file" in outcome.tail


RESULT = "import json; json.dump({}, open('result.json', 'w'))"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"metric": {"val_bpb": 1.5}, "measurements": {"steps": 3}}, None),
        ({"metric": {"val_bpb": 1.5}}, Reason.METRIC_MISSING),
        ({"metric": {"other": 1.5}, "measurements": {}}, Reason.METRIC_MISSING),
        ({"metric": {"val_bpb": "x"}, "measurements": {}}, Reason.METRIC_MISSING),
        ({"metric": {"val_bpb": 10**400}, "measurements": {}}, Reason.METRIC_MISSING),
        ({"metric": {"val_bpb": float("nan")}, "measurements": {}}, Reason.METRIC_NOT_FINITE),
        ({"metric": {"val_bpb": 1}, "measurements": {"a": float("inf")}}, Reason.METRIC_MISSING),
        ([], Reason.METRIC_MISSING),
    ],
)
def test_a_result_file(run: Run, result: object, reason: Reason | None) -> None:
    code = f"open('result.json', 'w').write({json.dumps(result)!r})"
    outcome = run(code, metric_from="result.json")
    if reason is None:
        assert isinstance(outcome, Scored) and outcome.measurements == {"steps": 3}
    else:
        assert isinstance(outcome, Crashed) and outcome.reason is reason


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.mkfifo('result.json')",
        "import os; os.symlink('/dev/zero', 'result.json')",
        "import os; os.mkdir('result.json')",
        "open('result.json', 'w').write('[' * 100000)",
        "pass",
    ],
)
def test_a_result_file_that_is_a_trap_is_a_missing_metric(run: Run, code: str) -> None:
    outcome = run(code, metric_from="result.json")
    assert isinstance(outcome, Crashed) and outcome.reason is Reason.METRIC_MISSING


def test_a_log_of_blank_lines_does_not_stall_the_reader(run: Run) -> None:
    began = time.process_time()
    outcome = run("print('\\n' * 900_000); print('val_bpb: 1')")
    assert isinstance(outcome, Scored)
    assert time.process_time() - began < 5


# --- the caps ----------------------------------------------------------------------------------

# Forks twice, leaves its session, ignores what it can, and writes its pid where we find it.
ESCAPE = """
import os, signal, sys, time
for _ in range(2):
    if os.fork():
        {parent}
    os.setsid()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
open('escaped', 'w').write('x')
while True:
    time.sleep(0.05)
    open('beat', 'w').write(str(time.time()))
"""


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("parent", ["time.sleep(60)", "os._exit(0)"])
def test_no_descendant_survives(run: Run, box: str, parent: str, tmp_path: Path) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    first = "time.sleep(1.0) or " if parent == "os._exit(0)" else ""
    outcome = run(ESCAPE.format(parent=first + parent), box, seconds=1.5)
    if parent == "time.sleep(60)":
        assert isinstance(outcome, TimedOut)
    folder = tmp_path / "scratch"
    assert (folder / "escaped").exists(), "else nothing was shown"
    beat = (folder / "beat").read_text()
    time.sleep(0.3)
    assert (folder / "beat").read_text() == beat, "it is still alive"
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


@pytest.mark.parametrize("box", BOXES)
def test_a_time_out_is_its_own_outcome(run: Run, box: str) -> None:
    outcome = run("print('val_bpb: 1', flush=True)\nimport time; time.sleep(60)", box, seconds=0.7)
    assert isinstance(outcome, TimedOut) and 0.7 <= outcome.after < 10


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(
    ("code", "limit", "reason"),
    [
        ("while True: print('x' * 10000)", {"log_mb": 1}, Reason.DISK_LIMIT),
        ("import time; x = bytearray(300 * 2**20); time.sleep(60)", {"memory_mb": 150},
         Reason.OUT_OF_MEMORY),
        ("import time; open('big', 'wb').write(bytes(9 * 2**20)); time.sleep(60)", {"disk_mb": 4},
         Reason.DISK_LIMIT),
        ("import os, time; [os.fork() for _ in range(5)]; time.sleep(60)", {"processes": 10},
         Reason.KILLED),
    ],
    ids=["log", "memory", "disk", "processes"],
)  # fmt: skip
def test_a_cap_ends_the_tree(
    run: Run, code: str, limit: dict[str, int], reason: Reason, box: str
) -> None:
    outcome = run(code, box, **limit)
    assert isinstance(outcome, Crashed) and outcome.reason is reason


def test_memory_of_a_process_that_left_the_tree_counts_too(run: Run) -> None:
    code = (
        "import os, time\n"
        "if os.fork(): time.sleep(60)\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid(); x = bytearray(300 * 2**20); time.sleep(60)\n"
    )
    outcome = run(code, memory_mb=150)
    assert isinstance(outcome, Crashed) and outcome.reason is Reason.OUT_OF_MEMORY


def test_folders_that_vanish_while_they_are_measured_do_no_harm(run: Run) -> None:
    code = (
        "import os, shutil, time\nend = time.time() + 2\n"
        "while time.time() < end:\n"
        "    [os.makedirs(f'a{i}/b/c', exist_ok=True) for i in range(50)]\n"
        "    [shutil.rmtree(f'a{i}') for i in range(50)]\n"
        "print('val_bpb: 1')"
    )
    assert isinstance(run(code), Scored)


# --- what it can reach -------------------------------------------------------------------------


@pytest.mark.parametrize("box", BOXES)
def test_the_environment_is_cleared(run: Run, box: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    monkeypatch.setenv("SOME_SETTING", "1")
    code = (
        "import os\nassert 'OPENAI_API_KEY' not in os.environ and 'SOME_SETTING' not in os.environ"
        "\nassert os.environ['AUTORESEARCH_BUDGET'] == '3s'\nassert os.environ['PATH']\n"
        "print('val_bpb: 1')"
    )
    outcome = run(code, box, env={"AUTORESEARCH_BUDGET": "3s"})
    assert isinstance(outcome, Scored), outcome


PROBE = """
import os, socket, sys
def refused(action):
    try:
        action()
    except OSError as error:
        return True
    return False
{checks}
print('val_bpb: 1')
"""


@boxed
@pytest.mark.parametrize(
    "check",
    [
        "assert refused(lambda: socket.create_connection(('1.1.1.1', 53), 2))",
        "assert refused(lambda: socket.create_connection(('127.0.0.1', PORT), 2))",
        "assert not os.path.exists(SECRET)",
        "assert refused(lambda: open('/etc/passwd'))",
        "assert refused(lambda: open('/usr/x', 'w'))",
        "assert refused(lambda: open('/etc/x', 'w'))",
        "refused(lambda: open('../x', 'w'))",
        "assert refused(lambda: open('/x', 'w')) and refused(lambda: open('/dev/x', 'w'))",
        "open('/dev/shm/x', 'w').write('x'); open('/dev/null', 'w').write('x')",
        "assert os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize == 2**31",
        "assert refused(lambda: open('prepare.py', 'a'))",
        "assert refused(lambda: os.remove('prepare.py'))",
        "assert refused(lambda: os.rename('prepare.py', 'p'))",
        "open('mine', 'w').write('x'); open('/tmp/mine', 'w').write('x')",
        "assert len([p for p in os.listdir('/proc') if p.isdigit()]) < 5",
        "assert refused(lambda: os.kill(PARENT, 0))",
    ],
)
def test_the_box_is_shut(run: Run, tmp_path: Path, check: str) -> None:
    import socket

    secret = Path.home() / f".autoresearch-test-{os.getpid()}"
    secret.write_text("private")
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            known = (
                f"PORT, SECRET, HOME, PARENT = {server.getsockname()[1]}, {str(secret)!r}, "
                f"{str(Path.home())!r}, {os.getpid()}\n"
            )
            outcome = run(PROBE.format(checks=known + check), "bwrap")
    finally:
        secret.unlink()
    assert isinstance(outcome, Scored), outcome
    assert (tmp_path / "scratch" / "prepare.py").read_text() == "x = 1\n"
    assert not (tmp_path / "x").exists()


@boxed
def test_what_it_may_read_it_reads_and_does_not_write(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "text").write_text("words")
    check = (
        f"assert open({str(data / 'text')!r}).read() == 'words'\n"
        f"assert refused(lambda: open({str(data / 'text')!r}, 'w'))"
    )
    outcome = run(PROBE.format(checks=check), "bwrap", reads=(str(data), str(tmp_path / "absent")))
    assert isinstance(outcome, Scored), outcome


def test_limits_without_a_figure_take_most_of_the_machine() -> None:
    total = psutil.virtual_memory().total
    assert Limits(1).memory == total * 0.8
    assert replace(Limits(1), memory_mb=1).memory == 2**20
