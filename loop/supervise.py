"""Start processes that belong together, hold them to caps, and leave nothing of them alive.

What bounds them: the clock (monotonic: a wall clock that jumps ends nothing), resident memory,
processes, the log, the folders they write. A scan of all that costs milliseconds, so it comes every
half second; in between one read of /proc/loadavg tells whether tasks multiply. The kernel's own
limit on tasks stands behind the scan: RLIMIT_NPROC, and for root, who is immune to that, a cgroup
with pids.max where one can be made. Where it cannot, the watcher has to be quick: it comes before
all other processes, and what multiplies too fast is ended unseen.
"""

import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import psutil

from loop import secrets

COMMAND_NOT_FOUND = 127  # as a shell says it
LEAST_FREE_BYTES = 100 * 2**20  # of the disk; below that everything else suffers
_SCAN_S, _GLANCE_S = 0.5, 0.05
_GROUP_TRIES = 250  # to remove a control group, over five seconds
_TASKS_EACH = 16  # threads that a process may have on average
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


Cap = Literal["", "seconds", "memory", "processes", "log", "disk", "hopeless"]


@dataclass(frozen=True)
class Exit:
    """How a process tree ended. `cap`: the cap that ended it, if one did."""

    status: int
    seconds: float
    cap: Cap = ""


class Process(Protocol):
    """What is watched: a program that was started here, or a child that was forked elsewhere."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def end(self) -> None:
        """SIGKILL it and its group, or the box that it is in."""


class Program(subprocess.Popen[bytes]):
    """A program in a session of its own, with standard error in the log."""

    def end(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


Confine = Callable[[int], None]
"""Puts the caps that the kernel holds on the process of that id; 0: on the caller."""
Start = Callable[[Sequence[str], Path, int, int, Sequence[int]], Program]
"""Starts a confined program: command, folder, standard input and output, descriptors to pass."""


class Launch(Protocol):
    """Another way to start a part: see loop.warm."""

    def __call__(
        self, part: "Part", log: int, start: Start, confine: Confine, /
    ) -> Process | None: ...


@dataclass(frozen=True)
class Part:
    """One command of those that belong together. Standard error goes to the log, always.

    `launch` starts it, unless that gives None: then `command` does.
    """

    command: Sequence[str]
    folder: Path
    stdin: int = subprocess.DEVNULL
    stdout: int | None = None  # the log
    launch: Launch | None = None


def supervise(
    parts: Sequence[Part], env: dict[str, str], log: Path, limits: Limits, *, boxed: bool,
    pipes: Sequence[int] = (), give_up: Callable[[Path], bool] | None = None,
) -> Exit:  # fmt: skip
    """Run `parts` until the first of them ends or a cap is reached; all are dead on return.

    `boxed`: whether the commands confine what they run; if not, they lose the right to look into
    other processes. `pipes`: descriptors that the parts were given and that are closed here.
    `give_up`: asked with the log, twice a second, whether to go on.
    """
    # Orphans of the tree become our children, so that they can be found and ended.
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours = {child.pid for child in psutil.Process().children()}
    log.parent.mkdir(parents=True, exist_ok=True)
    began, processes = time.monotonic(), list[Process]()
    cap: Cap = ""
    with log.open("wb") as output, _cgroup(limits) as group, _urgent():
        try:
            for part in parts:
                processes.append(_start(part, env, output, limits, boxed, group))
            while pipes:
                os.close(pipes[0])
                pipes = pipes[1:]
            folders = [part.folder for part in parts]
            cap = _watch(processes, ours, folders, log, limits, began, give_up)
        except OSError as error:
            output.write(f"cannot start {part.command[0]}: {error.strerror}\n".encode())
            return Exit(COMMAND_NOT_FOUND, time.monotonic() - began)
        finally:
            for pipe in pipes:
                os.close(pipe)
            for process in processes:
                kill_tree(process, ours)
    if cap == "log":
        os.truncate(log, limits.log_mb * 2**20)
    return Exit(processes[0].wait(), time.monotonic() - began, cap)


def kill_tree(process: Process, spare: set[int]) -> None:
    """SIGKILL the process and every descendant, also those that left its group or session.

    `spare`: our own children from before. What was orphaned is ours by now, as we are a subreaper.
    """
    process.end()  # first: with a box goes all that is in it
    _ended(process, 0.2)
    while True:
        victims = _tree(process.pid) if process.poll() is None else []
        victims += _orphans(process.pid, spare)
        if not victims:
            break
        for victim in victims:
            _kill(victim.pid)
        for victim in victims:
            if victim.pid != process.pid:
                _reap(victim.pid)
        _ended(process, 0.02)
    process.wait()


def _start(
    part: Part,
    env: dict[str, str],
    output: BinaryIO,
    limits: Limits,
    boxed: bool,
    group: Path | None,
) -> Process:
    tasks = _tasks_of_user() + limits.processes * _TASKS_EACH if os.getuid() else 0

    def confine(pid: int) -> None:
        if group:
            (group / "cgroup.procs").write_text(str(pid))
        for what, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, limits.disk_mb * 2**20),
            (resource.RLIMIT_NPROC, tasks),
        ):
            if most or what == resource.RLIMIT_CORE:
                hard = resource.prlimit(pid, what)[1]
                most = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.prlimit(pid, what, (most, most))
        with suppress(OSError), open(f"/proc/{pid or 'self'}/oom_score_adj", "w") as score:  # noqa: PTH123
            score.write("1000")  # if memory runs out, it is they who go

    def before_exec() -> None:
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        confine(0)
        if not boxed:
            secrets.renounce()

    def start(
        command: Sequence[str], folder: Path, stdin: int, stdout: int, passed: Sequence[int]
    ) -> Program:
        return Program(
            list(command), cwd=folder, env=env, stdin=stdin, stdout=stdout, stderr=output,
            start_new_session=True, preexec_fn=before_exec, pass_fds=passed,
        )  # fmt: skip

    if part.launch and (process := part.launch(part, output.fileno(), start, confine)):
        return process
    stdout = output.fileno() if part.stdout is None else part.stdout
    return start(part.command, part.folder, part.stdin, stdout, ())


@contextmanager
def _cgroup(limits: Limits) -> Iterator[Path | None]:
    """A control group that caps tasks, for root, where one can be made."""
    group = None
    if os.getuid() == 0 and (ours := _delegated()):
        with suppress(OSError):
            made = ours / f"autoresearch-{os.getpid()}-{time.monotonic_ns()}"
            made.mkdir()
            group = made
            (made / "pids.max").write_text(str(limits.processes * _TASKS_EACH))
    try:
        yield group
    finally:
        if group:
            _remove(group)


def _remove(group: Path) -> None:
    for _ in range(_GROUP_TRIES):
        try:
            group.rmdir()
            return
        except OSError:  # the last of its tasks are still on their way out
            time.sleep(0.02)


def _delegated() -> Path | None:
    """Our own control group, if groups that count tasks can be made in it (cgroups(7)).

    Version 1 has a hierarchy for tasks alone; in version 2 the controller must be handed down.
    """
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        for _, controllers, path in (line.split(":", 2) for line in lines):
            if controllers == "pids":
                ours = Path("/sys/fs/cgroup/pids") / path.lstrip("/")
                if os.access(ours, os.W_OK):
                    return ours
            elif not controllers:
                ours = Path("/sys/fs/cgroup") / path.lstrip("/")
                if "pids" in (ours / "cgroup.subtree_control").read_text().split():
                    return ours
    return None


@contextmanager
def _urgent() -> Iterator[None]:
    """This thread before all others, what it starts not; where that is not allowed, as it is."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def _watch(
    processes: list[Process], ours: set[int], folders: list[Path], log: Path,
    limits: Limits, began: float, give_up: Callable[[Path], bool] | None,
) -> Cap:  # fmt: skip
    """Wait until the first process ends ("") or a cap is reached."""
    tasks, scanned = _tasks(), time.monotonic()
    while (left := began + limits.seconds - time.monotonic()) > 0:
        if _ended(processes[0], min(_GLANCE_S, left)):
            return ""
        more = _tasks() - tasks
        if more > limits.processes * _TASKS_EACH // 2:
            return "processes"  # no time to look whose they are
        if more > limits.processes or time.monotonic() - scanned >= _SCAN_S:
            tree = [p for process in processes for p in _tree(process.pid)]
            tree += _orphans(processes[0].pid, ours | {p.pid for p in processes})
            if cap := _exceeded(tree, folders, log, limits):
                return cap
            if give_up and give_up(log):
                return "hopeless"
            tasks, scanned = _tasks(), time.monotonic()
    return "seconds"


