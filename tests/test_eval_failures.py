"""Failure analysis: counts against hand-worked runs, repetition, drift, first failures, quotes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import drift, failures
from eval.drift import Shift, directions, first_failure, repeats
from eval.failures import QUOTES, REPLY_CHARS, Failures, Rate, Runs, about
from eval.summary import Summary, of_records
from loop.trial import (
    Crashed,
    Edit,
    Event,
    KnobChange,
    Metric,
    Outcome,
    Reason,
    Record,
    Rejected,
    Scored,
    Trial,
)
from tests.conftest import a_trial

NO_EDIT = Rejected(Reason.NO_EDIT, "no edit was found in the reply")
MEMORY = Crashed("train", Reason.OUT_OF_MEMORY, "loading\nCUDA out of memory")


def bpb(value: float) -> Metric:
    return Metric("val_bpb", value)


def analyse(runs: Runs) -> list[Failures]:
    return failures.analyse(runs, np.random.default_rng(0))


def shifts(runs: Sequence[Summary], length: int, goal: Metric | None) -> list[Shift]:
    return drift.shifts(runs, length, goal, np.random.default_rng(0))


def a_run(outcomes: Sequence[Outcome], name: str = "run", code: str = "") -> Summary:
    """A baseline at 1.5 and one proposal an outcome, each of its own code; those below are kept."""
    records: list[Record] = [a_trial()]
    best = 1.5
    for number, outcome in enumerate(outcomes, 1):
        kept = isinstance(outcome, Scored) and outcome.metric.value < best
        made = a_trial(number, outcome, "keep" if kept else "discard", code_hash=f"{code}{number}")
        records.append(replace(made, context=replace(made.context, incumbent_metric=bpb(best))))
        best = outcome.metric.value if isinstance(outcome, Scored) and kept else best
    return of_records(records, {}, name)


def proposing(*edits: tuple[str, str, str], verdict: str = "discard") -> list[Record]:
    """Proposals of one knob each, as (knob, old, new); an empty knob is a refused proposal."""
    found: list[Record] = [a_trial(code_hash="base")]
    for number, (knob, old, new) in enumerate(edits, 1):
        trial = a_trial(number, verdict=verdict, description=f"{knob} {new} {number}")
        change = Edit("", (KnobChange(knob, old, new),), "", f"{knob}={new}")
        found.append(replace(trial, proposal=replace(trial.proposal, edit=change, answer="")))
    return found


# --- reasons


def test_reasons_are_counted_over_the_thirds_of_the_longest_run() -> None:
    good = Scored(bpb(1.6))
    long = a_run([NO_EDIT, MEMORY, good, good, NO_EDIT, NO_EDIT])
    short = a_run([good, NO_EDIT])  # of six places it fills the first third only
    (found,) = analyse({"menu": [long, short]})
    assert (found.runs, found.n, found.failed) == (2, 8, Rate(5, 8))
    assert found.thirds == (Rate(3, 4), Rate(0, 2), Rate(2, 2))
    assert [(c.reason, c.all, c.thirds) for c in found.causes] == [
        ("no_edit", Rate(4, 8), (Rate(2, 4), Rate(0, 2), Rate(2, 2))),
        ("out_of_memory", Rate(1, 8), (Rate(1, 4), Rate(0, 2), Rate(0, 2))),
    ]


def test_a_rate_carries_wilsons_interval_and_of_nothing_there_is_none() -> None:
    interval = Rate(8, 10).interval
    assert interval is not None  # Wilson 1927 by hand: (0.8 + z2/20 -+ z sqrt(...)) / (1 + z2/10)
    assert interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (Rate(0, 0).value, Rate(0, 0).interval) == (None, None)


def test_an_arm_without_runs_is_left_out_and_one_without_proposals_is_not() -> None:
    found = analyse({"none": [], "only a baseline": [of_records([a_trial()], {}, "r")]})
    assert [(f.arm, f.n, f.causes, f.first.runs) for f in found] == [("only a baseline", 0, (), 0)]


# --- repetition


def test_the_same_code_and_a_refused_duplicate_are_repeats() -> None:
    records = proposing(("LR", "1", "2"), ("LR", "1", "3"), ("LR", "1", "2"))
    records.append(a_trial(4, Rejected(Reason.DUPLICATE, "the same code as trial 1")))
    found = repeats([of_records(records, {}, "r")])
    assert (found.n, found.code) == (4, 2)


def test_a_move_repeats_when_the_same_direction_was_tried_and_not_kept() -> None:
    tried = proposing(("LR", "1", "2"), ("LR", "1", "4"), ("LR", "1", "0.5"), ("W", "1", "2"))
    assert repeats([of_records(tried, {}, "r")]).move == 1
    climbing = proposing(("LR", "1", "2"), ("LR", "2", "4"), ("LR", "4", "8"), verdict="keep")
    assert repeats([of_records(climbing, {}, "r")]).move == 0


def test_words_repeat_whatever_the_spaces_and_empty_ones_do_not() -> None:
    records: list[Record] = [a_trial()]
    for number, text in enumerate(["wider net", "wider  net ", "", ""], 1):
        trial = a_trial(number, NO_EDIT)
        records.append(
            replace(trial, proposal=replace(trial.proposal, description=text, edit=None))
        )
    assert repeats([of_records(records, {}, "r")]).words == 1


def test_the_longest_streak_says_where_it_is_and_does_not_cross_runs() -> None:
    again = [("LR", "1", "2")] * 3
    one = of_records(proposing(*again), {}, "one")
    two = of_records(proposing(*again, ("W", "1", "2"), *[("LR", "1", "2")] * 3), {}, "two")
    found = repeats([one, two])
    assert (found.streak, found.run, found.trial) == (3, "two", 7)
    assert repeats([a_run([NO_EDIT])]).run is None


def test_a_refused_answer_is_read_for_its_direction() -> None:
    trial = a_trial(1, Rejected(Reason.DUPLICATE))
    said = replace(trial.proposal, edit=None, answer="LR = 0.05\nNAME = 'x'\nother text")
    trial = replace(trial, proposal=said, context=replace(trial.context, knobs={"LR": 0.1}))
    assert list(directions(trial)) == [("LR", "down")]


# --- drift


def test_drift_is_over_runs_and_agrees_with_a_paired_t_interval() -> None:
    good = Scored(bpb(1.6))
    shares = [(1.0, 0.0), (1.0, 0.5), (0.5, 0.0), (1.0, 0.0)]

    def half(share: float) -> list[Outcome]:
        return [good if i < 2 * share else NO_EDIT for i in range(2)]

    runs = [a_run([*half(a), good, good, *half(b)]) for a, b in shares]
    valid = shifts(runs, 6, None)[0]
    from scipy import stats

    differences = [b - a for a, b in shares]
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (valid.n, valid.early, valid.late) == (4, 0.875, 0.125)
    assert (valid.low, valid.high) == pytest.approx((low, high))
    assert valid.p == pytest.approx(2 / 16)  # all four fell: two of the 16 sign patterns
    assert valid.verdict == "worse"


def test_a_single_run_has_a_difference_and_no_interval() -> None:
    run = a_run([Scored(bpb(1.6)), Scored(bpb(1.6)), NO_EDIT])
    valid, gain, distance = shifts([run], 3, bpb(1.4))
    assert (valid.n, valid.difference, valid.low, valid.p) == (1, -1.0, None, None)
    assert (gain.n, gain.verdict) == (0, "not measured")
    assert (distance.early, distance.late) == pytest.approx((0.1, 0.1))


def test_distance_is_from_the_best_of_all_runs_and_gain_from_the_incumbent() -> None:
    far = a_run([Scored(bpb(1.45)), Scored(bpb(1.47)), Scored(bpb(1.40))])
    best = a_run([Scored(bpb(1.2))])
    found = {f.arm: f for f in analyse({"far": [far], "best": [best]})}
    _, gain, distance = found["far"].shifts
    assert (distance.early, distance.late) == pytest.approx((0.25, 0.20))
    assert (gain.early, gain.late) == pytest.approx((0.05, 0.05))


def test_a_revert_takes_the_incumbent_away_from_the_goal() -> None:
    run = a_run([Scored(bpb(1.4)), Scored(bpb(1.6)), Scored(bpb(1.6))])
    back = Event("revert", "", {"to": 0})
    reverted = of_records([*run.trials[:3], back, run.trials[3]], {}, "r")
    *_, distance = shifts([reverted], 3, bpb(1.4))
    assert (distance.early, distance.late) == pytest.approx((0.0, 0.1))


# --- the first failure


def test_first_failures_by_kaplan_and_meier() -> None:
    good = Scored(bpb(1.6))
    # Failures at 1, 3 and 3; runs that end without one after 2 and 4 proposals.
    runs = [
        a_run([NO_EDIT, good]), a_run([good, good, NO_EDIT]), a_run([good, good, MEMORY]),
        a_run([good, good]), a_run([good] * 4),
    ]  # fmt: skip
    found = first_failure(runs)
    assert (found.runs, found.failed, found.median) == (5, 3, 3)
    shares = {at: share for at, share, _ in found.steps}
    # 1 - 1/5; then 3 of them at risk after one is censored at 2, two fail: times 1/3.
    assert shares == pytest.approx({1: 0.8, 2: 0.8, 3: 0.8 / 3, 4: 0.8 / 3})
    for _, share, interval in found.steps:
        assert interval is None or interval[0] <= share <= interval[1]
    # Greenwood at 1: var = .8^2 (1 / (5 * 4)); on the log(-log) scale, by hand.
    se = math.sqrt(1 / 20) / abs(math.log(0.8))
    by_hand = (0.8 ** math.exp(1.959964 * se), 0.8 ** math.exp(-1.959964 * se))
    assert found.steps[0][2] == pytest.approx(by_hand, abs=1e-6)


def test_without_a_failure_there_is_no_median() -> None:
    found = first_failure([a_run([Scored(bpb(1.6))] * 3)])
    assert (found.runs, found.failed, found.steps, found.median) == (1, 0, (), None)
    certain = first_failure([a_run([NO_EDIT])])
    assert (certain.median, certain.steps) == (1, ((1, 0.0, None),))


# --- what it was about, and quotes


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("@@ -1 +1 @@\n-WIDTH = 64\n+WIDTH = 96\n", ["WIDTH"]),
        ("@@ -9 +9 @@\n def forward(self):\n-    return x\n+    return 2 * x\n", ["def forward"]),
        ("+class Block:\n+    pass\n", ["class Block"]),
        ("if LR == 3:\n", []),
        ("", []),
    ],
)
def test_what_an_edit_is_about(text: str, parts: list[str]) -> None:
    trial = a_trial(1)
    assert about(replace(trial, proposal=replace(trial.proposal, edit=Edit(text)))) == parts
    assert about(replace(trial, proposal=replace(trial.proposal, edit=None, answer=text))) == parts


def test_topics_tell_how_many_of_those_tried_failed() -> None:
    records = proposing(("LR", "1", "2"), ("LR", "1", "3"), ("W", "1", "2"))
    records[2] = replace(trial_of(records[2]), outcome=MEMORY)
    (found,) = analyse({"a": [of_records(records, {}, "r")]})
    assert [(t.name, t.failed) for t in found.topics] == [("LR", Rate(1, 2))]


def trial_of(record: Record) -> Trial:
    assert isinstance(record, Trial)
    return record


def test_quotes_come_from_different_runs_and_are_cut() -> None:
    long = Rejected(Reason.NO_EDIT, "d" * 5000)
    runs = [a_run([long, long], "one"), a_run([long], "two")]
    said = runs[0].trials[1]
    call = said.proposal.calls[0]
    wordy = replace(call, replies=(replace(call.replies[0], text="r" * 5000),))
    changed = replace(said, proposal=replace(said.proposal, calls=(wordy,)))
    one = of_records([runs[0].trials[0], changed, runs[0].trials[2]], {}, "one")
    (found,) = analyse({"a": [one, runs[1]]})
    assert [(q.run, q.trial) for q in found.quotes] == [("one", 1), ("two", 1)][:QUOTES]
    assert found.quotes[0].reply == "r" * REPLY_CHARS + " … 4,300 more characters"
    assert found.quotes[0].detail.endswith(" … 4,600 more characters")


def test_a_crash_is_quoted_from_its_end() -> None:
    (found,) = analyse({"a": [a_run([MEMORY])]})
    assert found.quotes[0].detail.endswith("CUDA out of memory")
    assert found.quotes[0].reply == "LR = 0.2"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([NO_EDIT, MEMORY, Scored(bpb(1.6)), Scored(bpb(1.2))])))
def test_every_proposal_is_counted_once(outcomes: list[Outcome]) -> None:
    run = a_run(outcomes)
    (found,) = analyse({"a": [run]})
    assert found.n == len(outcomes) == sum(rate.n for rate in found.thirds)
    assert found.failed.count == sum(c.all.count for c in found.causes) == run.failed
    assert found.failed.count == sum(rate.count for rate in found.thirds)
