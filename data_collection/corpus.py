"""A corpus on the disk: a folder that `datasets.load_dataset` opens.

    README.md       the dataset card; its head says which files are which split
    corpus.json     how it was made: options, runs, counts
    data/SPLIT-00000.parquet, ...

Written beside and renamed, so that there is a whole corpus or none.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_collection.features import Row, encode_row, schema
from data_collection.splits import SPLITS
from loop.errors import AutoresearchError, UsageError
from loop.files import atomic_folder, write_atomic
from loop.trial import Json

CANARY = "autoresearch-corpus-canary 6f1d0c5e-7d0b-4c39-9b57-2f1c6f0e4a8d"
"""In every row: a model that can say it has been trained on such rows."""
CARD, META = "README.md", "corpus.json"
GROUP_BYTES = 4 * 2**20
SHARD_ROWS = 20_000


class Writer:
    """Rows -> parquet shards of one split, a few megabytes in memory at a time."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split, self._schema = folder, split, schema()
        self._rows: list[Json] = []
        self._bytes = self._shard_rows = 0
        self._file: Any = None
        self.shards = 0
        self.count = 0

    def add(self, row: Row) -> None:
        data = encode_row(row)
        self._rows.append(data)
        self._bytes += 2000 + len(row.source or "") + sum(
            len(part) for call in row.proposal.calls for m in call.messages for part in m.parts
        )  # fmt: skip
        self.count += 1
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return
        if self._file is None:
            path = self._folder / f"{self._split}-{self.shards:05d}.parquet"
            # No statistics: the smallest and largest of a column of files would be kept in memory.
            self._file = pq.ParquetWriter(
                path, self._schema, compression="zstd", write_statistics=False
            )
            self.shards += 1
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._shard_rows += len(self._rows)
        self._rows, self._bytes = [], 0
        if self._shard_rows >= SHARD_ROWS:
            self._file.close()
            self._file, self._shard_rows = None, 0


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well, and is gone when it does not.

    Raises UsageError: `out` is there already; AutoresearchError: it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty; name another --out")
    try:
        with atomic_folder(out) as folder:
            yield folder
    except OSError as error:
        raise AutoresearchError(
            f"cannot write {out}: {error.strerror}; make room or name another --out"
        ) from None


def read_meta(folder: Path) -> Json:
    """How the corpus in `folder` was made. Raises UsageError: it is none."""
    try:
        found = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{folder} is not a corpus (no {META}); make one with: collect RUN... "
                         "--out CORPUS") from None  # fmt: skip
    if not isinstance(found, dict):
        raise UsageError(f"{folder / META} is not a JSON object")
    return found


def rows(
    folder: Path, columns: Sequence[str] | None = None, splits: Sequence[str] = SPLITS
) -> Iterator[Json]:
    """Rows of a corpus in order, with their `split`, a few at a time in memory.

    Raises AutoresearchError: a file of it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split in splits:
        for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
            try:
                with pq.ParquetFile(path) as file:
                    wanted = None if columns is None else list(columns)
                    for group in range(file.num_row_groups):
                        for row in file.read_row_group(group, columns=wanted).to_pylist():
                            yield row | {"split": split}
            except (pa.ArrowInvalid, OSError) as error:
                reason = str(error).splitlines()[0][:160]
                raise AutoresearchError(
                    f"{path} is damaged ({reason}); collect the corpus anew"
                ) from None


def write_meta(folder: Path, meta: Json) -> None:
    text = json.dumps(meta, indent=1, ensure_ascii=False, sort_keys=True)
    write_atomic(folder / META, text.encode())
