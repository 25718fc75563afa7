"""What every dialect is read into: lines with cells, then rows that mean something.

Nothing is dropped: a line becomes a row, part of one, a header, or is listed with its number and
why it was not understood.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from data_collection import words
from data_collection.words import Status
from loop.errors import AutoresearchError
from loop.trial import Json, Reason

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Unread:
    """A line that was not understood, and why."""

    line: int
    text: str
    why: str


@dataclass
class Cells:
    """One row's cells by column name. `metric`: the column that its header names as such."""

    line: int
    values: dict[str, str]
    metric: str
    segment: int = 0
    inferred: tuple[str, ...] = ()
    extra: Json = field(default_factory=dict)


@dataclass
class Reading:
    """A file read. `lines`: how many that are not blank; all of them are accounted for."""

    dialect: str
    cells: list[Cells] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    lines: int = 0
    headers: int = 0
    continued: int = 0
    direction: dict[str, Direction] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A trial as a foreign log tells it. `value`: None where there is no score."""

    line: int
    commit: str
    value: float | None
    status: Status
    reason: Reason | None
    raw_status: str
    description: str
    measurements: Json = field(default_factory=dict)
    started: str = ""
    segment: int = 0
    inferred: tuple[str, ...] = ()


@dataclass(frozen=True)
class Log:
    """A whole log, understood. `said`: one phrase for each thing that was inferred."""

    dialect: str
    metric: str
    direction: Direction
    rows: tuple[Row, ...]
    unread: tuple[Unread, ...]
    said: tuple[str, ...]


def understand(reading: Reading, metric: str = "", direction: str = "") -> Log:
    """Cells -> rows. `metric` and `direction` override what would be inferred.

    Raises AutoresearchError when there is no row, or no metric or direction can be told.
    """
    said = list(reading.said)
    name = metric or _metric(reading, said)
    unread = list(reading.unread)
    missing = _sentinels(reading.cells, name, said)
    rows: list[Row] = []
    for cells in reading.cells:
        row = _row(cells, name, missing)
        if isinstance(row, Row):
            rows.append(row)
        else:
            unread.append(Unread(cells.line, "  ".join(cells.values.values())[:200], row))
    if not rows:
        first = f" (line {unread[0].line}: {unread[0].why})" if unread else ""
        raise AutoresearchError(
            f"no row of this {reading.dialect} log could be understood{first}; name the column of "
            "the metric with --metric"
        )
    way = direction or reading.direction.get(name) or _direction(name, rows, said)
    if any(not row.raw_status for row in rows):
        said.append("no status column: what beats all before it counts as kept")
        rows = _decided(rows, way == "max")
    unread.sort(key=lambda item: item.line)
    return Log(
        reading.dialect,
        name,
        "max" if way == "max" else "min",
        tuple(_zeros(rows, name, way, said)),
        tuple(unread),
        tuple(said),
    )


def _metric(reading: Reading, said: list[str]) -> str:
    """The first column of numbers that is not known to be something else, in most of the rows."""
    numbers: Counter[str] = Counter()
    filled: Counter[str] = Counter()
    for cells in reading.cells:
        for name, text in cells.values.items():
            if text.strip() and (name == cells.metric or not words.is_measure(name)):
                filled[name] += 1
                numbers[name] += words.is_number(text)
    found = [name for name, count in filled.items() if numbers[name] * 2 >= count > 0]
    most = max((filled[name] for name in found), default=0)
    names = [name for name in found if filled[name] * 2 >= most]
    if not names:
        raise AutoresearchError(
            f"no column of this {reading.dialect} log looks like a metric; name it with --metric"
        )
    said.append(f"the metric is {names[0]}")
    if len(names) > 1:
        said.append(f"other columns that could be one: {', '.join(names[1:6])}")
    return names[0]


def _row(cells: Cells, metric: str, missing: set[float]) -> Row | str:
    """The row, or why it is not understood."""
    values = cells.values
    if metric not in values:
        return f"its schema has no {metric}; import it with --metric {cells.metric or 'NAME'}"
    raw = _first(values, words.STATUS)
    status = words.status(raw) if raw else "discard"
    if status is None or (not raw and any(name in values for name in words.STATUS)):
        return f"status '{raw[:40]}' is not known"
    if status == "skipped":
        return f"status '{raw[:40]}': it never ran"
    try:
        value = words.number(values[metric])
    except ValueError:
        return f"{metric} is '{values[metric][:40]}', not a number"
    reason = words.reason(raw)
    if value is not None and not math.isfinite(value):
        value, reason = None, reason or Reason.METRIC_NOT_FINITE
    elif value is not None and value in missing:
        value, reason = None, reason or Reason.METRIC_MISSING
    elif value is not None and value != 0 and (why := words.absurd(metric, value)):
        return why
    if status == "failed":
        if value:
            return f"status '{raw[:40]}' with a score: neither a loss nor a crash for certain"
        status = "crash"
    return Row(
        line=cells.line,
        commit=_first(values, words.COMMIT),
        value=None if status == "crash" else value,
        status=status,
        reason=reason,
        raw_status=raw,
        description=_first(values, words.DESCRIPTION),
        measurements=_measurements(values, metric) | cells.extra,
        started=values.get("timestamp", ""),
        segment=cells.segment,
        inferred=cells.inferred,
    )


def _first(values: dict[str, str], names: set[str]) -> str:
    return next((text.strip() for name, text in values.items() if name in names), "")


def _measurements(values: dict[str, str], metric: str) -> Json:
    """Every other column as a number where it is one; memory also in the trainer's own unit."""
    known = words.COMMIT | words.STATUS | words.DESCRIPTION | {metric, "timestamp"}
    found: Json = {}
    for name, text in values.items():
        if name in known or not text.strip():
            continue
        try:
            value = float(text)
        except ValueError:
            found[name] = text.strip()[:200]
            continue
        if math.isfinite(value):
            found[name] = value
    for name in ("memory_gb", "peak_memory_gb", "vram_gb"):
        if isinstance(gigabytes := found.get(name), float):
            found.setdefault("peak_vram_mb", round(gigabytes * 1024, 1))
    return found


