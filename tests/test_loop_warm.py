"""The warm worker: a trial that was forked is as shut in and as right as one that was started."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from loop import warm
from loop.budget import Budget
from loop.experiment import Limits, Runner
from loop.files import remove
from loop.sandbox import Box, working_bwrap
from loop.target import BUILT_IN, Target, load
from loop.trial import Crashed, Outcome, Reason, Scored, TimedOut
from loop.warm import Worker

pytestmark = pytest.mark.skipif(not working_bwrap(), reason="no bubblewrap here")
Run = Callable[..., Outcome]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def worker() -> Iterator[Worker]:
    found = Worker(["json", "random", "colorsys"])
    assert found.ready(_environment()), "else all of this would be cold"
    yield found
    found.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program as the target's train.py in a box, forked if there is a worker."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "prepare.py").write_text("x = 1\n")

    def start(
        code: str, worker: Worker | None, seconds: float = 20,
        env: dict[str, str] | None = None, command: tuple[str, ...] = ("{python}", "train.py"),
        **limits: int,
    ) -> Outcome:  # fmt: skip
        (folder / "train.py").write_text(code)
        target = Target("t", folder, "train.py", command, "val_bpb", fixed=("prepare.py",))
        runner = Runner(target, Box(working_bwrap()), Limits(seconds, **limits), worker)
        return runner.run(folder, env or {}, tmp_path / "log")[0]

    return start


def _environment() -> dict[str, str]:
    from loop.experiment import _environment as cleared

    return cleared({})


def _descendants() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}


# --- as if it had been started -----------------------------------------------------------------

SEEN = """
import json, os, resource, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
kept = ("Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
        "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigCgt", "Threads", "TracerPid",
        "Cpus_allowed_list")
print(json.dumps({
    "status": {name: status[name] for name in kept},
    "limits": [resource.getrlimit(getattr(resource, n)) for n in dir(resource)
               if n.startswith("RLIMIT") and n != "RLIMIT_NPROC"],
    "environment": dict(os.environ),
    "python": [sys.argv, sys.path, __file__, __name__, sys.executable, sys.prefix, sys.base_prefix],
    "files": sorted(os.listdir("/proc/self/fd"))[:-1],
    "places": [os.readlink("/proc/self/cwd"), os.readlink("/proc/self/root")],
    "mounts": [line.split(" ", 3)[3] for line in open("/proc/self/mountinfo")],
    "maps": [open(f"/proc/self/{kind}_map").read() for kind in ("uid", "gid")],
    "pressure": [open("/proc/self/oom_score_adj").read(), os.nice(0)],
    "cgroup": [line for line in open("/proc/self/cgroup") if ":pids:" not in line],
    "network": os.listdir("/sys/class/net") if os.path.exists("/sys/class/net") else
               open("/proc/net/dev").read().split(),
    "root": sorted(os.listdir("/")),
}))
print("val_bpb: 1")
"""


def test_a_trial_sees_the_same_box(run: Run, worker: Worker, tmp_path: Path) -> None:
    seen = []
    for forked in (None, worker):
        outcome = run(SEEN, forked, env={"AUTORESEARCH_BUDGET": "3s"})
        assert isinstance(outcome, Scored), outcome
        seen.append(json.loads((tmp_path / "log").read_text().splitlines()[0]))
        # A Python that starts without a locale names one for itself (PEP 538), a fork does not.
        seen[-1]["environment"].pop("LC_CTYPE", None)
    assert seen[0] == seen[1]
    powers = [value.strip() for name, value in seen[1]["status"].items() if name[:3] == "Cap"]
    assert powers == ["0" * 16] * 5
    assert seen[1]["files"] == ["0", "1", "2"]


ENDS = {
    "score": "print('val_bpb: 1.5')",
    "exception": "def f():\n    raise ValueError('no')\nf()",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e",
    "syntax": "x = 1\nif:\n",
    "status": "raise SystemExit(3)",
    "said": "import sys; sys.exit('a sentence')",
    "signal": "import os; os.kill(os.getpid(), 11)",
    "memory": "raise MemoryError",
    "at the exit": "import atexit; atexit.register(lambda: print('val_bpb: 2'))",
    "thread": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.3), print('val_bpb: 3'))).start()",
    "hook": "import sys\nsys.excepthook = lambda *e: print('mine', e[0])\n1 / 0",
    "pickled": "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A\n"
    "import __main__; assert __main__.A is A; print('val_bpb: 4')",
    "traps": "import inspect\ndef f(): pass\nassert 'def f' in inspect.getsource(f)\n"
    "assert __spec__ is None and __builtins__ and __doc__ is None\nprint('val_bpb: 5')",
}


@pytest.mark.parametrize("name", ENDS)
def test_it_ends_as_it_would_have(run: Run, worker: Worker, name: str, tmp_path: Path) -> None:
    cold = run(ENDS[name], None)
    said = (tmp_path / "log").read_text()
    warm_one = run(ENDS[name], worker)
    assert (tmp_path / "log").read_text() == said
    if name == "signal":  # bubblewrap tells of it as a shell does
        assert isinstance(warm_one, Crashed) and warm_one.reason is Reason.KILLED
    assert warm_one == cold


def test_it_is_a_fork_and_young(run: Run, worker: Worker, tmp_path: Path) -> None:
    code = (
        "import os, sys\nassert 'random' in sys.modules\n"
        "age = os.times().elapsed\n"
        "began = int(open('/proc/self/stat').read().rpartition(')')[2].split()[19])\n"
        "import time\nage = time.clock_gettime(time.CLOCK_BOOTTIME) - began / 100\n"
        "print('val_bpb:', age)"
    )
    time.sleep(0.5)
    outcome = run(code, worker)
    assert isinstance(outcome, Scored), (tmp_path / "log").read_text()
    born = psutil.Process(worker.pid).create_time()
    assert outcome.metric.value < time.time() - born - 0.4, "its age is not the worker's"


def test_chance_is_not_inherited(run: Run, worker: Worker) -> None:
    values = []
    for _ in range(2):
        outcome = run("import random; print('val_bpb:', random.random())", worker)
        assert isinstance(outcome, Scored)
        values.append(outcome.metric.value)
    assert values[0] != values[1]


# --- nothing passes from one trial to the next, or to the worker ---------------------------------

LITTER = """
import json, os, random, sys, time
json.dumps = json.loads = None
random.random = lambda: 0.5
sys.modules["planted"] = json
sys.path.insert(0, "/planted")
os.environ["PLANTED"] = "1"
os.environ["PATH"] = "/planted"
for folder in ("/tmp", "/dev/shm", os.path.expanduser("~")):
    open(f"{folder}/planted", "w").write("x")
