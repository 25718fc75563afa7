"""Which code a row of a foreign log ran, and from which code it was made.

The log's own word is not taken for it: a hash may be invented, repeated, that of the code the
trial started from, or of a commit that was rebased away. What cannot be established is noted, and
the row then stands alone.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_collection.history import Commit, History
from data_collection.rows import Row

NEAR = 50
"""Commits that a candidate may be ahead of its incumbent."""
_NOT_CODE = re.compile(r"(^|/)\.|\.(md|tsv|csv|jsonl?|log|txt|png|svg|ipynb|toml|lock|ya?ml)$")


@dataclass(frozen=True)
class Traced:
    """`base`: the file the row started from, `new`: the file it ran; None: not known."""

    commit: str | None = None
    base: str | None = None
    new: str | None = None
    when: str = ""
    notes: tuple[str, ...] = ()


def find_editable(history: History, rows: Sequence[Row]) -> str:
    """The file that the rows' commits change: train.py if it is among them, else the most changed.

    "" when no commit of any row is there.
    """
    known = [c.sha for row in rows if (c := history.commit(row.commit.lower()))]
    counts = Counter(
        path
        for paths in history.changed(known).values()
        for path in paths
        if not _NOT_CODE.search(path)
    )
    mains = [path for path in counts if path.rsplit("/", 1)[-1] == "train.py"]
    best = max(mains or counts, key=lambda path: counts[path], default="")
    if not best and known:
        files = [p for p in history.paths(known[0]) if p.rsplit("/", 1)[-1] == "train.py"]
        return files[0] if files else ""
    return best


class Tracer:
    """Walks the rows in order; remembers the incumbent as the log has it."""

    def __init__(self, history: History, editable: str, rows: Sequence[Row]) -> None:
        self._history, self.editable = history, editable
        self._incumbent: str | None = None
        self._source: str | None = None
        self._used: set[str] = set()
        self.moved: dict[str, str] = {}
        self._child = self._lineage(rows)
        self._first = self._first_parent(rows)
        found = [c for row in rows if (c := history.commit(row.commit.lower()))]
        self._changed = history.changed(sorted({c.sha for c in found}))

    def trace(self, row: Row, first: bool) -> Traced:
        """What is known of `row`'s code. `first`: it is the baseline."""
        commit = self._history.commit(row.commit.lower())
        if first:
            return self._baseline(row, commit)
        lost = self._lost(row, commit)
        if lost or commit is None:
            if row.status in ("keep", "baseline"):
                self._incumbent = self._source = None
            return Traced(base=None if self._source is None else self._source, notes=(lost,))
        self._used.add(commit.sha)
        new = self._file(commit.sha)
        base, notes = self._base(commit)
        others = [p for p in self._changed.get(commit.sha, []) if p != self.editable]
        code = [path for path in others if not _NOT_CODE.search(path)]
        if code:
            notes = (*notes, f"also changes {', '.join(code[:5])}")
        if row.status in ("keep", "baseline"):
            self._incumbent, self._source = commit.sha, new
        return Traced(commit.sha, base, new, commit.when, notes)

    def _baseline(self, row: Row, commit: Commit | None) -> Traced:
        notes: tuple[str, ...] = ()
        if commit is None and self._first is not None:
            commit = self._first
            notes = (f"the baseline's commit is inferred: {commit.sha[:7]}, the parent of the "
                     "first commit that the log names",)  # fmt: skip
        if commit is None:
            return Traced(notes=(self._lost(row, None),))
        self._used.add(commit.sha)
        self._incumbent, self._source = commit.sha, self._file(commit.sha)
        return Traced(commit.sha, self._source, self._source, commit.when, notes)

    def _lost(self, row: Row, commit: Commit | None) -> str:
        """Why the row's hash does not lead to its code, "": it does."""
        if not re.fullmatch(r"[0-9a-fA-F]{6,64}", row.commit):
            return f"'{row.commit[:40]}' is no hash"
        if commit is None:
            return f"commit {row.commit[:12]} is not in the repository"
        if commit.sha == self._incumbent:
            return f"commit {row.commit[:12]} is the incumbent's own: the change itself is lost"
        if commit.sha in self._used:
            return f"commit {row.commit[:12]} belongs to an earlier row"
        if row.status not in ("keep", "baseline") and self._stayed(commit):
            return (
                f"commit {row.commit[:12]} stayed in the history though the row did not: "
                "it is what the trial started from, the change itself is lost"
            )
        return ""

    def _stayed(self, commit: Commit) -> bool:
        """Is the commit part of what was kept later, without having been reverted?"""
        child = self._child.get(commit.sha)
        if child is None:
            return False
        before = self._file(commit.parents[0]) if commit.parents else None
        return self._file(child) != before

    def _base(self, commit: Commit) -> tuple[str | None, tuple[str, ...]]:
        """The file that `commit` was made from, and what must be said about it."""
        parent = commit.parents[0] if commit.parents else None
        before = self._file(parent) if parent else None
        if self._source is not None and before == self._source:
            return self._source, ()
        for ahead, ancestor in enumerate(self._history.line(commit.sha, NEAR)):
            if self._source is not None and ancestor.sha == self._incumbent:
                return self._source, (f"{ahead} commits since the incumbent, read as one edit",)
        if parent is None:
            note = "its parent is not in the repository"
            return self._source, (note,)
        if self._incumbent is None:
            return before, ("the incumbent's commit is not known: read against its parent",)
        return before, (f"edits {parent[:7]}, which is not the incumbent of the log",)

    def _file(self, sha: str) -> str | None:
        """The editable file of a commit, also where it lies in another folder there."""
        text = self._history.text(sha, self.editable)
        if text is None:
            name = self.editable.rsplit("/", 1)[-1]
            there = [p for p in self._history.paths(sha) if p.rsplit("/", 1)[-1] == name]
            if len(there) == 1:
                self.moved[there[0]] = sha[:7]
                text = self._history.text(sha, there[0])
        return text

    def _lineage(self, rows: Sequence[Row]) -> dict[str, str]:
        """Commit -> its child, on the first-parent line of the last kept commit that is there."""
        kept = [
            commit
            for row in rows
            if row.status in ("keep", "baseline")
            and (commit := self._history.commit(row.commit.lower()))
        ]
        child: dict[str, str] = {}
        newer: str | None = None
        for commit in self._history.line(kept[-1].sha) if kept else ():
            if newer is not None:
                child[commit.sha] = newer
            newer = commit.sha
        return child

    def _first_parent(self, rows: Sequence[Row]) -> Commit | None:
        for row in rows[1:]:
            commit = self._history.commit(row.commit.lower())
            if commit and commit.parents and not (
                row.status not in ("keep", "baseline") and self._stayed(commit)
            ):  # fmt: skip
                return self._history.commit(commit.parents[0])
        return None


def unread_commits(history: History, tip: str, used: set[str]) -> Iterator[Commit]:
    """Commits on the line of `tip` that no row names, newest first."""
    return (commit for commit in history.line(tip) if commit.sha not in used)
