"""Rows that were rendered for trl: a folder of parquet files, a report, and what must hold of both.

Format: what `autoresearch collect --render` writes (docs/corpus.md): `data/SPLIT-*.parquet` with
prompt, completion (or chosen and rejected), label, p_real and key, and `report.json`.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loop.errors import AutoresearchError, UsageError

Json = dict[str, Any]
COLUMNS = {
    "sft": ("prompt", "completion", "key", "p_real"),
    "kto": ("prompt", "completion", "label", "weight", "key", "p_real"),
    "dpo": ("prompt", "chosen", "rejected", "key"),
}
ANSWERS = {"sft": ("completion",), "kto": ("completion",), "dpo": ("chosen", "rejected")}
"""The columns that hold an answer, by method."""


@dataclass(frozen=True)
class Rows:
    """A folder of rows. `digest`: sha256 of its files, names included."""

    folder: Path
    method: str
    strategy: str
    digest: str


def look(folder: Path, method: str, strategy: str = "") -> Rows:
    """What the rows in `folder` are. Raises UsageError: they are none, or not for `method` and
    `strategy` ("" takes any)."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        rendered, spoken = str(report["render"]), str(report["strategy"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{folder} holds no rendered rows (no readable report.json); make them with: "
            f"autoresearch collect --render {method} --strategy menu CORPUS --out {folder}"
        ) from None
    if rendered != method:
        raise UsageError(
            f"{folder} was rendered for {rendered}, not {method}: render the corpus again with "
            f"--render {method}, or train with --method {rendered}"
        )
    if strategy and spoken != strategy:
        raise UsageError(
            f"{folder} was rendered for the strategy {spoken}, not {strategy}: render the corpus "
            f"again with --strategy {strategy}"
        )
    return Rows(folder, method, spoken, _digest(folder))


def read(rows: Rows, split: str) -> list[Json]:
    """The rows of `split` in their order. Raises UsageError for none or for missing columns, and
    AutoresearchError for a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[Json] = []
    for path in sorted((rows.folder / "data").glob(f"{split}-*.parquet")):
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            said = str(error).splitlines()[0][:160]
            raise AutoresearchError(f"{path} is damaged ({said}); render the rows anew") from None
        if missing := [c for c in COLUMNS[rows.method] if c not in table.column_names]:
            raise UsageError(
                f"{path} has no column {', '.join(missing)}, which {rows.method} needs: render "
                f"the corpus anew with --render {rows.method}"
            )
        found += table.to_pylist()
    if not found:
        splits = sorted(
            {p.name.partition("-")[0] for p in (rows.folder / "data").glob("*.parquet")}
        )
        raise UsageError(
            f"the split {split} of {rows.folder} is empty (there are: "
            f"{', '.join(splits) or 'none'}); "
            + (
                "collect more runs"
                if split == "train"
                else "collect with --split-by run, name another with --held-out, or train without "
                "a check: --held-out none"
            )
        )
    return found


def kto_weights(found: list[Json]) -> dict[str, float]:
    """Weights of the two classes as the rows carry them (see docs/corpus.md).

    Raises UsageError when a class is absent: KTO cannot learn from one kind of outcome.
    """
    weights = {bool(row["label"]): float(row["weight"]) for row in found}
    if len(weights) < 2:
        kind = "wins" if True in weights else "losses and failures"
        raise UsageError(f"kto needs wins and losses, these rows hold {kind} only; collect more")
    return {"desirable_weight": weights[True], "undesirable_weight": weights[False]}


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in [folder / "report.json", *sorted((folder / "data").glob("*.parquet"))]:
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
