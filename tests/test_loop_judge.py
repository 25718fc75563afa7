"""The judge `naive`: strictly better, and on demand the rule of simplicity."""

from typing import Any

import pytest

from loop.judge import Contender, Naive, failed, nodes
from loop.trial import Crashed, Decision, Metric, Reason, Scored

LONG, SHORT = "x = 1\ny = x + 1\nprint(y)\n", "print(2)\n"
NOTHING: Any = None  # a naive judge looks neither at the past nor at a replicate


def decide(
    new: float, old: float, source: str = LONG, way: Any = "min", simplicity: bool = False
) -> Decision:
    return Naive(simplicity=simplicity).decide(
        Contender(1, "c", source, Metric("m", new, way)),
        Contender(0, "b", LONG, Metric("m", old, way)),
        NOTHING,
        NOTHING,
    )


@pytest.mark.parametrize(
    ("new", "old", "way", "verdict"),
    [
        (1.0, 2.0, "min", "keep"), (2.0, 1.0, "min", "discard"), (1.0, 1.0, "min", "discard"),
        (1.0, 2.0, "max", "discard"), (2.0, 1.0, "max", "keep"), (2.0, 2.0, "max", "discard"),
    ],
)  # fmt: skip
def test_strictly_better_is_kept(new: float, old: float, way: str, verdict: str) -> None:
    decision = decide(new, old, way=way)
    assert (decision.verdict, decision.judge) == (verdict, "naive")
    assert decision.evidence == {"candidate": new, "incumbent": old}
    assert f"{old:.6f} -> {new:.6f}" in decision.reason


def test_simplicity_keeps_what_is_equal_and_shorter_and_only_that() -> None:
    assert decide(1.0, 1.0, SHORT).verdict == "discard", "not unless asked"
    kept = decide(1.0 + 4e-8, 1.0, SHORT, simplicity=True)
    assert kept.verdict == "keep" and "equal and simpler" in kept.reason
    assert decide(1.0, 1.0, LONG, simplicity=True).verdict == "discard", "not shorter"
    assert decide(1.00001, 1.0, SHORT, simplicity=True).verdict == "discard", "not equal"


def test_comments_layout_and_docstrings_are_no_code() -> None:
    plain = "def f(x):\n    return x\n"
    wordy = '"""Module."""\n\n\ndef f(x):  # why\n    """Doc."""\n    return x\n'
    assert nodes(plain) == nodes(wordy) < nodes(plain + "f(1)\n")


def test_what_has_no_score_is_discarded_with_its_reason() -> None:
    decision = failed(Crashed("train", Reason.OUT_OF_MEMORY), "naive")
    assert (decision.verdict, decision.reason) == ("discard", "no score: out_of_memory")
    with pytest.raises(AssertionError):
        failed(Scored(Metric("m", 1.0)), "naive")