if not os.fork():
    os.setsid()
    if os.fork(): os._exit(0)
    time.sleep(600)
print("val_bpb: 1")
"""
CLEAN = """
import json, os, random, sys
assert json.dumps({}) == "{}" and random.random() != 0.5
assert "planted" not in sys.modules and "/planted" not in sys.path
assert "PLANTED" not in os.environ and os.environ["PATH"] != "/planted"
for folder in ("/tmp", "/dev/shm", os.path.expanduser("~")):
    assert not os.path.exists(f"{folder}/planted"), folder
assert len([p for p in os.listdir("/proc") if p.isdigit()]) == 3, os.listdir("/proc")
print("val_bpb: 2")
"""


def test_two_trials_know_nothing_of_each_other(run: Run, worker: Worker) -> None:
    before, pid = _descendants(), worker.pid
    assert isinstance(run(LITTER, worker), Scored)
    outcome = run(CLEAN, worker)
    assert isinstance(outcome, Scored) and outcome.metric.value == 2, outcome
    assert _descendants() == before and worker.pid == pid


REACH = """
import ctypes, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def refused(action):
    try:
        result = action()
    except OSError:
        return True
    return result == -1
assert refused(lambda: os.kill(WORKER, 0)) and refused(lambda: os.kill(LOOP, 0))
assert refused(lambda: libc.ptrace(16, WORKER, 0, 0)), "attach"
assert refused(lambda: open(f"/proc/{WORKER}/status"))
assert refused(lambda: os.pidfd_open(WORKER))
holder = os.pidfd_open(1)
assert refused(lambda: libc.setns(holder, 0x20000)), "the holder's mounts"
os.close(holder)
assert refused(lambda: libc.unshare(0x20000)), "mounts of its own"
assert os.getppid() == 0, "whose child it is cannot be seen"
for name in os.listdir("/proc/self/fd"):
    try:
        place = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        continue
    assert "socket" not in place and "pipe" not in place and "[" not in place, place
for line in open("/proc/self/maps"):
    assert line.split()[1][3] == "p" or os.path.isfile(line.split()[-1]), line
