"""Writing a file so that it is never half-written."""

import os
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
