"""Experiments from a process that has imported torch already: the loop's end of the warm worker.

Bubblewrap builds the box as ever, but what it runs in it is only a holder, `cat`. The worker
(loop.fork_server), which stands outside, forks a child that enters the holder's namespaces. When it
is in them, owns no capability and has every cap on it, the loop says go, and only then does it see
the job's script. The box is as private as before, since no code of a model ran in it until then.

What a fork brings along is the worker's memory, a copy: its fixed modules, no secret and no
descriptor. What it brings from outside is `/proc/self/exe`, by way of which root could write to the
interpreter itself (as CVE-2019-5736 did): so the worker runs from a sealed copy in memory.

Whatever fails here ends in None, said once, and the caller starts the command as it always did.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from loop.fork_server import KINDS
from loop.sandbox import Box
from loop.supervise import Confine, Launch, Part, Process, Program, Start
from loop.target import Target

_SERVER = Path(__file__).with_name("fork_server.py")
_IMPORT_S, _ANSWER_S = 120.0, 20.0
_SHUT = ("mnt", "pid", "net", "ipc", "uts")  # what a box must have of its own
_FAILURES = 3  # in a row; after that no worker is started any more


class Worker:
    """A worker that has imported `imports`, started when it is first wanted, and again if it died.

    `varies`: names of the environment that differ from job to job; the others hold for the
    worker's life, since a library may have read them when it was imported.
    """

    def __init__(
        self, imports: Sequence[str], varies: Sequence[str] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._imports, self._varies, self._say = imports, varies, say
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._env: dict[str, str] = {}
        self._failures = 0

    @property
    def pid(self) -> int:
        """Of the worker's process; 0 if there is none."""
        return self._process.pid if self._process else 0

    @property
    def failed(self) -> bool:
        """Has it given up?"""
        return self._failures >= _FAILURES

    def ready(self, env: dict[str, str]) -> bool:
        """Is there a worker for jobs with `env`? Starts one if there is not.

        Called before a job is supervised, so that the worker counts as no part of it.
        """
        if self.failed:
            return False
        env = {k: v for k, v in env.items() if not self._differs(k)}
        alive = self._process is not None and self._process.poll() is None
        if not alive or env != self._env:
            self.close()
            self._start(env)
        return self._process is not None

    def close(self) -> None:
        """End the worker; jobs that run go on."""
        if self._control:
            self._control.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None

    def launches(self, argv: Sequence[str], env: dict[str, str]) -> Launch | None:
        """How to start `argv`, a boxed command as it is inside of its box; None: not from here."""
        if len(argv) < 2 or argv[0] != sys.executable or argv[1].startswith("-"):
            return None
        if not self.ready(env):
            return None

        def launch(part: Part, log: int, start: Start, confine: Confine) -> Process | None:
            return self._launch(part, list(argv), env, log, start, confine)

        return launch

    def _differs(self, name: str) -> bool:
        return name.startswith("AUTORESEARCH_") or name in self._varies

    def _start(self, env: dict[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            python = _sealed(Path(sys.executable))
            command = [sys.executable, "-s", str(_SERVER), str(theirs.fileno()), *self._imports]
            self._process = subprocess.Popen(
                command, executable=f"/proc/self/fd/{python}", cwd="/", env=env,
                pass_fds=(theirs.fileno(), python), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            os.close(python)
            theirs.close()
            self._control, self._env = ours, env
            said = _hear(ours, _IMPORT_S)
            if "warm" not in said:
                raise OSError(said.get("error", "it ended while it started"))
        except OSError as error:
            ours.close()
            theirs.close()
            self.close()
            self._failed(str(error), for_good=True)

    def _failed(self, reason: str, *, for_good: bool = False) -> None:
        self._failures = _FAILURES if for_good else self._failures + 1
        if self._failures in (1, _FAILURES):
            self._say(f"no warm worker ({reason}): each experiment starts its own Python")

    def _launch(
        self, part: Part, argv: list[str], env: dict[str, str], log: int, start: Start,
        confine: Confine,
    ) -> Process | None:  # fmt: skip
        box, pid = None, 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            try:
                box, inside = _hold(part, argv, start)
                if not inside:
                    return box  # bubblewrap itself failed, and has said so in the log
                job = {
                    "argv": argv[1:],
                    "folder": str(part.folder.absolute()),
                    "env": env | {"PWD": str(part.folder.absolute())},
                    "namespaces": _own(inside),
                }
                pidfd = os.pidfd_open(inside)
                try:
                    output = log if part.stdout is None else part.stdout
                    with Path(os.devnull).open("rb") as nothing:
                        into = nothing.fileno() if part.stdin < 0 else part.stdin
                        streams = (into, output, log)
                        self._send(job, (pidfd, *streams, theirs.fileno()))
                finally:
                    os.close(pidfd)
                theirs.close()
                pid = _entered(ours)
                _inspect(pid, inside)
                confine(pid)
                ours.send(b"!")
                if not _hear(ours, _ANSWER_S):
                    raise OSError("the child ended")
                self._failures = 0
                return Forked(pid, box)
            except (OSError, ValueError) as error:
                _end(box, pid)
                self.close()
                self._failed(str(error))
                # If it began after all, its folder is no fresh one: it counts as killed.
                return Forked(pid, box) if box and pid and _began(ours) else None
            except BaseException:
                _end(box, pid)
                raise

    def _send(self, job: dict[str, Any], descriptors: Sequence[int]) -> None:
        assert self._control is not None, "launches() has seen to that"
        socket.send_fds(self._control, [json.dumps(job).encode()], descriptors)


def worker(target: Target, box: Box, say: Callable[[str], None]) -> Worker | None:
    """A worker for the experiments of `target`, if it names what to import and there is a box."""
    if not target.warm or not box.bwrap:
        return None
    return Worker(target.warm, [target.seed.removeprefix("env:")], say)


def launches(
    worker: Worker | None, box: Box, argv: Sequence[str], env: dict[str, str]
) -> Launch | None:
    """As `Worker.launches`, where there is a worker and a box; else None."""
    return worker.launches(argv, env) if worker and box.bwrap else None


class Forked:
    """A child of the worker, now ours, in its box: what `supervise` asks of a process."""

    def __init__(self, pid: int, box: Program) -> None:
        self.pid, self._box = pid, box
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has seen its end
                self.returncode = -signal.SIGKILL
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        while (status := self.poll()) is None:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        _end(self._box)
        return status

    def end(self) -> None:
        """With the box goes all that is in it."""
        self._box.end()


def _sealed(program: Path) -> int:
    """A copy of `program` in memory that nobody can change."""
    descriptor = os.memfd_create("python", os.MFD_ALLOW_SEALING)
    with program.open("rb") as source, open(descriptor, "wb", closefd=False) as copy:
        shutil.copyfileobj(source, copy)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _hold(part: Part, argv: Sequence[str], start: Start) -> tuple[Program, int]:
    """The box of `part` with nothing but a holder in it, and the pid of its first process, 0 if
    it ended at once. The holder ends when we do, since its input is ours."""
    info, theirs = os.pipe()
    bwrap, *options = part.command[: -len(argv)]
    command = [bwrap, "--info-fd", str(theirs), *options, "cat"]
    with os.fdopen(info, "rb") as told:
        try:
            box = start(command, part.folder, subprocess.PIPE, subprocess.PIPE, (theirs,))
        finally:
            os.close(theirs)
        assert box.stdin and box.stdout, "they were asked for"
        try:
            with box.stdout as echo:
                box.stdin.write(b"?")
                box.stdin.flush()
                if not select.select([echo], [], [], _ANSWER_S)[0]:
                    raise OSError("the box does not come up")
                ready = echo.read(1)
            return box, int(json.loads(told.read())["child-pid"]) if ready else 0
        except BrokenPipeError:
            return box, 0
        except BaseException:
            _end(box)
            raise


def _own(pid: int) -> list[str]:
    """Names of the namespaces of `pid` that are not ours. Raises OSError if that shuts nothing."""
    own = [kind for kind in KINDS if _namespace(pid, kind) != _namespace(os.getpid(), kind)]
    if missing := set(_SHUT) - set(own):
        raise OSError(f"the box shares {', '.join(sorted(missing))} with us")
    return own


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115
    except FileNotFoundError:  # a kernel without this kind
        return ""


def _entered(channel: socket.socket) -> int:
    """The pid of the child, once it is shut in and ours. Raises OSError if it failed."""
    told: dict[str, Any] = {}
    until = time.monotonic() + _ANSWER_S
    while not {"pid", "forked", "ready"} <= told.keys():
        if not (more := _hear(channel, until - time.monotonic())):
            raise OSError("it is gone")
        told |= more
        if "error" in told:
            raise OSError(told["error"])
    return int(told["pid"])


def _inspect(pid: int, inside: int) -> None:
    """Look for ourselves that `pid` is ours, is where the box is, and can do nothing outside."""
    if wrong := [kind for kind in KINDS if _namespace(pid, kind) != _namespace(inside, kind)]:
        raise OSError(f"the child did not enter {', '.join(wrong)}")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    powers = [status.get(f"Cap{name}", "0") for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
    if any(int(power, 16) for power in powers) or status.get("NoNewPrivs") != "1":
        raise OSError("the child kept a capability")
    if int(status["PPid"]) != os.getpid():
        raise OSError("the child is not ours")


def _hear(channel: socket.socket, timeout_s: float) -> dict[str, Any]:
    """The next message; {} at the end of the channel. Raises OSError when none comes."""
    channel.settimeout(max(0.01, timeout_s))
    data = channel.recv(2**16)
    found = json.loads(data) if data else {}
    return found if isinstance(found, dict) else {}


def _began(channel: socket.socket) -> bool:
    try:
        return bool(_hear(channel, 0))
    except OSError:
        return False


def _end(box: Program | None, pid: int = 0) -> None:
    """The end of a box, and of our child in it, whose corpse would hold up the kernel."""
    if box is not None:
        box.end()
        box.wait()
        if box.stdin:
            box.stdin.close()
    if pid:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
