"""The columns of the corpus, their Arrow types derived from dataclasses, and the way back.

A dataclass becomes a struct, a tuple a list, an outcome one struct with its `type` and the fields
of all outcomes, and a JSON object a string of JSON (its keys differ from row to row). What comes
back is the very record.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from loop.trial import (
    OUTCOMES,
    Context,
    Decision,
    Json,
    Outcome,
    Proposal,
    Trial,
    from_json,
    to_json,
)


@dataclass(frozen=True)
class Row:
    """One trial. Gains are in the metric's unit, positive is better; None: not known.

    `source`: the file the trial started from. `state`, `edit`, `near`: hashes of that file, of the
    change exactly, and of the change up to layout and rounding. `left_out`: why it should not be
    trained on ("": it may be). `seed`: of the proposal; `target_spec`: as in run.toml.
    """

    key: str
    run: str
    run_id: str
    trial: int
    parent: int | None
    commit: str | None
    started: str
    seconds: float
    arm: str
    brain: str
    strategy: str
    target: str
    target_hash: str
    licence: str
    provenance: Json
    seed: int
    target_spec: Json
    source: str | None
    context: Context
    proposal: Proposal
    outcome: Outcome
    decision: Decision
    label: str
    reason: str
    raw_gain: float | None
    sigma: float | None
    sigma_method: str
    p_real: float | None
    gain: float | None
    gain_sd: float | None
    measurements: int
    knobs_moved: int
    multi_knob: bool
    state: str
    edit: str
    near: str
    left_out: str
    redacted: int
    canary: str
    schema: int


_HINTS: dict[Any, dict[str, Any]] = {}


def hints(cls: Any) -> dict[str, Any]:
    """Resolved annotations, kept: resolving them for every row would dominate."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def schema() -> Any:
    """The pyarrow schema of Row."""
    import pyarrow as pa

    return pa.schema([(name, arrow(hint)) for name, hint in hints(Row).items()])


def arrow(hint: Any) -> Any:
    """The Arrow type of an annotation."""
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_outcome(hint):
        return pa.struct([("type", pa.string()), *((n, arrow(h)) for n, h in _outcome().items())])
    if origin in (typing.Union, types.UnionType):
        return arrow(next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        return pa.list_(arrow(args[0]))
    if dataclasses.is_dataclass(hint):
        return pa.struct([(n, arrow(h)) for n, h in hints(hint).items()])
    return pa.string()  # Literal, StrEnum, and JSON


def encode(value: Any, hint: Any) -> Any:
    """A value of the annotated type as what pyarrow takes for it."""
    return _encode(to_json(value), hint)


def encode_row(row: Row) -> Json:
    """A Row as one for pyarrow."""
    return {name: encode(getattr(row, name), hint) for name, hint in hints(Row).items()}


def decode(value: Any, hint: Any) -> Any:
    """The inverse of `encode`: an instance of the annotated type. Raises RecordError."""
    return from_json(hint, _decode(value, hint), str(getattr(hint, "__name__", "value")).lower())


def trial(row: Json) -> Trial:
    """The trial of a corpus row, with `run` as it was named. Raises RecordError."""
    return Trial(
        id=row["trial"],
        run=row["run"],
        parent=row["parent"],
        commit=row["commit"],
        started=row["started"],
        seconds=row["seconds"],
        context=decode(row["context"], Context),
        proposal=decode(row["proposal"], Proposal),
        outcome=decode(row["outcome"], Outcome),
        decision=decode(row["decision"], Decision),
    )


def _is_outcome(hint: Any) -> bool:
    return set(typing.get_args(hint)) == set(OUTCOMES.values())


def _outcome() -> dict[str, Any]:
    """Every field of every outcome; equal names have equal meanings."""
    return {name: hint for cls in OUTCOMES.values() for name, hint in hints(cls).items()}


def _is_json(hint: Any) -> bool:
    return hint is dict or typing.get_origin(hint) is dict or hint is Any


def _encode(data: Any, hint: Any) -> Any:
    if data is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_json(hint):
        return json.dumps(data, ensure_ascii=False, sort_keys=True)
    if _is_outcome(hint):
        fields = {n: _encode(data.get(n), h) for n, h in _outcome().items()}
        return {"type": data["type"], **fields}
    if origin in (typing.Union, types.UnionType):
        return _encode(data, next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        return [_encode(item, args[0]) for item in data]
    if dataclasses.is_dataclass(hint):
        return {n: _encode(data.get(n), h) for n, h in hints(hint).items()}
    return data.encode("utf-8", "replace").decode() if isinstance(data, str) else data


def _decode(data: Any, hint: Any) -> Any:
    if data is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if _is_json(hint):
        return json.loads(data)
    if _is_outcome(hint):
        own = hints(OUTCOMES[data["type"]])
        return {"type": data["type"], **{n: _decode(data[n], h) for n, h in own.items()}}
    if origin in (typing.Union, types.UnionType):
        return _decode(data, next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        return [_decode(item, args[0]) for item in data]
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, StrEnum)):
        return data
    if dataclasses.is_dataclass(hint):
        return {n: _decode(data.get(n), h) for n, h in hints(hint).items()}
    return data
