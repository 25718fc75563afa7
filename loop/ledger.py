"""The ledger of a run: `ledger.jsonl`, append-only truth, and `results.tsv`, its projection.

One JSON object a line, fsynced before the loop goes on, so a killed process loses at most the trial
in flight. A torn last line is repaired on the next opening; a corrupt line in the middle is refused
by number unless repair is asked for. Message parts of `BLOB_CHARS` or more are stored once under
`blobs/<sha256>` and referred to. One process writes a run at a time: the ledger is locked.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from loop.errors import LedgerError
from loop.files import write_atomic
from loop.trial import Json, Record, RecordError, Scored, Trial, record_from_json, to_json

LEDGER = "ledger.jsonl"
BLOB_CHARS = 400


def read(folder: Path) -> Iterator[Record]:
    """Yield every record of the run in `folder`, oldest first, in flat memory.

    A torn last line (no newline at its end) is left out. Raises LedgerError naming the line that
    cannot be understood.
    """
    for number, line in _lines(folder):
        try:
            yield _decode(line, folder)
        except (ValueError, OSError) as error:
            raise LedgerError(_corrupt(folder, number, error)) from None


def trials(folder: Path) -> list[Trial]:
    """All trials of the run in `folder`, in order."""
    return [record for record in read(folder) if isinstance(record, Trial)]


class Ledger:
    """The one writer of a run's ledger; a context manager that holds the lock.

    Raises LedgerError when another process holds it (and says which), when a line in the middle is
    corrupt and `repair` is false, and when a line cannot be written (the file is then as before).
    With `repair`, corrupt lines move to `ledger.jsonl.corrupt`.
    """

    def __init__(self, folder: Path, *, repair: bool = False) -> None:
        self.folder = folder
        self.path = folder / LEDGER
        self.records: list[Record] = []
        self._stored: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise LedgerError(
                f"cannot open {self.path}: {error.strerror}; free or name another folder"
            ) from None
        try:
            self._lock()
            self._repair(repair)
            self.records = list(read(folder))
            self._project()
        except OSError as error:
            os.close(self._fd)
            raise LedgerError(
                f"cannot write in {folder}: {error.strerror}; make room and go on with --resume"
            ) from None
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def append(self, record: Record) -> None:
        """Write `record` and return once it is on the disk."""
        line = json.dumps(self._encode(to_json(record)), ensure_ascii=False, allow_nan=False)
        data = line.encode("utf-8", "surrogatepass") + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(0, "no space left")
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise LedgerError(
                f"cannot write {self.path}: {error.strerror}; nothing is lost but the trial in "
                "flight: make room and go on with --resume"
            ) from None
        self.records.append(record)
        if isinstance(record, Trial):
            self._project(record)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = (
                (self.folder / "lock").read_text().strip()
                if (self.folder / "lock").exists()
                else "?"
            )
            raise LedgerError(
                f"{self.folder} is being written by process {holder}; wait for it or stop it"
            ) from None
        (self.folder / "lock").write_text(f"{os.getpid()}\n")

    def _repair(self, repair: bool) -> None:
        """Cut off a torn last line; with `repair` also set corrupt lines aside."""
        whole, torn = _split_torn(self.path.read_bytes())
        if torn:
            with (self.folder / f"{LEDGER}.torn").open("ab") as aside:
                aside.write(torn + b"\n")
            os.ftruncate(self._fd, len(whole))
        if not repair:
            return
        good, corrupt = [], []
        for line in whole.splitlines(keepends=True):
            try:
                _decode(line, self.folder)
                good.append(line)
            except (ValueError, OSError):
                corrupt.append(line)
        if corrupt:
            with (self.folder / f"{LEDGER}.corrupt").open("ab") as aside:
                aside.writelines(corrupt)
            os.close(self._fd)
            write_atomic(self.path, b"".join(good))
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND)
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def _encode(self, data: Any) -> Any:
        """Replace long message parts by references to blobs, writing those that are new."""
        for call in data.get("proposal", {}).get("calls", ()):
            for message in call["messages"]:
                message["parts"] = [self._store(part) for part in message["parts"]]
        return data

    def _store(self, text: str) -> str | Json:
        if len(text) < BLOB_CHARS:
            return text
        data = text.encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / "blobs" / digest
        if digest not in self._stored and not path.exists():
            path.parent.mkdir(exist_ok=True)
            try:
                write_atomic(path, data)
            except OSError as error:
                raise LedgerError(
                    f"cannot write {path}: {error.strerror}; make room and go on with --resume"
                ) from None
        self._stored.add(digest)
        return {"blob": digest}

    def _project(self, newest: Trial | None = None) -> None:
        """Write results.tsv anew from the ledger, so that the two can never disagree.

        In a run that goes on, the row of the `newest` trial is all there is to add.
        """
        path = self.folder / "results.tsv"
        try:
            if newest is not None and newest.id > 0:
                with path.open("a", encoding="utf-8") as results:
                    results.write(_row(newest))
            else:
                write_atomic(path, self._table().encode())
        except OSError as error:
            raise LedgerError(
                f"cannot write {path}: {error.strerror}; the ledger has it all: make room and go "
                "on with --resume"
            ) from None

    def _table(self) -> str:
        rows = [record for record in self.records if isinstance(record, Trial)]
        name = next(
            (t.outcome.metric.name for t in rows if isinstance(t.outcome, Scored)), "val_bpb"
        )
        header = f"commit\t{name}\tmemory_gb\tstatus\tdescription\n"
        return header + "".join(map(_row, rows))


def _lines(folder: Path) -> Iterator[tuple[int, bytes]]:
    path = folder / LEDGER
    try:
        file = path.open("rb")
    except OSError as error:
        raise LedgerError(
            f"no ledger at {path} ({error.strerror}); name the folder of a run"
        ) from None
    with file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield number, line


def _decode(line: bytes, folder: Path) -> Record:
    try:
        data = json.loads(line)
    except RecursionError:
        raise RecordError("nested too deeply") from None
    proposal = data.get("proposal") if isinstance(data, dict) else None
    calls = proposal.get("calls") if isinstance(proposal, dict) else None
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and "messages" in call:
            call["messages"] = _resolve(call["messages"], folder)
    return record_from_json(data)


def _resolve(value: Any, folder: Path) -> Any:
    """`value` with each `{"blob": sha256}` in it replaced by the text it stands for."""
    if isinstance(value, list):
        return [_resolve(item, folder) for item in value]
    if isinstance(value, dict):
        if set(value) == {"blob"}:
            return _load(str(value["blob"]), folder)
        return {key: _resolve(item, folder) for key, item in value.items()}
    return value


@lru_cache(maxsize=64)
def _load(digest: str, folder: Path) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise RecordError(f"blob name {digest!r} is not a sha256")
    data = (folder / "blobs" / digest).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise RecordError(f"blobs/{digest} does not have its own checksum")
    return data.decode("utf-8", "surrogatepass")


def _split_torn(data: bytes) -> tuple[bytes, bytes]:
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _corrupt(folder: Path, number: int, error: Exception) -> str:
    detail = f"missing {Path(error.filename).name}" if isinstance(error, OSError) else str(error)
    return (
        f"{folder / LEDGER}: line {number} is corrupt ({detail}); "
        "restore it, or resume with --repair to set it aside"
    )


def _row(trial: Trial) -> str:
    """One line in the five columns of Karpathy's results.tsv (autoresearch, program.md)."""
    value, memory, status = "0.000000", "0.0", "crash"
    if isinstance(trial.outcome, Scored):
        value = f"{trial.outcome.metric.value:.6f}"
        megabytes = trial.outcome.measurements.get("peak_vram_mb")
        memory = f"{megabytes / 1024 if isinstance(megabytes, int | float) else 0.0:.1f}"
        status = "discard" if trial.decision.verdict == "discard" else "keep"
    commit = (trial.commit or "-")[:7]
    words = trial.proposal.description.encode("utf-8", "replace").decode().split()
    description = " ".join(words)
    return f"{commit}\t{value}\t{memory}\t{status}\t{description}\n"
