"""One writer at a time, also between machines that share storage.

A lock (flock) belongs to the process that took it: the kernel frees it when that is gone, and a
file server when its machine is (NFS 4, after 90 s). So no lock outlives whoever held it.
"""

import fcntl
import os
import time
from pathlib import Path

EVAL = "lock"
"""In the folder of a plan: held while the plan is executed."""
_POLL_S = 0.2


def take(path: Path, patience: float = 0.0) -> int | None:
    """A descriptor that holds the lock of `path`, made if need be, until it is closed.

    None: another holds it, still after `patience` seconds. Raises OSError: it cannot be opened.
    """
    until = time.monotonic() + patience
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    while not _try(descriptor):
        if time.monotonic() >= until:
            os.close(descriptor)
            return None
        time.sleep(_POLL_S)
    return descriptor


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