def _sentinels(cells: Sequence[Cells], metric: str, said: list[str]) -> set[float]:
    """Values that stand for "no score": repeated exactly, never kept, and far from all others."""
    scores: list[tuple[float, str]] = []
    for row in cells:
        try:
            value = words.number(row.values.get(metric, ""))
        except ValueError:
            continue
        if value is not None and math.isfinite(value) and value != 0:
            scores.append((value, _first(row.values, words.STATUS)))
    found = set()
    for value, count in Counter(value for value, _ in scores).items():
        others = sorted(v for v, _ in scores if v != value)
        if count < 3 or len(others) < 3:
            continue
        middle = others[len(others) // 2]
        spread = sorted(abs(v - middle) for v in others)[len(others) * 9 // 10] or abs(middle)
        kept = any(words.status(s) == "keep" for v, s in scores if v == value)
        if not kept and abs(value - middle) > 20 * spread:
            found.add(value)
            said.append(f"{value:g} ({count} times) is how this log writes 'no score'")
    return found


def _zeros(rows: list[Row], metric: str, way: str, said: list[str]) -> list[Row]:
    """A score of exactly 0 where lower is better and every kept score is above: no score."""
    kept = [r.value for r in rows if r.value and r.status in ("keep", "baseline")]
    if way == "max" or not kept or min(kept) <= 0:
        return rows
    count = sum(row.value == 0 for row in rows)
    if not count:
        return rows
    said.append(f"{count} scores of 0 that are no crash by their status count as no score")
    note = ("a score of 0 counts as no score",)
    return [
        Row(**{**vars(r), "value": None, "reason": r.reason or Reason.METRIC_MISSING}
            | {"inferred": (*r.inferred, *note)})
        if r.value == 0
        else r
        for r in rows
    ]  # fmt: skip


def _direction(metric: str, rows: Sequence[Row], said: list[str]) -> str:
    """By the kept scores, which only ever improve, else by the metric's name."""
    kept = [r.value for r in rows if r.value and r.status in ("keep", "baseline") and r.raw_status]
    down = sum(b < a for a, b in pairwise(kept))
    up = sum(b > a for a, b in pairwise(kept))
    by_name = words.direction(metric)
    if by_name and not (min(down, up) == 0 and max(down, up) >= 3):
        said.append(f"{'lower' if by_name == 'min' else 'higher'} is better, by its name")
        return by_name
    if max(down, up) >= 2 and max(down, up) >= 3 * min(down, up):
        said.append(f"{'lower' if down > up else 'higher'} is better, by what was kept")
        return "min" if down > up else "max"
    raise AutoresearchError(
        f"neither the name {metric} nor what was kept tells whether lower or higher is better; "
        "say --direction min or --direction max"
    )


def _decided(rows: Sequence[Row], higher: bool) -> list[Row]:
    best: float | None = None
    out = []
    for row in rows:
        beats = row.value is not None and (
            best is None or (row.value > best if higher else row.value < best)
        )
        if beats:
            best = row.value
        status: Status = "crash" if row.value is None else "keep" if beats else "discard"
        note = "the log has no status: kept if it beat all before it"
        out.append(Row(**{**vars(row), "status": status, "inferred": (*row.inferred, note)}))
    return out
