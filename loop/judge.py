"""Keep or discard: the Judge protocol and the judge `naive`."""

import ast
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from loop.trial import Decision, Json, Measurement, Metric, Outcome, Scored, Trial, better


@dataclass(frozen=True)
class Contender:
    """Code that stands before a judge. `trial`: its id; `commit`: its code; `metric`: its score,
    which it got on the training seed `seed`."""

    trial: int
    commit: str
    source: str
    metric: Metric
    seed: int = 0

    @property
    def code(self) -> str:
        """sha256 of its file: what its measurements are found by."""
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()


Measure = Callable[[Contender, int, str], Outcome]
"""(contender, training seed, purpose) -> one more run of its code, recorded as a measurement."""


class Past(Protocol):
    """What the ledger says so far: all that a judge knows beside the code before it."""

    @property
    def trials(self) -> Sequence[Trial]: ...

    @property
    def measurements(self) -> Sequence[Measurement]:
        """Grows with every call of `measure`."""
        ...

    @property
    def kept(self) -> Sequence[int]:
        """Ids of the baseline and the kept trials that stand, the incumbent last."""
        ...

    def contender(self, trial: int) -> Contender:
        """The code of the trial, as it would stand before the judge."""
        ...


class Judge(Protocol):
    """Decides on a candidate that has a score; one without is discarded before it gets here.

    A judge remembers nothing: what it needs of the past it reads from the ledger, so that a
    resumed run decides as the uninterrupted one would have.
    """

    @property
    def name(self) -> str: ...

    def begin(self, past: Past, measure: Measure) -> Json | None:
        """After the baseline: measure what must be known before the first decision.

        The facts to be recorded as the event `noise`; None: nothing was measured.
        """
        ...

    def decide(
        self, candidate: Contender, incumbent: Contender, past: Past, measure: Measure
    ) -> Decision:
        """May call `measure` for replicates of any contender; each costs an experiment."""
        ...


@dataclass(frozen=True)
class Naive:
    """Strictly better is kept, as in the original: it keeps noise too.

    With `simplicity`, the original's rule: an equal result (to the six digits of results.tsv) with
    less code (syntax-tree nodes) is kept as well.
    """

    simplicity: bool = False
    name: str = "naive"

    def begin(self, past: Past, measure: Measure) -> None:
        """Knows no noise."""

    def decide(
        self, candidate: Contender, incumbent: Contender, past: Past, measure: Measure
    ) -> Decision:
        new, old = candidate.metric, incumbent.metric
        gain = f"{new.name} {old.value:.6f} -> {new.value:.6f}"
        evidence = {"candidate": new.value, "incumbent": old.value}
        if better(new, old):
            return Decision("keep", self.name, f"better: {gain}", evidence)
        if self.simplicity and f"{new.value:.6f}" == f"{old.value:.6f}":
            sizes = nodes(candidate.source), nodes(incumbent.source)
            if sizes[0] < sizes[1]:
                reason = f"equal and simpler: {sizes[1]} -> {sizes[0]} syntax-tree nodes"
                return Decision("keep", self.name, reason, evidence)
        return Decision("discard", self.name, f"not better: {gain}", evidence)


def nodes(source: str) -> int:
    """Syntax-tree nodes of `source`, docstrings left out (comments never were in)."""
    tree = ast.parse(source)
    return sum(1 for _ in ast.walk(tree)) - 2 * sum(map(_has_docstring, ast.walk(tree)))


def failed(outcome: Outcome, judge: str) -> Decision:
    """The decision on a candidate without a score."""
    assert not isinstance(outcome, Scored), "a scored trial goes before the judge"
    return Decision("discard", judge, f"no score: {outcome.reason}")


def _has_docstring(node: ast.AST) -> bool:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
