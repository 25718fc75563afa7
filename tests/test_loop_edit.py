"""Edits: three formats, one reason for each way to fail, and nothing that makes the loop raise."""

import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop import edit
from loop.edit import Edited, apply, compare, unified, usable
from loop.trial import KnobChange, Reason, Rejected, Reply

SOURCE = """\
import os
LR = 0.1  # rate
WIDTH = 8
NAME = "x"
WIDE = True


def f(x):
    if x:
        return x + 1
    return x


print(f(LR))
print(f(LR))
"""
FIXED = ("prepare.py",)


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n"


def edited(answer: str, source: str = SOURCE) -> Edited:
    result = apply(answer, source, "train.py", FIXED)
    assert isinstance(result, Edited), result
    return result


# --- the three formats -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "LR = 0.2",
        "I would raise the rate.\n\n```python\nLR = 0.2\n```\nIt should help.",
        "- `LR = 0.2`",
        "> LR = 0.2  # doubled",
        "LR = 0.2, because it is low",
        "LR = 0.2\nLR = 0.2\n",
        "LR = 0.2\r\n",
        "**LR = 0.2**",
    ],
)
def test_a_knob_line(answer: str) -> None:
    result = edited(answer)
    assert result.source == SOURCE.replace("0.1", "0.2")
    assert result.edit.knobs == (KnobChange("LR", "0.1", "0.2"),)


def test_several_knobs_and_a_string_with_a_hash() -> None:
    result = edited('LR = 1\nNAME = "a # b"')
    assert 'LR = 1  # rate\nWIDTH = 8\nNAME = "a # b"\n' in result.source
    assert {change.knob for change in result.edit.knobs} == {"LR", "NAME"}


def test_a_comment_behind_a_knob_does_not_swallow_what_follows_in_the_file() -> None:
    assert edited("A = 2 # more", "A = 1; B = 2\n").source == "A = 2; B = 2\n"


def test_search_replace() -> None:
    answer = block("        return x + 1", "        return x + 2") + block(
        "LR = 0.1  # rate", "LR = 0.3  # rate"
    )
    result = edited(f"Two changes.\n{answer}")
    assert result.source == SOURCE.replace("x + 1", "x + 2").replace("0.1", "0.3")
    assert result.edit.knobs == (), "code changed too"


def test_search_replace_that_only_moves_a_knob_is_a_knob_change() -> None:
    assert edited(block("WIDTH = 8", "WIDTH = 16")).edit.knobs == (KnobChange("WIDTH", "8", "16"),)


def test_a_second_try_ignores_indentation_and_restores_it() -> None:
    result = edited(block("if x:\n    return x + 1   ", "if x > 2:\n    return x - 1"))
    assert "    if x > 2:\n        return x - 1\n    return x\n" in result.source


def test_an_empty_replacement_deletes() -> None:
    answer = '<<<<<<< SEARCH\nNAME = "x"\n=======\n>>>>>>> REPLACE'
    assert edited(answer).source == SOURCE.replace('NAME = "x"\n', "")


def test_a_whole_file_in_a_fence() -> None:
    new = SOURCE.replace("x + 1", "x * 2")
    answer = f"Here:\n```python\n{new}```\nand a smaller thing:\n```\nLR = 0.9\n```\n"
    assert edited(answer).source == new


def test_the_longest_fence_that_parses_is_taken() -> None:
    good, bad = SOURCE.replace("x + 1", "x * 2"), SOURCE + "def broken(:\n" * 9
    assert edited(f"```python\n{bad}```\n\n```python\n{good}```\n").source == good


# --- what a file may look like -----------------------------------------------------------------


def test_a_file_with_windows_line_ends_keeps_them_in_all_formats() -> None:
    source = SOURCE.replace("\n", "\r\n")
    whole = SOURCE.replace("0.1", "0.2")
    for answer in ("LR = 0.2", block("LR = 0.1  # rate", "LR = 0.2  # rate"), f"```\n{whole}```"):
        assert edited(answer, source).source == whole.replace("\n", "\r\n")


