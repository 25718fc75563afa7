"""Run one experiment as a sandboxed, capped process tree -> Outcome."""

import ctypes
import json
import math
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from loop.sandbox import Box
from loop.target import Target, argv
from loop.trial import Crashed, Metric, Outcome, Reason, Scored, TimedOut

TAIL_CHARS = 2000
_CHECK_S = 0.5  # a scan of /proc costs milliseconds: seldom enough to disturb no measurement
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Limits:
    """Caps on one process tree. `memory_mb`: resident, summed; 0: 80 % of the machine."""

    seconds: float
    memory_mb: int = 0
    processes: int = 256
    log_mb: int = 20
    disk_mb: int = 4096

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_mb * 2**20 or psutil.virtual_memory().total * 0.8


Cap = Literal["", "seconds", "memory", "processes", "log", "disk"]


@dataclass(frozen=True)
class Exit:
    """How a process tree ended. `cap`: the cap that ended it, if one did."""

    status: int
    seconds: float
    cap: Cap = ""


@dataclass(frozen=True)
class Runner:
    """Runs the target's command in the box, under the limits."""

    target: Target
    box: Box
    limits: Limits

    def run(self, folder: Path, env: dict[str, str], log: Path) -> tuple[Outcome, float]:
        """One experiment in `folder`, a fresh copy of the target -> outcome, seconds it took.

        The process writes its output to `log`; results are read from `folder`.
        """
        command = argv(self.target.command)
        env = _environment(env)
        wrapped = self.box.wrap(
            command, folder, reads=self.target.reads, fixed=self.target.fixed, env=env
        )
        ended = self._supervise(wrapped, folder, env, log)
        return read_outcome(self.target, ended, folder, log), ended.seconds

    def _supervise(self, command: list[str], folder: Path, env: dict[str, str], log: Path) -> Exit:
        """Run to the end or to the first cap; whatever the tree forks is dead on return."""
        _become_subreaper()
        ours = {child.pid for child in psutil.Process().children()}
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        cap: Cap = ""
        try:
            while not cap and (left := self.limits.seconds - (time.monotonic() - began)) > 0:
                if _ended(process, min(_CHECK_S, left)):
                    break
                cap = self._exceeded(process, folder, log)
            else:
                cap = cap or "seconds"
        finally:
            kill_tree(process, ours)
        return Exit(process.returncode, time.monotonic() - began, cap)

    def _exceeded(self, process: subprocess.Popen[bytes], folder: Path, log: Path) -> Cap:
        tree = _tree(process.pid)
        if len(tree) > self.limits.processes:
            return "processes"
        if sum(_resident(p) for p in tree) > self.limits.memory:
            return "memory"
        if log.stat().st_size > self.limits.log_mb * 2**20:
            return "log"
        return "disk" if _size(folder) > self.limits.disk_mb * 2**20 else ""


def read_outcome(target: Target, ended: Exit, folder: Path, log: Path) -> Outcome:
    """What an ended experiment amounts to, from its exit, its log and its result file."""
    if ended.cap == "seconds":
        return TimedOut(round(ended.seconds, 3))
    tail = read_tail(log)
    if ended.cap:
        reason = {"memory": Reason.OUT_OF_MEMORY, "processes": Reason.KILLED}
        return Crashed("train", reason.get(ended.cap, Reason.DISK_LIMIT), tail)
    if ended.status != 0:
        return Crashed("train", _crash_reason(ended.status, tail), tail)
    value, measurements = _read_metric(target, folder, log)
    if value is None:
        return Crashed("metric", Reason.METRIC_MISSING, tail)
    if not math.isfinite(value):
        return Crashed("metric", Reason.METRIC_NOT_FINITE, tail)
    direction: Literal["min", "max"] = "max" if target.direction == "max" else "min"
    return Scored(Metric(target.metric, value, direction), measurements)


def read_tail(log: Path) -> str:
    """The capped end of a log, as text without control characters."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4 * TAIL_CHARS))
        text = file.read().decode("utf-8", "replace")
    return re.sub(r"[^\n\t -~\u00a0-\uffff]", "", text)[-TAIL_CHARS:]


def kill_tree(process: subprocess.Popen[bytes], spare: set[int]) -> None:
    """SIGKILL the process and every descendant, also those that left its group or session.

    `spare`: our own children from before. What was orphaned is ours by now, as we are a subreaper.
    """
    while True:
        victims = [*_tree(process.pid)] if process.poll() is None else []
        for child in psutil.Process().children(recursive=False):
            if child.pid not in spare and child.pid != process.pid:
                victims += [child, *_tree(child.pid)]
        if not victims:
            break
        for victim in victims:
            _kill(victim.pid)
        for victim in victims:
            if victim.pid != process.pid:
                _reap(victim.pid)
        _ended(process, 0.02)
    process.wait()


def _environment(env: dict[str, str]) -> dict[str, str]:
    """A cleared environment: what a program needs to start, and what the target is told."""
    passed = ("PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
    kept = {key: os.environ[key] for key in passed if key in os.environ}
    private = {"HOME": str(Path.home()), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return kept | private | env


def _read_metric(target: Target, folder: Path, log: Path) -> tuple[float | None, dict[str, object]]:
    if target.metric_from == "result.json":
        return _read_result(folder / "result.json", target.metric)
    printed = _read_summary(log)
    value = printed.pop(target.metric, None)
    finite = {key: number for key, number in printed.items() if math.isfinite(number)}
    return value, {**finite, "metric_channel": "printed"}


def _read_result(path: Path, name: str) -> tuple[float | None, dict[str, object]]:
    try:
        data = json.loads(path.read_bytes()[: 2**22])
        value, measurements = float(data["metric"][name]), dict(data["measurements"])
        json.dumps(measurements, allow_nan=False)
    except (OSError, ValueError, TypeError, KeyError):
        return None, {}
    return value, measurements


def _read_summary(log: Path) -> dict[str, float]:
    """The `name: number` lines of Karpathy's summary block: the last of each name."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**20))
        text = file.read().decode("utf-8", "replace")
    found: dict[str, float] = {}
    for name, number in re.findall(r"^\s*([A-Za-z_]\w*):[ \t]*([^\s]+)[ \t]*$", text, re.MULTILINE):
        try:
            found[name] = float(number)
        except ValueError:
            continue
    return found


def _crash_reason(status: int, tail: str) -> Reason:
    if re.search(r"\bOutOfMemoryError\b|\bMemoryError\b|out of memory|can't allocate memory", tail):
        return Reason.OUT_OF_MEMORY
    return Reason.KILLED if status < 0 or status > 128 else Reason.EXCEPTION


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for the process, but no longer; wakes at once when it ends."""
    if process.poll() is not None:
        return True
    descriptor = os.pidfd_open(process.pid)
    try:
        select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)
    return process.poll() is not None


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _size(folder: Path) -> int:
    """Bytes under `folder`, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue
    return total


def _become_subreaper() -> None:
    """Orphans of the tree become our children, so that they can be found and ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