assert refused(lambda: open("/proc/self/exe", "r+b"))
place = os.open("/proc/self/exe", os.O_RDONLY)
assert refused(lambda: os.write(os.open(f"/proc/self/fd/{place}", os.O_WRONLY), b"x"))
assert refused(lambda: open("/proc/1/root/etc/passwd"))
assert not os.path.exists(SECRET) and "SECRET_KEY" not in str(os.environ)
assert b"not-for-trials" not in open("/proc/self/environ", "rb").read()
print("val_bpb: 1")
"""


def test_the_worker_is_out_of_reach(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_KEY", "not-for-trials")
    (tmp_path / "secret").write_text("private")
    worker = Worker(["json"])
    assert worker.ready(_environment())
    try:
        known = f"WORKER, LOOP, SECRET = {worker.pid}, {os.getpid()}, {str(tmp_path / 'secret')!r}"
        outcome = run(known + REACH, worker)
        assert isinstance(outcome, Scored), outcome
        environ = Path(f"/proc/{worker.pid}/environ").read_bytes()
        assert b"not-for-trials" not in environ, "it has no secret that it could lose"
    finally:
        worker.close()


def test_the_interpreter_that_a_trial_sees_cannot_be_written(worker: Worker) -> None:
    with Path(f"/proc/{worker.pid}/exe").open("rb") as program:
        seals = fcntl.fcntl(program, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE and seals & fcntl.F_SEAL_SEAL
        assert program.read() == Path(sys.executable).read_bytes()


def test_a_child_that_is_not_shut_in_is_found(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as outside:
        with pytest.raises(OSError, match="shares ipc, mnt, net, pid, uts"):
            warm._own(outside.pid)
        with pytest.raises(OSError, match=r"capability|not ours"):
            warm._inspect(outside.pid, os.getpid())
        outside.kill()


# --- the caps ------------------------------------------------------------------------------------

ESCAPE = """
import os, signal, time
for _ in range(2):
    if os.fork():
        {parent}
    os.setsid()
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
while True:
    time.sleep(0.05)
    open('beat', 'w').write(str(time.time()))
"""


@pytest.mark.parametrize("parent", ["time.sleep(60)", "(time.sleep(0.6), os._exit(0))"])
def test_no_descendant_survives(run: Run, worker: Worker, parent: str, tmp_path: Path) -> None:
    before = _descendants()
    outcome = run(ESCAPE.format(parent=parent), worker, seconds=1.5)
    assert isinstance(outcome, TimedOut) is (parent == "time.sleep(60)")
    assert (tmp_path / "scratch" / "beat").exists(), "else nothing was shown"
    assert _descendants() == before


@pytest.mark.parametrize(
    ("code", "limit", "reason"),
    [
        ("while True: print('x' * 10000)", {"log_mb": 1}, Reason.DISK_LIMIT),
        ("import time; x = bytearray(300 * 2**20); time.sleep(60)", {"memory_mb": 150},
         Reason.OUT_OF_MEMORY),
        ("import os, time\nif not os.fork():\n    os.setsid(); x = bytearray(300 * 2**20)\n"
         "time.sleep(60)", {"memory_mb": 150}, Reason.OUT_OF_MEMORY),
        ("import time; open('big', 'wb').write(bytes(9 * 2**20)); time.sleep(60)", {"disk_mb": 4},
         Reason.DISK_LIMIT),
        ("import os, time; [os.fork() for _ in range(5)]; time.sleep(60)", {"processes": 10},
         Reason.KILLED),
    ],
    ids=["log", "memory", "memory of a daemon", "disk", "processes"],
)  # fmt: skip
def test_a_cap_ends_it(
    run: Run, worker: Worker, code: str, limit: dict[str, int], reason: Reason
) -> None:
    before = _descendants()
    outcome = run(code, worker, **limit)
    assert isinstance(outcome, Crashed) and outcome.reason is reason
    assert _descendants() == before


HARNESS = """
import sys
from pathlib import Path
from loop.experiment import Limits, Runner
from loop.sandbox import Box, working_bwrap
from loop.target import Target
from loop.warm import Worker
folder = Path(sys.argv[1])
target = Target("t", folder, "train.py", ("{python}", "train.py"), "val_bpb")
Runner(target, Box(working_bwrap()), Limits(60), Worker(["json"])).run(folder, {}, folder / "log")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_loop_is_the_end_of_it_all(tmp_path: Path, number: int) -> None:
    (tmp_path / "train.py").write_text(ESCAPE.format(parent="time.sleep(60)"))
    loop = subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    beat = tmp_path / "beat"
    _until(beat.exists)
    family = [psutil.Process(pid) for pid in _descendants()]
    assert len(family) >= 5, "the loop, the worker, the box and two of the trial"
    loop.send_signal(number)
    loop.wait(20)
    _until(lambda: sum(map(_lives, family)) == 0)
    last = beat.read_text()
    time.sleep(0.3)
    assert beat.read_text() == last


def _lives(process: psutil.Process) -> bool:
    # What the loop leaves behind may fall to us, and a box waits for its dead to be fetched.
    with suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    try:
        return process.is_running() and process.status() != "zombie"
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def _until(done: Callable[[], bool]) -> None:
    for _ in range(400):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about within 20 seconds")


# --- what fails falls back -----------------------------------------------------------------------

SCORE = "import sys; print('val_bpb:', 1 + ('colorsys' in sys.modules))"
WARM, COLD = 2.0, 1.0