def _exceeded(tree: list[psutil.Process], folders: list[Path], log: Path, limits: Limits) -> Cap:
    if len(tree) > limits.processes:
        return "processes"
    if sum(_threads(p) for p in tree) > limits.processes * _TASKS_EACH:
        return "processes"
    if sum(_resident(p) for p in tree) > limits.memory:
        return "memory"
    if log.stat().st_size > limits.log_mb * 2**20:
        return "log"
    if any(_size(folder) > limits.disk_mb * 2**20 for folder in folders):
        return "disk"
    return "disk" if shutil.disk_usage(log.parent).free < LEAST_FREE_BYTES else ""


def _tasks() -> int:
    """Processes and threads of the whole machine: the fourth field of /proc/loadavg."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def _tasks_of_user() -> int:
    total, me = 0, os.getuid()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            total += process.num_threads() if process.uids().real == me else 0
    return total


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _orphans(pid: int, spare: set[int]) -> list[psutil.Process]:
    """What left the tree of `pid` and fell to us, with its descendants; not our own, `spare`."""
    me = psutil.Process()
    fallen = {child.pid for child in me.children()} - {pid, *spare}
    if not fallen:
        return []
    family = me.children(recursive=True)  # once: a walk for each of a thousand would take minutes
    parents = {process.pid: _parent(process) for process in family}

    def came_from(child: int) -> bool:
        while child not in fallen:
            if child not in parents or child in spare:
                return False
            child = parents[child]
        return True

    return [process for process in family if came_from(process.pid)]


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _ended(process: Process, timeout_s: float) -> bool:
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


def _threads(process: psutil.Process) -> int:
    try:
        return int(process.num_threads())
    except psutil.Error:
        return 0


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
    """Bytes under `folder`, a block at least for each name, links not followed; what vanishes
    meanwhile counts nothing. No recursion: a tree may be deeper than a stack."""
    total, waiting = 0, [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += max(4096, entry.stat(follow_symlinks=False).st_size)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total


@cache
def _libc() -> ctypes.CDLL:
    """Loaded before any fork: a child of a program with threads must not wait for the loader."""
    return ctypes.CDLL(None)
