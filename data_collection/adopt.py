"""A foreign log -> trials like our own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from data_collection.rows import Log, Row
from data_collection.trace import Traced, Tracer
from loop import edit
from loop.trial import (
    Context,
    Crashed,
    Decision,
    Edit,
    Invalid,
    Json,
    Measurement,
    Metric,
    Outcome,
    Proposal,
    Reason,
    Rejected,
    Scored,
    Stopped,
    TimedOut,
    Trial,
)

STRATEGY = "imported"
JUDGE = "log"


@dataclass(frozen=True)
class Adopted:
    """A record, and the file it started from (None: not known)."""

    record: Trial | Measurement
    base: str | None


def adopt(log: Log, run: str, model: str, tracer: Tracer | None) -> Iterator[Adopted]:
    """The log's rows as trials, in order; ids count from 0, the baseline.

    A row that says it is the baseline again, of the same code, is a measurement of trial 0. The
    decisions are the log's, with its own line number as evidence.
    """
    incumbent: Trial | None = None
    baseline: Row | None = None
    segment, count = 0, 0
    for row in log.rows:
        if incumbent is not None and row.segment != segment:
            incumbent = None  # a new session: measured against a baseline of its own
        segment = row.segment
        if incumbent is not None and baseline and _again(row, baseline, incumbent):
            yield Adopted(_measurement(row, log), None)
            continue
        first = incumbent is None and row.value is not None
        traced = tracer.trace(row, count == 0) if tracer else Traced(notes=_ALONE)
        trial = _trial(row, log, run, model, count, incumbent, traced, tracer)
        if first:
            decision = Decision("baseline", JUDGE, _as_logged(row, True), _evidence(row))
            trial = replace(trial, decision=decision)
            baseline = row
        if first or (trial.decision.verdict == "keep"):
            incumbent = trial
        count += 1
        yield Adopted(trial, traced.base)


_ALONE = ("no repository: the row alone",)


def _again(row: Row, baseline: Row, incumbent: Trial) -> bool:
    """Is this row one more run of the baseline's code, and still compared with it?"""
    same = row.commit == baseline.commit and row.segment == baseline.segment
    return row.status == "baseline" and same and incumbent.id == 0 and row.value is not None


def _trial(
    row: Row,
    log: Log,
    run: str,
    model: str,
    number: int,
    incumbent: Trial | None,
    traced: Traced,
    tracer: Tracer | None,
) -> Trial:
    outcome = _outcome(row, log)
    before = incumbent.outcome if incumbent else None
    editable = tracer.editable if tracer else "train.py"
    change, why = _edit(traced, editable)
    kept = row.status in ("keep", "baseline") and isinstance(outcome, Scored)
    notes: Json = {"line": row.line, "status": row.raw_status, "hash": row.commit}
    if said := [*row.inferred, *traced.notes, *why]:
        notes["said"] = said
    if change is None:
        notes["row_alone"] = True
    return Trial(
        id=number,
        run=run,
        parent=None if incumbent is None else incumbent.id,
        commit=traced.commit,
        started=row.started or traced.when,
        seconds=0.0,
        context=Context(
            file_sha256="" if traced.base is None else edit.sha256(traced.base),
            incumbent=None if incumbent is None else incumbent.id,
            incumbent_metric=before.metric if isinstance(before, Scored) else None,
            strategy=STRATEGY,
            template_hash="",
        ),
        proposal=Proposal(row.description, model=model, edit=change, notes=notes),
        outcome=outcome,
        decision=Decision(
            "keep" if kept else "discard", JUDGE, _as_logged(row, kept), _evidence(row)
        ),
    )


def _edit(traced: Traced, name: str) -> tuple[Edit | None, tuple[str, ...]]:
    """The canonical edit between the traced files, None and why where there is none."""
    base, new = traced.base, traced.new
    if new is None:
        return None, () if traced.notes else (f"{name} is not in its commit",)
    if base is None:
        return None, ("what it was made from is not known",)
    edited = edit.compare(base, new, name)
    if isinstance(edited, edit.Edited):
        return edited.edit, ()
    digest = edit.code_hash(new, name)
    hashed = edit.sha256(new) if isinstance(digest, Rejected) else digest
    if edited.reason is Reason.SYNTAX_ERROR:
        return Edit(edit.unified(base, new, name), (), edit.sha256(new), hashed), (edited.detail,)
    if base == new:
        return (Edit("", (), edit.sha256(new), hashed), ()) if not traced.notes else (
            None, (f"its commit does not change {name}",))  # fmt: skip
    return None, (edited.detail,)


def _outcome(row: Row, log: Log) -> Outcome:
    """What came out. A reason the log does not give is the widest that fits its status."""
    metric = None if row.value is None else Metric(log.metric, row.value, log.direction)
    match row.status:
        case "duplicate":
            return Rejected(Reason.DUPLICATE, row.description[:200])
        case "invalid" if metric:
            detail = f"the harness's own checks: {row.raw_status}"
            return Invalid(metric, Reason.AUDIT_MISMATCH, detail)
        case "stopped":
            return Stopped(0.0, metric)
    if metric is not None:
        return Scored(metric, row.measurements)
    if row.reason is Reason.TIME_OUT:
        return TimedOut(0.0)
    reason = row.reason or (
        Reason.EXCEPTION if row.status == "crash" else Reason.METRIC_MISSING
    )  # fmt: skip
    stage = "metric" if reason in (Reason.METRIC_MISSING, Reason.METRIC_NOT_FINITE) else "train"
    return Crashed("metric" if stage == "metric" else "train", reason)


def _measurement(row: Row, log: Log) -> Measurement:
    return Measurement(0, "baseline again", row.line, row.started, 0.0, _outcome(row, log))


def _as_logged(row: Row, kept: bool) -> str:
    text = f"as logged: {row.raw_status or 'no status'}"
    if row.status in ("keep", "baseline") and not kept:
        return f"{text}, but it has no score"
    return text


def _evidence(row: Row) -> Json:
    return {"line": row.line}
