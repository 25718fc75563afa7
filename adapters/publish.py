"""A large file that appears whole or not at all, after it was checked."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loop.errors import AutoresearchError
from loop.files import sync


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to; it is renamed over `out` unless the block is left by an
    error. A file that a killed export left is written over. Raises AutoresearchError when another
    export is at it, or for what the disk says."""
    beside = out.with_name(f".{out.stem}.unfinished{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out.parent):
            try:
                yield beside
                sync(beside)
                beside.replace(out)
                sync(out.parent)
            finally:
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise AutoresearchError(
            f"cannot write {out}: {error.strerror or error}; what was there before is still there"
        ) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise AutoresearchError(f"another export is writing into {folder}: wait for it") from None
    finally:
        os.close(descriptor)
