"""autoresearch.jsonl of pi-autoresearch and its relatives -> cells.

Source of the format: pi-autoresearch, skills (a line `{"type": "config", name, metricName,
metricUnit, bestDirection}` begins a segment; a result line has run, commit, metric, metrics, status
keep | discard | crash | checks_failed, description, timestamp). Other JSON lines are read when they
name their columns as a results.tsv does.
"""

import json
from datetime import UTC, datetime
from typing import Any

from data_collection import words
from data_collection.rows import Cells, Reading, Unread


def read(text: str) -> Reading:
    """Text of the file -> its cells. Never raises: what is not understood is listed."""
    reading = Reading("autoresearch.jsonl")
    metric, segment = "", -1
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        reading.lines += 1
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            reading.unread.append(Unread(number, line[:200], "not JSON"))
            continue
        if not isinstance(record, dict):
            reading.unread.append(Unread(number, line[:200], "not a JSON object"))
        elif record.get("type") == "config" or "metricName" in record or "metric_name" in record:
            metric, segment = _config(record, number, metric, segment, reading)
        else:
            _result(record, number, line, metric, max(segment, 0), reading)
    return reading


def _config(
    record: dict[str, Any], number: int, metric: str, segment: int, reading: Reading
) -> tuple[str, int]:
    """A config header begins a segment: what follows is measured against a new baseline."""
    reading.headers += 1
    name = words.column(str(record.get("metricName") or record.get("metric_name") or metric))
    way = str(record.get("bestDirection") or record.get("direction") or "").lower()
    if name and way:
        reading.direction[name] = "max" if way.startswith(("high", "max")) else "min"
        reading.said.append(f"line {number}: {name}, {way} is better (segment {segment + 2})")
    return name, segment + 1


def _result(
    record: dict[str, Any], number: int, line: str, metric: str, segment: int, reading: Reading
) -> None:
    values = {words.column(key): _text(value) for key, value in record.items()}
    extra = record.get("metrics")
    for key, value in (extra if isinstance(extra, dict) else {}).items():
        values.setdefault(words.column(str(key)), _text(value))
    values.pop("metrics", None)
    values["timestamp"] = _when(record.get("timestamp"))
    if metric and "metric" in values:
        values[metric] = values.pop("metric")
    name = metric or next(
        (k for k, v in values.items() if words.is_number(v) and not words.is_measure(k)), ""
    )
    if not name or not set(values) & (words.STATUS | words.COMMIT | words.DESCRIPTION):
        reading.unread.append(Unread(number, line[:200], "no metric, status or description in it"))
        return
    kept = {key: values[key] for key in values if not isinstance(record.get(key), dict | list)}
    asi = record.get("asi")
    reading.cells.append(
        Cells(number, kept, name, segment, extra={"asi": asi} if isinstance(asi, dict) else {})
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _when(stamp: Any) -> str:
    """ISO time of a Unix time in seconds or milliseconds; other text as it is."""
    if not isinstance(stamp, int | float) or isinstance(stamp, bool):
        return stamp if isinstance(stamp, str) else ""
    try:
        seconds = stamp / 1000 if stamp > 1e11 else stamp
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return ""