def _value(outcome: Outcome) -> float:
    assert isinstance(outcome, Scored), outcome
    return outcome.metric.value


def test_a_worker_that_was_killed_is_replaced(run: Run, worker: Worker) -> None:
    assert _value(run(SCORE, worker)) == WARM
    first = worker.pid
    os.kill(first, signal.SIGKILL)
    _until(lambda: psutil.Process(first).status() == "zombie")
    assert _value(run(SCORE, worker)) == WARM
    assert worker.pid != first


def test_a_worker_that_does_not_answer_is_done_without(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(warm, "_ANSWER_S", 0.5)
    worker, before = Worker(["colorsys"], say=said.append), _descendants()
    assert worker.ready(_environment())
    os.kill(worker.pid, signal.SIGSTOP)
    assert _value(run(SCORE, worker)) == COLD
    assert len(said) == 1 and "timed out" in said[0]
    assert _value(run(SCORE, worker)) == WARM, "and a new one is asked"
    worker.close()
    assert _descendants() == before


@pytest.mark.parametrize("module", ["no_such_module_here", "antigravity_", "sys.nothing"])
def test_what_cannot_be_imported_is_said_once_and_done_without(run: Run, module: str) -> None:
    said: list[str] = []
    worker = Worker(["colorsys", module], say=said.append)
    for _ in range(2):
        assert _value(run(SCORE, worker)) == COLD
    assert len(said) == 1 and f"cannot import {module}" in said[0]


UNFIT = """
import mmap, threading, time
from loop.fork_server import _unfit
assert _unfit() == ""
{made}
print(_unfit())
"""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
            "started 1 threads",
        ),
        ("kept = mmap.mmap(-1, 4096)", "share memory with their children"),
    ],
)
def test_what_cannot_be_forked_cleanly_is_not_forked(made: str, said: str) -> None:
    command = [sys.executable, "-c", UNFIT.format(made=made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert said in done.stdout


def test_a_library_that_ends_its_threads_for_a_fork_is_fine(run: Run) -> None:
    worker = Worker(["colorsys", "numpy"])
    assert _value(run(SCORE, worker)) == WARM
    worker.close()


def test_another_environment_is_another_worker(run: Run, worker: Worker) -> None:
    assert _value(run(SCORE, worker, env={"AUTORESEARCH_SEED": "1"})) == WARM
    first = worker.pid
    assert _value(run(SCORE, worker, env={"AUTORESEARCH_SEED": "2"})) == WARM
    assert worker.pid == first, "what experiments are told may differ"
    assert _value(run(SCORE, worker, env={"OMP_NUM_THREADS": "1"})) == WARM
    assert worker.pid != first, "what a library reads as it is imported may not"


@pytest.mark.parametrize("command", [("{python}", "-m", "train"), ("python3", "train.py")])
def test_a_command_that_is_not_our_python_with_a_script_is_started(
    run: Run, worker: Worker, command: tuple[str, ...]
) -> None:
    assert _value(run(SCORE, worker, command=command)) == COLD


def test_a_box_that_cannot_be_built_is_told_as_ever(
    run: Run, worker: Worker, tmp_path: Path
) -> None:
    (tmp_path / "scratch" / "prepare.py").unlink()
    outcomes = [run(SCORE, forked) for forked in (None, worker)]
    assert outcomes[0] == outcomes[1] and isinstance(outcomes[0], Crashed)


# --- the built-in target -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_digits(tmp_path: Path) -> None:
    target, box = load(BUILT_IN, "cpu"), Box(working_bwrap())
    said: list[str] = []
    worker = warm.worker(target, box, said.append)
    assert worker is not None
    found: dict[str, list[tuple[object, ...]]] = {"cold": [], "warm": []}
    for kind, seed in (("cold", 0), ("warm", 0), ("warm", 1), ("cold", 1), ("warm", 0)):
        scratch = tmp_path / "scratch"
        shutil.copytree(BUILT_IN, scratch, ignore=shutil.ignore_patterns("__pycache__"))
        runner = Runner(target, box, Limits(150), worker if kind == "warm" else None)
        env = target.environment(Budget.parse("6e9flops"), seed)
        outcome, _ = runner.run(scratch, env, tmp_path / "log")
        remove(scratch)
        assert isinstance(outcome, Scored), (tmp_path / "log").read_text()
        measured = outcome.measurements
        found[kind].append((outcome.metric.value, measured["claimed"], measured["curve"]))
        if kind == "warm":
            assert measured["startup_seconds"] < measured["total_seconds"]
    worker.close()
    assert not said
    assert found["warm"][:2] == found["cold"]
    assert found["warm"][2] == found["warm"][0] != found["warm"][1]
