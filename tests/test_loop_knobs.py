"""Knobs: what counts as one, how it is written back, and where it may move."""

import ast
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop import knobs
from loop.errors import TargetError
from loop.knobs import Knob, fits, infer, literal, parse, read, write

SOURCE = '''\
"""A docstring with LR = 9 in it."""
import os
LR = 0.1  # the rate
BATCH = 2**16
NAME = "adam"  # é
FLAG = True
BETAS = (0.9, 0.95)
NEG = -3
lower = 1
Mixed = 2
COMPUTED = LR * 2
A = B = 1
if FLAG:
    INSIDE = 1
BATCH_2 = 4; WIDTH = 8
LONG = (
    1 +
    2
)
'''


def test_a_knob_is_a_top_level_literal_in_capitals() -> None:
    assert read(SOURCE) == {
        "LR": 0.1, "BATCH": 65536, "NAME": "adam", "FLAG": True, "BETAS": (0.9, 0.95), "NEG": -3,
        "BATCH_2": 4, "WIDTH": 8, "LONG": 3,
    }  # fmt: skip


def test_the_last_assignment_counts() -> None:
    assert read("LR = 1\nLR = 2\n") == {"LR": 2}
    assert read("LR = 1\nLR = f()\n") == {}


def test_writing_changes_the_value_and_nothing_else() -> None:
    new = write(SOURCE, {"LR": "0.25", "NAME": "'sgd'", "BATCH_2": "1024", "WIDTH": "16"})
    expected = SOURCE.replace("0.1  #", "0.25  #").replace('"adam"', "'sgd'")
    assert new == expected.replace("BATCH_2 = 4; WIDTH = 8", "BATCH_2 = 1024; WIDTH = 16")


def test_a_value_over_several_lines_is_replaced_whole() -> None:
    assert "LONG = (\n    7\n)\n" in write(SOURCE, {"LONG": "7"})


def test_writing_an_absent_knob_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        write(SOURCE, {"ABSENT": "1"})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_form_feeds_stay(end: str) -> None:
    source = f"X = 'é'{end}\x0c{end}LR = 0.1{end}Y = 'a\x0cb\u2028c'; Z = 1{end}"
    assert write(source, {"LR": "0.5", "Z": "22"}) == source.replace("0.1", "0.5").replace(
        "Z = 1", "Z = 22"
    )


NUMBERS = st.integers(-999, 999) | st.floats(0.001, 1000).map(lambda x: float(f"{x:.3g}"))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["LR", "BATCH", "NEG", "BATCH_2", "WIDTH"]), NUMBERS))
def test_what_is_written_is_read(changes: dict[str, float]) -> None:
    new = write(SOURCE, {name: repr(value) for name, value in changes.items()})
    assert read(new) == read(SOURCE) | changes


@pytest.mark.parametrize(
    ("text", "value"),
    [("2**4", 16), ("-1.5", -1.5), (" 'a' ", "a"), ("[1, 2]", (1, 2)), ("8 * 1024", 8192)],
)
def test_literals(text: str, value: knobs.Value) -> None:
    assert literal(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "f()", "LR", "2**9999", "10**6**9", "1/0", "'a' * 9", "1j", "(", "\x00", "[]", "None",
     "1+" * 5000 + "1", "(" * 5000, "-" * 5000 + "1", "\ud800", "__import__('os')"],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_what_is_no_literal_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"literal|power|number|zero"):
        literal(text)


def test_a_value_keeps_its_type() -> None:
    assert fits(0.1, 1) and fits(1, 2) and fits("a", "b")
    assert not fits(1, 0.5) and not fits(True, 1) and not fits(1, True) and not fits("a", 1)


def test_a_ladder_moves_one_rung() -> None:
    assert Knob("D", choices=(1, 2, 4)).moves(2) == [1, 4]
    assert Knob("D", choices=(1, 2, 4)).moves(1) == [2]
    assert Knob("D", choices=(1, 2, 4)).moves(3) == [2, 4], "from between two rungs"
    assert Knob("P", choices=("a", "b")).moves("z") == ["a", "b"]


def test_a_range_moves_by_its_step_and_stays_inside() -> None:
    assert Knob("LR", low=0.1, high=0.4).moves(0.2) == [0.1, 0.4]
    assert Knob("LR", low=0.1, high=0.4).moves(0.4) == [0.2]
    linear = Knob("WD", low=0.0, high=0.3, scale="linear", step=0.1)
    assert linear.moves(0.2) == [0.1, 0.3]
    assert linear.moves(0.0) == [0.1]


def test_a_linear_range_may_be_negative_or_hold_zero() -> None:
    knob = Knob("SHIFT", low=-2, high=2, scale="linear", step=1)
    assert knob.moves(-1) == [-2, 0]
    assert knob.moves(1) == [0, 2]


@given(st.integers(0, 10**6), st.sampled_from([1, 0.5]))
def test_a_sample_lies_in_the_space_and_has_the_type(seed: int, like: float) -> None:
    knob = Knob("K", low=1, high=64)
    value = knob.sample(random.Random(seed), like)
    assert type(value) is type(like)
    assert isinstance(value, int | float) and 1 <= value <= 64
    assert Knob("C", choices=("a", "b")).sample(random.Random(seed), "a") in ("a", "b")


def test_a_seed_decides_the_sample() -> None:
    knob = Knob("K", low=0.001, high=1.0)
    draws = [[knob.sample(random.Random(seed), 0.1) for seed in range(20)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 10


def test_spaces_are_read() -> None:
    assert parse("D", [1, 2]) == parse("D", {"choices": [1, 2]}) == Knob("D", choices=(1, 2))
    assert parse("B", [[0.9, 0.95], [0.8, 0.9]]).choices == ((0.9, 0.95), (0.8, 0.9))
    spec = {"low": 0, "high": 1, "scale": "linear", "step": 0.1}
    assert parse("W", spec) == Knob("W", low=0, high=1, scale="linear", step=0.1)


@pytest.mark.parametrize(
    "spec",
    [
        5, "ab", None, [], [1], {}, {"choices": 5}, {"choices": "ab"}, {"choices": [{}, {}]},
        {"low": 1}, {"low": 2, "high": 1}, {"low": 0, "high": 1}, {"low": "a", "high": "b"},
        {"low": 1, "high": 2, "step": 1}, {"low": 1, "high": 2, "step": "x"},
        {"low": 1, "high": 2, "scale": "cubic"}, {"low": 1, "high": 2, "scale": []},
        {"low": 1, "high": 2, "colour": 3}, {"low": 0, "high": 1, "scale": "linear", "step": 0},
        {"choices": [1, 2], "low": 1, "high": 2}, {"low": float("nan"), "high": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_space_names_the_knob(spec: object) -> None:
    with pytest.raises(TargetError, match=r"knob LR: .* is not a space"):
        parse("LR", spec)


def test_inferred_spaces_hold_numbers_only_and_the_value_itself() -> None:
    values = read(SOURCE)
    spaces = infer(values)
    assert set(spaces) == {"LR", "BATCH", "BATCH_2", "WIDTH", "LONG"}
    assert spaces["WIDTH"].choices == (2, 4, 8, 16, 32)
    for name, knob in spaces.items():
        assert knob.moves(values[name]), f"{name} can move"


def test_a_moved_source_still_parses() -> None:
    for name, knob in infer(read(SOURCE)).items():
        for value in knob.moves(read(SOURCE)[name]):
            ast.parse(write(SOURCE, {name: repr(value)}))
