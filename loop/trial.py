"""The record that travels: a Trial = (context, proposal, outcome) plus the judge's decision.

Standard library only, and nothing of ours: every other file may stand on this one. All records are
frozen dataclasses that become plain JSON and back. Reading is strict: an unknown field, a missing
field, a wrong type or a newer schema version is a `RecordError` that names it.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Literal

SCHEMA = 2
"""Version of the JSON shape. A reader upgrades older ones and refuses newer ones by name."""

Json = dict[str, Any]


class RecordError(ValueError):
    """A JSON object is not the record it should be; the message names the field."""


class Reason(StrEnum):
    """The failure taxonomy: the closed list of why a trial has no usable score."""

    # Rejected: the proposal never ran.
    EMPTY_REPLY = "empty_reply"
    ONLY_REASONING = "only_reasoning"
    CUT_SHORT = "cut_short"
    NO_EDIT = "no_edit"
    SEVERAL_EDITS = "several_edits"
    SEARCH_NOT_FOUND = "search_not_found"
    SEARCH_AMBIGUOUS = "search_ambiguous"
    UNKNOWN_KNOB = "unknown_knob"
    BAD_VALUE = "bad_value"
    SYNTAX_ERROR = "syntax_error"
    FIXED_FILE = "fixed_file"
    FORBIDDEN_EDIT = "forbidden_edit"
    INVALID_JSON = "invalid_json"
    TOOL_CALL = "tool_call"
    TOO_LARGE = "too_large"
    NO_OP = "no_op"
    DUPLICATE = "duplicate"
    SEED_ONLY = "seed_only"
    NOTHING_LEFT = "nothing_left"
    CONTEXT_OVERFLOW = "context_overflow"
    # Crashed, timed out, stopped: it ran and left no score.
    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out_of_memory"
    KILLED = "killed"
    METRIC_MISSING = "metric_missing"
    METRIC_NOT_FINITE = "metric_not_finite"
    TIME_OUT = "time_out"
    DISK_LIMIT = "disk_limit"
    HOPELESS = "hopeless"
    # Invalid: it scored and failed the audit.
    FIXED_FILE_CHANGED = "fixed_file_changed"
    AUDIT_MISMATCH = "audit_mismatch"
    NOT_CAUSAL = "not_causal"
    BUDGET_NOT_SPENT = "budget_not_spent"
    NOT_FINITE_WEIGHTS = "not_finite_weights"
    UNREADABLE_WEIGHTS = "unreadable_weights"


@dataclass(frozen=True)
class Metric:
    """One measured value of the target's metric; its direction lives with it."""

    name: str
    value: float
    direction: Literal["min", "max"] = "min"


def better(a: Metric, b: Metric) -> bool:
    """Is `a` strictly better than `b`? Raises ValueError for two different metrics."""
    if (a.name, a.direction) != (b.name, b.direction):
        raise ValueError(f"cannot compare {a.name} ({a.direction}) with {b.name} ({b.direction})")
    return a.value < b.value if a.direction == "min" else a.value > b.value


@dataclass(frozen=True)
class Message:
    """One chat message, kept as the parts it was composed of (stable ones first).

    What a brain receives is `content`, the parts joined. The parts are kept apart so that a ledger
    can store a long part that repeats from trial to trial once.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[str, ...]

    @property
    def content(self) -> str:
        return "".join(self.parts)


@dataclass(frozen=True)
class Reply:
    """One completion. `dollars` is None where no price is known (a local model has none).

    `logprobs`: nats of the likeliest first tokens by their text, where they were asked for.
    """

    text: str
    finish: Literal["stop", "length", "tool_call", "other"] = "stop"
    reasoning: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    dollars: float | None = None
    logprobs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request to a brain, exactly as sent, with every reply that came back."""

    messages: tuple[Message, ...]
    replies: tuple[Reply, ...]
    temperature: float
    max_tokens: int
    seed: int
    schema: Json | None = None
    stop: tuple[str, ...] = ()
    purpose: str = "propose"


@dataclass(frozen=True)
class KnobChange:
    """`KNOB: old -> new`, as Python literals in text form."""

    knob: str
    old: str
    new: str


@dataclass(frozen=True)
class Edit:
    """The canonical edit: a unified diff of the editable file, and knob changes if it is one."""

    diff: str
    knobs: tuple[KnobChange, ...] = ()
    file_sha256: str = ""
    code_hash: str = ""


