"""Does anything stand in two splits? The check goes by content, not by what the rows are called."""

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from data_collection.corpus import CANARY, read_meta, rows
from loop.edit import sha256
from loop.trial import Json

COLUMNS = (
    *("key", "run_id", "target_hash", "state", "edit", "near", "left_out", "source", "context"),
    *("canary", "redacted", "proposal"),
)
SHOWN = 10


def check(folder: Path) -> list[str]:
    """One line for each thing that stands in two splits of the corpus, or is not what it says.

    By target: no target, run or state (the file a trial starts from) may; by run: no run, and no
    row to be trained on twice. A state is hashed from the file itself. Baselines are no examples.
    """
    by = str(read_meta(folder).get("split_by", "target"))
    with TemporaryDirectory(prefix="autoresearch-") as place:
        base = sqlite3.connect(Path(place) / "seen")
        base.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-8000;"
            "CREATE TABLE seen (what TEXT, value TEXT, split TEXT, row TEXT,"
            " PRIMARY KEY (what, value, split)) WITHOUT ROWID;"
        )
        problems: list[str] = []
        for row in rows(folder, COLUMNS):
            problems.extend(_wrong(row))
            for what, value in _marks(row, by):
                base.execute("INSERT OR IGNORE INTO seen VALUES (?,?,?,?)",
                             (what, value, row["split"], row["key"]))  # fmt: skip
        query = (
            "SELECT what, value, GROUP_CONCAT(split || ' (' || row || ')', ' and ') FROM seen "
            "GROUP BY what, value HAVING COUNT(*) > 1 ORDER BY what, value"
        )
        problems += [f"{what} {value[:16]} stands in {where}" for what, value, where in
                     base.execute(query)]  # fmt: skip
        base.close()
    return problems


def _marks(row: Json, by: str) -> list[tuple[str, str]]:
    """What may stand in one split only."""
    marks = [("run", row["run_id"])]
    state = _state(row)
    if by == "target":
        marks.append(("target", row["target_hash"]))
        if row["left_out"] != "baseline":
            marks.append(("state", state))
    if row["left_out"] == "":
        marks.append(("edit", f"{_edit(row)} from {state}"))
    if row["proposal"]["edit"] is None and row["left_out"] != "baseline":
        marks.append(("row", row["edit"]))
    return marks


def _state(row: Json) -> str:
    """Of the file itself where it is there, else what the row says."""
    if row["source"] is None or row["redacted"]:
        return str(row["context"]["file_sha256"] or row["state"])
    return sha256(row["source"])


def _edit(row: Json) -> str:
    edit = row["proposal"]["edit"]
    return str(edit["code_hash"] if edit else row["edit"])


def _wrong(row: Json) -> list[str]:
    """What a row claims of itself and is not so."""
    found = []
    if row["canary"] != CANARY:
        found.append(f"row {row['key']} has no canary")
    if row["source"] is not None and not row["redacted"] and (
        sha256(row["source"]) != row["context"]["file_sha256"]
    ):  # fmt: skip
        found.append(f"row {row['key']}: its source is not the file that its context names")
    return found
