"""The warm worker: a process that has imported what experiments need, and forks one for each.

    python fork_server.py CONTROL MODULE...      CONTROL: descriptor of a socket to the loop

It stands outside of every box, knows no secrets, and runs no code but this file and the modules
that the target names. For each job it forks a child, which enters a box that bubblewrap built (see
loop.warm), gives up what it could do outside of it, and runs the job's script as `python script`
would. The job comes as JSON with these descriptors: a pidfd of the box, standard input, output and
error, and a channel. On the channel the loop is told `pid`, `forked` (the child is the loop's now),
`ready` (it is shut in), or `error`; and its one byte, when all caps are on, lets the script begin.
Sources: setns(2), pid_namespaces(7), user_namespaces(7), capabilities(7), prctl(2).
"""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder: a module named `secrets` lies in it

import array
import builtins
import ctypes
import gc
import importlib
import importlib.machinery
import json
import os
import signal
import socket
import types
from pathlib import Path
from typing import Any, NoReturn

KINDS = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
"""Namespaces by their names in /proc/<pid>/ns, and the flags of setns(2)."""
_PDEATHSIG, _DUMPABLE, _NAME, _BOUND, _NO_NEW_PRIVS, _AMBIENT = 1, 4, 15, 24, 38, 47
_HEAP = {-3: 2**25, -1: 2**30, -2: 2**26}
"""mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD. Memory of freed tensors is kept for
the next ones: to have it zeroed anew by the kernel takes 6 to 9 % of a small training."""
_CAPABILITIES_V3 = 0x20080522
_LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.closerange(3, control.fileno())
    os.closerange(control.fileno() + 1, 2**16)
    parent, libc = os.getppid(), ctypes.CDLL(None, use_errno=True)
    for parameter, value in _HEAP.items():
        libc.mallopt(parameter, value)
    libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_NAME, b"warm-worker", 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getppid() != parent:
        return
    said = _import(sys.argv[2:]) or _unfit()
    last = int(_LAST_CAPABILITY.read_text())
    gc.collect()
    gc.freeze()  # a collection in a child would otherwise copy every page
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)
    control.send(json.dumps({"error": said} if said else {"warm": True}).encode())
    while True:
        data, descriptors = _receive(control)
        if not data:
            return
        child = os.fork()
        if child == 0:
            control.close()
            job = json.loads(data)
            _enter(job, descriptors, last, libc)
            _run(job["argv"])
        os.waitpid(child, 0)
        with socket.socket(fileno=descriptors.pop()) as channel:
            _tell(channel, forked=True)
        for descriptor in descriptors:
            os.close(descriptor)


def _import(names: list[str]) -> str:
    """Import the modules; what is wrong if one cannot be had."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            return f"cannot import {name} ({type(error).__name__}: {error})"
    return ""


def _unfit() -> str:
    """What a child would share with this process, or lose of it."""
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)  # a library that is made for forks (OpenBLAS) ends its threads before one
    tasks = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if tasks > 1:
        return f"the imports started {tasks - 1} threads, which a fork would lose"
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        shared = [line.split()[-1] for line in maps if line.split()[1].endswith("s")]
        shared = [line for line in shared if not os.path.isfile(line)]  # noqa: PTH113
    return f"the imports share memory with their children: {shared[0]}" if shared else ""


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    found = array.array("i")
    data, ancillary, _, _ = control.recvmsg(2**18, socket.CMSG_SPACE(5 * found.itemsize))
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return data, list(found)


def _tell(channel: socket.socket, **message: Any) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except OSError:
        return  # nobody listens any more; who waits for an answer sees the end as well


def _enter(job: dict[str, Any], descriptors: list[int], last: int, libc: ctypes.CDLL) -> None:
    """Go into the box and come out of this as the process that runs the job, or not at all."""
    box, *streams, door = descriptors
    channel = socket.socket(fileno=door)
    try:
        flags = sum(KINDS[name] for name in job["namespaces"])
        _check(libc.setns(box, flags), "setns")
        if pid := os.fork():  # a process never changes its own pid namespace
            _tell(channel, pid=pid)
            os._exit(0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, door)
        os.closerange(door + 1, 2**16)
        os.setsid()
        os.chdir(job["folder"])
        _renounce(last, libc)
    except BaseException as error:
        _tell(channel, error=f"{type(error).__name__}: {error}")
        os._exit(1)
    _tell(channel, ready=True)
    if channel.recv(1) != b"!":
        os._exit(1)
    libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # of the loop, whose child it is by now
    try:
        channel.send(b'{"begun": true}')
    except OSError:  # the loop died before that could reach us
        os._exit(1)
    channel.close()
    libc.prctl(_NAME, b"python", 0, 0, 0)
    os.environ.clear()
    os.environ.update(job["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # `random` does so by itself


def _renounce(last: int, libc: ctypes.CDLL) -> None:
    """No capability is left, and none can come back; others of the box may look at it again."""
    for capability in range(last + 1):
        _check(libc.prctl(_BOUND, capability, 0, 0, 0), "prctl")
    _check(libc.prctl(_AMBIENT, 4, 0, 0, 0), "prctl")  # PR_CAP_AMBIENT_CLEAR_ALL
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    _check(libc.capset(header, nothing), "capset")
    _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(libc.prctl(_DUMPABLE, 1, 0, 0, 0), "prctl")


def _check(result: int, name: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _run(argv: list[str]) -> NoReturn:
    """What `python argv...` does, to the end of the interpreter."""
    path = os.path.abspath(argv[0])  # noqa: PTH100
    sys.argv, sys.orig_argv = argv, [sys.executable, *argv]
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))  # noqa: PTH120
    module = types.ModuleType("__main__")
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    vars(module).update(__file__=path, __loader__=loader, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    try:
        try:
            code = compile(loader.get_data(path), path, "exec", dont_inherit=True)
        except OSError as error:
            print(f"{sys.executable}: can't open file {path!r}: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        exec(code, vars(module))
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ else None  # without this frame
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        raise SystemExit(1) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
