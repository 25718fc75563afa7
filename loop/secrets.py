"""Keys stay with the loop: what the processes that it starts could look at is closed to them.

A program gets a cleared environment, but it may look for its parent's: `/proc/<pid>/environ` shows
the environment that a process was started with, whatever became of it since, and `/proc/<pid>/mem`
all of its memory. In bubblewrap neither is in sight. Without it the kernel guards a process that is
not dumpable, except from one with CAP_SYS_PTRACE, which root has and an experiment gives up.
Sources: proc(5), prctl(2), capabilities(7).
"""

import ctypes
import os
from functools import cache
from pathlib import Path

from loop.sandbox import keys_in_environment

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP = 4, 24
_LOOKING = (16, 17, 19, 21, 38, 39)
"""SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF: ways to another's memory."""


@cache
def hide() -> None:
    """Once: blank the keys in the initial environment, and close this process to others.

    `os.environ` goes on to hold them. Core dumps and debuggers are shut out as well.
    """
    names = set(keys_in_environment())
    for name in names:
        os.environ[name] = os.environ[name]  # a copy outside the block that is blanked
    if names:
        _blank(names)
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def renounce() -> None:
    """For a child before it executes a program: give up, for good, what opens other processes.

    Without CAP_SETPCAP nothing happens, and nothing needs to: there is none to give up.
    """
    for capability in _LOOKING:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _blank(names: set[str]) -> None:
    """Overwrite the values of `names` where the kernel put them, at the top of the stack."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    address = int(fields[47])  # env_start, field 50 of proc(5); the command's name ends the second
    for entry in Path("/proc/self/environ").read_bytes().split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name.decode("utf-8", "replace") in names:
            ctypes.memset(address + len(name) + 1, ord("x"), len(value))
        address += len(entry) + 1