def test_unicode_and_form_feeds_survive() -> None:
    source = "# é 😀\n\x0c\nNAME = 'a\x0cb\u2028c'\nLR = 0.1\n"
    for answer in ("LR = 0.2", block("   LR = 0.1", "   LR = 0.2")):
        assert edited(answer, source).source == source.replace("0.1", "0.2")


@pytest.mark.parametrize("source", [SOURCE, SOURCE + "\x0cX = '\u2028'\n", SOURCE.rstrip("\n")])
def test_the_diff_is_one_that_git_applies(tmp_path: Path, source: str) -> None:
    new = source.replace("0.1", "0.2").replace("print(f(LR))", "print(LR)")
    (tmp_path / "train.py").write_bytes(source.encode())
    (tmp_path / "d.patch").write_bytes(unified(source, new, "train.py").encode())
    subprocess.run(["git", "apply", "d.patch"], cwd=tmp_path, check=True)
    assert (tmp_path / "train.py").read_bytes() == new.encode()


def test_a_language_other_than_python_is_text() -> None:
    answer = block("rate: 1", "rate: 2")
    assert isinstance(apply(answer, "rate: 1\n", "conf.yaml"), Edited)
    assert isinstance(compare("a", "a", "conf.yaml"), Rejected)


# --- every reason to say no --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Let us think about it.", Reason.NO_EDIT),
        ("LR == 0.2", Reason.NO_EDIT),
        ("LR = 0.2\nLR = 0.3", Reason.SEVERAL_EDITS),
        ("RATE = 0.2", Reason.UNKNOWN_KNOB),
        ("LR = higher", Reason.BAD_VALUE),
        ("WIDTH = 8.5", Reason.BAD_VALUE),
        ("WIDE = 1", Reason.BAD_VALUE),
        ("LR = " + "1+" * 600 + "1", Reason.BAD_VALUE),
        ("LR = 0.1", Reason.NO_OP),
        ("LR = 0.10  # the same", Reason.NO_OP),
        (block("WIDTH = 8", "WIDTH = 8  # eight"), Reason.NO_OP),
        (block("HEIGHT = 8", "HEIGHT = 9"), Reason.SEARCH_NOT_FOUND),
        (block("  ", "HEIGHT = 9"), Reason.SEARCH_NOT_FOUND),
        (block("print(f(LR))", "print(1)"), Reason.SEARCH_AMBIGUOUS),
        (block("  print(f(LR))", "print(1)"), Reason.SEARCH_AMBIGUOUS),
        (block("WIDTH = 8", "WIDTH = ("), Reason.SYNTAX_ERROR),
        (f"```python\n{SOURCE}def (:\n```", Reason.SYNTAX_ERROR),
        (f"```python prepare.py\n{SOURCE}```", Reason.FIXED_FILE),
        ("prepare.py\n" + block("x = 1", "x = 2"), Reason.FIXED_FILE),
        ("### File: `prepare.py`\n\n```python\nx = 2\n```", Reason.FIXED_FILE),
        ("--- a/prepare.py\n+++ b/prepare.py\n@@ -1 +1 @@\n", Reason.FIXED_FILE),
        ("x" * (edit.MAX_REPLY_CHARS + 1), Reason.TOO_LARGE),
        (block("WIDTH = 8", f"WIDTH = 8\nBIG = '{'x' * 70_000}'") * 1, None),
    ],
    ids=lambda value: value if isinstance(value, Reason) else repr(value)[:30],
)
def test_the_reason_is_named(answer: str, reason: Reason | None) -> None:
    result = apply(answer, SOURCE, "train.py", FIXED)
    if reason is None:
        assert isinstance(result, Edited)
    else:
        assert isinstance(result, Rejected) and result.reason is reason, result
        assert result.detail and "\n" not in result.detail


def test_a_file_that_grew_too_large_is_refused() -> None:
    result = compare(SOURCE, SOURCE + "#" * edit.MAX_FILE_CHARS + "\nX = 1\n")
    assert isinstance(result, Rejected) and result.reason is Reason.TOO_LARGE


