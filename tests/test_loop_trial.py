"""The record: what goes in comes out, and nothing else is let in."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop import trial as records
from loop.trial import (
    Crashed,
    Event,
    Invalid,
    Json,
    Measurement,
    Metric,
    Outcome,
    Reason,
    Record,
    RecordError,
    Rejected,
    Scored,
    Stopped,
    TimedOut,
    Trial,
    better,
    record_from_json,
    to_json,
)
from tests.conftest import a_trial

METRIC = Metric("val_bpb", 1.25)
OUTCOMES: tuple[Outcome, ...] = (
    Scored(METRIC, {"steps": 3, "curve": [1, 2.5, None], "deep": {"a": ["b"]}}),
    Crashed("train", Reason.EXCEPTION, "boom"),
    TimedOut(3.0),
    Stopped(0.5, METRIC),
    Stopped(0.5),
    Invalid(METRIC, Reason.NOT_CAUSAL, "looks ahead"),
    Rejected(Reason.NO_EDIT),
)


def there_and_back(record: Record) -> Record:
    return record_from_json(json.loads(json.dumps(to_json(record), allow_nan=False)))


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda o: type(o).__name__)
def test_every_outcome_survives_json(outcome: Outcome) -> None:
    trial = a_trial(1, outcome)
    assert there_and_back(trial) == trial
    measurement = Measurement(1, "replicate", 7, "now", 1.5, outcome)
    assert there_and_back(measurement) == measurement


def test_an_event_survives_json() -> None:
    event = Event("revert", "now", {"to": 0, "reason": "three crashes"})
    assert there_and_back(event) == event


def test_a_trial_has_the_four_keys_of_the_contract() -> None:
    assert {"kind", "context", "proposal", "outcome", "decision"} <= set(to_json(a_trial()))


@settings(max_examples=60, deadline=None)
@given(st.from_type(Trial) | st.from_type(Measurement) | st.from_type(Event))
def test_any_record_survives_json(record: Record) -> None:
    record = replace(record, schema=records.SCHEMA)
    assert there_and_back(record) == record


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
st.register_type_strategy(float, finite)
st.register_type_strategy(
    dict,
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | finite, max_size=3),
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_damaged_record_is_a_record_error_and_nothing_else(data: st.DataObject) -> None:
    body = to_json(a_trial(1, data.draw(st.sampled_from(OUTCOMES))))
    at: Any = body
    while True:  # walk down to some place, and put something else there
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not (isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans())):
            break
        at = at[key]
    at[key] = data.draw(JSON_VALUES)
    try:
        record_from_json(body)
    except RecordError as error:
        assert str(error) and "\n" not in str(error)


def damaged(change: Json, drop: str = "") -> Json:
    body: Json = to_json(a_trial()) | change
    body.pop(drop, None)
    return body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (damaged({"colour": 1}), "trial.colour is an unknown field"),
        (damaged({}, drop="outcome"), "trial.outcome is missing"),
        (damaged({"id": "7"}), "trial.id is '7', expected int"),
        (damaged({"id": True}), "trial.id is True, expected int"),
        (damaged({"seconds": float("nan")}), "trial.seconds is nan, expected float"),
        (damaged({"seconds": 10**400}), "trial.seconds is 1000"),
        (damaged({"schema": 99}), "schema version 99 is newer than this program's 2"),
        (damaged({"schema": 0}), "schema version 0 is unknown"),
        (damaged({}, drop="schema"), "schema version is missing"),
        (damaged({"kind": "trail"}), "kind is 'trail'; known kinds: trial, measurement, event"),
        (damaged({"kind": []}), "kind is []"),
        (damaged({"outcome": {"type": "won"}}), "trial.outcome.type is 'won'; known: scored"),
        (damaged({"outcome": {"type": []}}), "trial.outcome.type is []"),
        (damaged({"outcome": 0.0}), "trial.outcome.type is None"),
        (damaged({"outcome": {"type": "rejected", "reason": "x"}}), "not a known Reason"),
        (damaged({"decision": []}), "trial.decision is list, expected an object"),
        (damaged({"context": {"history": 3}}), "missing"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(body: Json, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        record_from_json(body)
    assert said in str(caught.value)


def test_an_older_record_is_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(body: Json) -> Json:
        return {**body, "run": body["run"] + "+1"}

    def second(body: Json) -> Json:
        return {**body, "run": body["run"] + "+2"}

    monkeypatch.setattr(records, "SCHEMA", 3)
    monkeypatch.setattr(records, "UPGRADES", {1: first, 2: second})
    read = record_from_json(to_json(a_trial()) | {"schema": 1})
    assert isinstance(read, Trial)
    assert (read.run, read.schema) == ("r+1+2", 3)


def test_a_reply_of_the_first_schema_had_no_logprobs() -> None:
    body = to_json(a_trial()) | {"schema": 1}
    body["proposal"]["calls"] = [
        {"messages": [], "replies": [{"text": "a"}], "temperature": 0.0, "max_tokens": 1, "seed": 0}
    ]
    read = record_from_json(body)
    assert isinstance(read, Trial)
    assert read.proposal.calls[0].replies[0].logprobs == {} and read.schema == records.SCHEMA


def test_better_follows_the_direction_of_the_metric() -> None:
    assert better(Metric("loss", 1.0), Metric("loss", 2.0))
    assert not better(Metric("loss", 2.0), Metric("loss", 1.0))
    assert better(Metric("acc", 2.0, "max"), Metric("acc", 1.0, "max"))
    assert not better(Metric("acc", 1.0, "max"), Metric("acc", 1.0, "max")), "strictly"


@pytest.mark.parametrize("other", [Metric("loss", 1.0), Metric("val_bpb", 1.0, "max")])
def test_better_refuses_two_different_metrics(other: Metric) -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        better(METRIC, other)
