"""State -> what a strategy shows of it: fitted to the window, the stable part first.

Engines reuse the prefix of a prompt that they have read before. So instructions and file come
first, and what changes from trial to trial, the history, last.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loop import knobs
from loop.edit import sha256
from loop.target import Target
from loop.trial import (
    Crashed,
    Invalid,
    Metric,
    Rejected,
    Scored,
    Stopped,
    TimedOut,
    Trial,
)

TAIL_LINES = 3
STRIDE, LINE = 8, 40
"""Trials that are left out at once, at least; tokens that one takes, about."""


@dataclass(frozen=True)
class State:
    """Everything a strategy may know: the target, the incumbent and its file, all trials so far.

    `seed` belongs to the proposal to be made: derived from the run's seed and the trial's id.
    """

    target: Target
    source: str
    incumbent: Trial
    trials: tuple[Trial, ...]
    seed: int

    @property
    def rng(self) -> random.Random:
        """A fresh generator of this state's seed."""
        return random.Random(self.seed)

    def tried(self) -> set[str]:
        """Code hashes of every file that was proposed, scored or not."""
        return {t.proposal.edit.code_hash for t in self.trials if t.proposal.edit is not None}

    def values(self) -> dict[str, knobs.Value]:
        """The knobs of the incumbent's file that have a space to move in."""
        return self.target.values(self.source)


@dataclass(frozen=True)
class Running(Trial):
    """A trial whose result is not known yet: in a State only, never in a ledger.

    Its verdict is the one that is taken for granted, its outcome a placeholder.
    """


@dataclass(frozen=True)
class Shown:
    """What of the state went into a prompt."""

    history: tuple[int, ...] = ()
    omitted: tuple[str, ...] = ()


def proposal_seed(run_seed: int, trial: int) -> int:
    """31 bits from the run's seed and the trial's id, so that a resumed run goes on alike."""
    return int(sha256(f"{run_seed}/{trial}")[:8], 16) & 0x7FFFFFFF


def history(trials: Sequence[Trial], room: int, count: Callable[[str], int]) -> tuple[str, Shown]:
    """The latest trials as text, oldest first, in at most `room` tokens, and what was left out.

    Of those that fit a quarter is dropped at once: engines cache the prefix of a prompt, which then
    stays the same for as many trials.
    """
    stride = max(STRIDE, room // (4 * LINE))
    known = next((trial for trial in reversed(trials) if not isinstance(trial, Running)), None)
    lines: list[str] = []
    ids: list[int] = []
    for trial in reversed(trials):
        line = describe(trial, newest=trial is known)
        cost = count(line)
        if cost > room:
            break
        room -= cost
        lines.insert(0, line)
        ids.insert(0, trial.id)
    left = len(trials) - len(ids)
    if left and (more := -left % stride) < len(ids):
        ids, lines, left = ids[more:], lines[more:], left + more
    omitted = (f"{left} of {len(trials)} trials, the oldest",) if left else ()
    return "".join(lines), Shown(tuple(ids), omitted)


def describe(trial: Trial, newest: bool = False) -> str:
    """One trial in a line: what changed, what came out, what was decided and why.

    Of a program's own output only the last lines of the newest crash are shown, fenced.
    """
    what = trial.proposal.description or "no usable edit"
    if isinstance(trial, Running):
        taken = ", taken as better" if trial.decision.verdict == "keep" else ""
        return f"{trial.id}. {_one_line(what)}: still running{taken}\n"
    match trial.outcome:
        case Scored(metric):
            difference = _against(metric, trial.context.incumbent_metric)
            came = f"{metric.name} {metric.value:.4f}{difference}"
        case Crashed(stage, reason):
            came = f"crashed in {stage} ({reason})"
        case TimedOut(after):
            came = f"timed out after {after:.0f} s"
        case Stopped(at):
            came = f"stopped as hopeless at {at:.0%}"
        case Invalid(_, reason):
            came = f"failed the audit ({reason})"
        case Rejected(reason, detail):
            came = f"rejected ({reason}{': ' + _one_line(detail) if detail else ''})"
    line = f"{trial.id}. {_one_line(what)}: {came}, {trial.decision.verdict}\n"
    if newest and isinstance(trial.outcome, Crashed) and trial.outcome.tail:
        tail = "\n".join(trial.outcome.tail.strip().splitlines()[-TAIL_LINES:])
        line += f"```output\n{_inert(tail)[-400:]}\n```\n"
    return line


def _against(metric: Metric, incumbent: Metric | None) -> str:
    if incumbent is None:
        return ""
    return f" ({metric.value - incumbent.value:+.4f})"


def _one_line(text: str) -> str:
    return _inert(" ".join(text.split()))[:160]


def _inert(text: str) -> str:
    """Text that a model or a program wrote, unable to close a fence or a turn of a chat template.

    llama.cpp reads `<|im_end|>` inside a message as the special token that it spells.
    """
    return text.replace("```", "` ` `").replace("<|", "< |")