@dataclass(frozen=True)
class Context:
    """The state a proposal was made from, and what of it was shown.

    `file_sha256`: the incumbent's editable file. `history`: ids of the trials shown. `omitted`: one
    phrase for each thing that was left out to fit the window. `template_hash`: of the strategy.
    `knobs`: values that the incumbent's knobs have, as far as they have a space to move in.
    """

    file_sha256: str
    incumbent: int | None
    incumbent_metric: Metric | None
    strategy: str
    template_hash: str
    history: tuple[int, ...] = ()
    omitted: tuple[str, ...] = ()
    knobs: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """What was proposed: every call that led to it, and the canonical edit (None: not usable)."""

    description: str
    calls: tuple[Call, ...] = ()
    model: str = ""
    model_digest: str = ""
    answer: str = ""
    edit: Edit | None = None
    notes: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """It ran and measured itself. `measurements`: whatever else the target reports, JSON values."""

    metric: Metric
    measurements: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Crashed:
    """It ran and died. `stage`: where; `tail`: the capped end of its log."""

    stage: Literal["start", "smoke", "train", "evaluate", "metric"]
    reason: Reason
    tail: str = ""


@dataclass(frozen=True)
class TimedOut:
    """Its process tree was killed after `after` seconds."""

    after: float
    reason: Reason = Reason.TIME_OUT


@dataclass(frozen=True)
class Stopped:
    """Cut early as hopeless at `at` (fraction of the budget): censored, not a loss."""

    at: float
    metric: Metric | None = None
    reason: Reason = Reason.HOPELESS


@dataclass(frozen=True)
class Invalid:
    """It scored, and failed the audit."""

    metric: Metric
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Rejected:
    """It never ran."""

    reason: Reason
    detail: str = ""


Outcome = Scored | Crashed | TimedOut | Stopped | Invalid | Rejected