def test_to_mention_a_fixed_file_is_no_edit_of_it() -> None:
    assert edited("prepare.py reads the text, so:\n\nLR = 0.2").edit.knobs


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(""), Reason.EMPTY_REPLY),
        (Reply("  \n"), Reason.EMPTY_REPLY),
        (Reply("", reasoning="hm"), Reason.ONLY_REASONING),
        (Reply("<think>hm</think>\n"), Reason.ONLY_REASONING),
        (Reply("<think>hm and then"), Reason.ONLY_REASONING),
        (Reply("LR = 0.", finish="length"), Reason.CUT_SHORT),
        (Reply("LR = 0.2", finish="tool_call"), Reason.TOOL_CALL),
    ],
)
def test_a_reply_without_an_answer_says_why(reply: Reply, reason: Reason) -> None:
    result = usable(reply)
    assert isinstance(result, Rejected) and result.reason is reason


@pytest.mark.parametrize(
    "text",
    ["<think>LR = 9</think>LR = 0.2", "<THINK>a</THINK>LR = 0.2<think>b", "LR = 9</think>LR = 0.2"],
)
def test_thoughts_are_no_answer(text: str) -> None:
    assert usable(Reply(text)) == "LR = 0.2"


# --- whatever the reply ------------------------------------------------------------------------

REAL = (
    block("LR = 0.1", "LR = 0.3"),
    block("return x", "return y"),
    f"```python\n{SOURCE}```\n",
    "LR = 0.2\nWIDTH = 16\n",
    "<think>a</think>",
    "### File: `prepare.py`\n```\n",
)
PIECES = st.sampled_from(
    [*REAL, "```", "\n", "<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n", "LR = ", "\r\n",
     "\x00", "\ud800", "\u2028", "\x0c", "'", "(", "<think>", "</think>", "\\", "**", "1e999"]
)  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A real edit with a piece cut out and something else put there."""
    text = draw(st.sampled_from(REAL))
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    return text[:start] + draw(st.text(max_size=5) | PIECES) + text[end:]


REPLIES = st.text() | mutations() | st.lists(PIECES | st.text(max_size=6), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(REPLIES, st.sampled_from([SOURCE, SOURCE.replace("\n", "\r\n"), "", "not python (", "\x0c"]))
def test_no_reply_makes_it_raise(text: str, source: str) -> None:
    assert isinstance(usable(Reply(text)), str | Rejected)
    assert isinstance(usable(Reply(text, "length")), Rejected)
    result = apply(text, source, "train.py", FIXED)
    assert isinstance(result, Edited | Rejected)
    if isinstance(result, Edited):
        compile(result.source, "train.py", "exec", dont_inherit=True)
        assert result.source != source


N = edit.MAX_REPLY_CHARS
BOMBS = {
    "unclosed searches": "<<<<<<< SEARCH\n" * (N // 15),
    "searches and dividers": "<<<<<<< SEARCH\n=======\n" * (N // 23),
    "dividers": "<<<<<<< SEARCH\n" + "=======\n" * (N // 8 - 9),
    "unclosed fences": "```x\n" * (N // 5),
    "closed fences": "```\nx\n```\n" * (N // 11),
    "blank lines": "\n" * N,
    "hashes": "#\n" * (N // 2),
    "spaces": " " * N,
    "a knob and spaces": "LR = " + " " * (N - 10) + "x",
    "a knob and ticks": "LR = " + "` " * (N // 2 - 10) + "x",
    "one long name": "A" * N,
    "many knobs": "LR = 0.2\n" * (N // 9),
    "deep brackets": "LR = " + "(" * (N - 10),
    "thoughts": "<think>" * (N // 7),
    "paths": "prepare.py " * (N // 11),
    "path lines": "prepare.py\n" * (N // 11),
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_reply_stalls_it(name: str) -> None:
    began = time.process_time()
    usable(Reply(BOMBS[name]))
    apply(BOMBS[name], SOURCE, "train.py", FIXED)
    assert time.process_time() - began < 3, "seconds of work for one reply: a stall, not noise"
