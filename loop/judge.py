"""Keep or discard: the Judge protocol and the judge `naive`."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from loop.trial import Decision, Metric, Outcome, Scored, better


@dataclass(frozen=True)
class Contender:
    """Code that stands before a judge. `trial`: its id; `commit`: its code; `metric`: its score."""

    trial: int
    commit: str
    source: str
    metric: Metric


Measure = Callable[[Contender, int, str], Outcome]
"""(contender, training seed, purpose) -> one more run of its code, recorded as a measurement."""


class Judge(Protocol):
    """Decides on a candidate that has a score; one without is discarded before it gets here."""

    @property
    def name(self) -> str: ...

    def decide(self, candidate: Contender, incumbent: Contender, measure: Measure) -> Decision:
        """May call `measure` for replicates of either; each costs an experiment."""
        ...


@dataclass(frozen=True)
class Naive:
    """Strictly better is kept, as in the original: it keeps noise too.

    With `simplicity`, the original's rule: an equal result (to the six digits of results.tsv) with
    less code (syntax-tree nodes) is kept as well.
    """

    simplicity: bool = False
    name: str = "naive"

    def decide(self, candidate: Contender, incumbent: Contender, measure: Measure) -> Decision:
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