@dataclass(frozen=True)
class Decision:
    """What the judge did with it, and on what evidence (replicates, sigma, p or e-value)."""

    verdict: Literal["baseline", "keep", "discard"]
    judge: str
    reason: str
    evidence: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One turn of the loop. `id` counts from 0 (the baseline) within `run`; `parent` is the
    incumbent it edits; `commit` is the git commit of its file (None: no file came of it)."""

    id: int
    run: str
    parent: int | None
    commit: str | None
    started: str
    seconds: float
    context: Context
    proposal: Proposal
    outcome: Outcome
    decision: Decision
    schema: int = SCHEMA


@dataclass(frozen=True)
class Measurement:
    """Another run of a trial's code: a replicate, a check that it still runs, a final check.

    `code`: sha256 of the file that ran. A trial that was cut off is proposed anew under its id and
    may be other code then: a measurement belongs to the code.
    """

    trial: int
    purpose: str
    seed: int
    started: str
    seconds: float
    outcome: Outcome
    code: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class Event:
    """Something that happened between trials; `data` holds its facts (e.g. `to` of a revert)."""

    name: str
    at: str
    data: Json = field(default_factory=dict)
    schema: int = SCHEMA


Record = Trial | Measurement | Event
KINDS: dict[str, type[Any]] = {"trial": Trial, "measurement": Measurement, "event": Event}
OUTCOMES: dict[str, type[Any]] = {
    "scored": Scored,
    "crashed": Crashed,
    "timed_out": TimedOut,
    "stopped": Stopped,
    "invalid": Invalid,
    "rejected": Rejected,
}
TAGS = {cls: tag for tag, cls in OUTCOMES.items()}
UPGRADES: dict[int, typing.Callable[[Json], Json]] = {1: lambda data: data}
"""From schema version n to n + 1, applied to the raw JSON object. 1 to 2: a reply may carry
`logprobs`, and none is what it had."""


def to_json(value: Any) -> Any:
    """Record -> JSON-ready value. An outcome carries its type under `type`, a record its `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if type(value) in TAGS:
            return {"type": TAGS[type(value)], **body}
        for kind, cls in KINDS.items():
            if type(value) is cls:
                return {"kind": kind, **body}
        return body
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def record_from_json(data: Any) -> Record:
    """JSON object with a `kind` -> Trial, Measurement or Event. Raises RecordError."""
    kind = data.get("kind") if isinstance(data, dict) else data
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecordError(f"kind is {kind!r}; known kinds: {', '.join(KINDS)}")
    version = data.get("schema")
    if type(version) is not int:
        raise RecordError("schema version is missing")
    if version > SCHEMA:
        raise RecordError(f"schema version {version} is newer than this program's {SCHEMA}")
    while version < SCHEMA:
        if version not in UPGRADES:
            raise RecordError(f"schema version {version} is unknown")
        data = UPGRADES[version](data)
        version += 1
    body = {key: item for key, item in data.items() if key != "kind"} | {"schema": SCHEMA}
    return typing.cast(Record, from_json(KINDS[kind], body, kind))


def from_json(kind: Any, data: Any, where: str = "") -> Any:
    """JSON value -> an instance of the annotated type `kind`, strictly. Raises RecordError."""
    return _reader(kind)(data, where)


_Reader = typing.Callable[[Any, str], Any]


@cache
def _reader(kind: Any) -> _Reader:
    """What reads a value of the type `kind`: looked at once, for a ledger has millions of them."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda data, where: data
    if origin in (typing.Union, types.UnionType):
        return _union_reader(args)
    if origin is Literal:
        return _literal_reader(args)
    if origin is tuple:
        return _tuple_reader(_reader(args[0]))
    if origin is dict or kind is dict:
        return _dict_reader
    if dataclasses.is_dataclass(kind):
        return _object_reader(typing.cast(type[Any], kind))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _enum_reader(kind)
    return _float_reader if kind is float else _plain_reader(kind)


def _literal_reader(options: tuple[Any, ...]) -> _Reader:
    def read(data: Any, where: str) -> Any:
        if data in options:
            return data
        raise RecordError(f"{where} is {data!r}, expected one of {', '.join(map(str, options))}")

    return read


def _tuple_reader(item: _Reader) -> _Reader:
    def read(data: Any, where: str) -> Any:
        if not isinstance(data, list):
            raise RecordError(f"{where} is {type(data).__name__}, expected a list")
        return tuple([item(value, f"{where}[{i}]") for i, value in enumerate(data)])

    return read


def _dict_reader(data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecordError(f"{where} is {type(data).__name__}, expected an object")
    return data


def _enum_reader(kind: type[StrEnum]) -> _Reader:
    def read(data: Any, where: str) -> Any:
        try:
            return kind(data)
        except ValueError:
            raise RecordError(f"{where} is {data!r}, not a known {kind.__name__}") from None

    return read


def _float_reader(data: Any, where: str) -> float:
    if type(data) is int and abs(data) < 2**1000:
        return float(data)
    if type(data) is not float or not math.isfinite(data):
        raise RecordError(f"{where} is {data!r}, expected float")
    return data


def _plain_reader(kind: Any) -> _Reader:
    def read(data: Any, where: str) -> Any:
        if type(data) is not kind:
            raise RecordError(f"{where} is {data!r}, expected {getattr(kind, '__name__', kind)}")
        return data

    return read


def _union_reader(args: tuple[Any, ...]) -> _Reader:
    rest = [arg for arg in args if arg is not type(None)]
    inner = _outcome if all(arg in TAGS for arg in rest) else _reader(rest[0])
    if len(rest) == len(args):
        return inner
    return lambda data, where: None if data is None else inner(data, where)


def _outcome(data: Any, where: str) -> Any:
    tag = data.get("type") if isinstance(data, dict) else None
    if not isinstance(tag, str) or tag not in OUTCOMES:
        raise RecordError(f"{where}.type is {tag!r}; known: {', '.join(OUTCOMES)}")
    body = {key: value for key, value in data.items() if key != "type"}
    return from_json(OUTCOMES[tag], body, where)


def _object_reader(cls: type[Any]) -> _Reader:
    readers = {name: _reader(hint) for name, hint in typing.get_type_hints(cls).items()}
    nothing = dataclasses.MISSING
    required = [
        spec.name
        for spec in dataclasses.fields(cls)
        if spec.default is nothing and spec.default_factory is nothing
    ]

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise RecordError(f"{where} is {type(data).__name__}, expected an object")
        if not data.keys() <= readers.keys():
            raise RecordError(f"{where}.{min(data.keys() - readers.keys())} is an unknown field")
        for name in required:
            if name not in data:
                raise RecordError(f"{where}.{name} is missing")
        return cls(**{key: readers[key](item, f"{where}.{key}") for key, item in data.items()})

    return read
