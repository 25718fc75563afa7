"""Files and folders: never half-written, never a trap to read, gone when they are to go."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename over `path`, fsync the folder. Raises OSError; leaves no part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, and is gone when it does not.

    `out` is not there, or an empty folder. Raises OSError.
    """
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        yield beside
        for path in beside.rglob("*"):
            sync(path)
        beside.replace(out)
        sync(out.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sync(path: Path) -> None:
    """What was written to a file, or which names a folder holds, is on the disk on return."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_plain(path: Path, most: int) -> bytes:
    """Up to `most` bytes of a plain file. Raises OSError.

    What a trial wrote may be a pipe, a device or a link: those are empty, or an error.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, most) if plain else b""
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove a folder that a trial wrote in: a tree deeper than a stack, or shut with chmod."""
    with suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir() and not folder.is_symlink():
        for command in (["chmod", "-R", "u+rwx", str(folder)], ["rm", "-rf", str(folder)]):
            subprocess.run(command, capture_output=True, check=False)
