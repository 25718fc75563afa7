"""`--ahead`: the next proposal is made while an experiment runs, for either of its outcomes.

It is made from a state in which the trial in flight is shown as running: set back, the likelier
case, or kept. From trial 2 on every proposal is made from such a state, in time or not, and anew
after a resume, so that a run depends neither on how fast its brain is nor on where it was cut.
What was made for the case that did not come is recorded as an event, and charged.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from loop.budget import Budget
from loop.context import Running, State
from loop.edit import Edited
from loop.errors import UsageError
from loop.strategy import Draft, Strategy
from loop.trial import Decision, Json, Outcome, Rejected, Stopped, Trial

UNUSED = "unused_proposal"
"""Name of the event."""
PENDING: tuple[Outcome, Decision] = (Stopped(0.0), Decision("discard", "", ""))
"""Outcome and decision of a trial that has none yet."""
LEARNING = ("hybrid",)
"""Arms whose proposals are computed from the outcomes, not only asked for."""
LOCAL = ("llamacpp:", "ollama:")
Made = tuple[Draft, Edited | Rejected]


def check(strategy: Strategy, gpu: str) -> None:
    """Raises UsageError where nothing can be proposed while an experiment runs."""
    if not strategy.model:
        raise UsageError(f"--ahead: {strategy.name} asks no brain, it has no time to save")
    if strategy.name in LEARNING:
        raise UsageError(f"--ahead: {strategy.name} learns from the outcome it would not wait for")
    if gpu == "swap":
        raise UsageError("--ahead: with --gpu swap no brain is loaded while an experiment runs")


def said(brain: str, budget: Budget | None) -> tuple[str, ...]:
    """What to know before a run: does the brain take seconds from the experiments?"""
    if brain.startswith(LOCAL) and budget is not None and budget.unit == "s":
        return (
            "--ahead: the brain works while experiments run, in which less is trained in "
            f"{budget}; a budget in flops is not disturbed",
        )
    return ()


def masked(state: State) -> State:
    """`state` with its last trial shown as running: taken as kept if it became the incumbent.

    What never ran was known at once, and the baseline comes before every proposal: they stay.
    """
    last = state.trials[-1]
    if last.id == 0 or isinstance(last.outcome, Rejected):
        return state
    kept = state.incumbent.id == last.id
    shown = _running(last, "keep" if kept else "discard")
    trials = (*state.trials[:-1], shown)
    return replace(state, trials=trials, incumbent=shown if kept else state.incumbent)


def noted(state: State, waited: float) -> Json:
    """For the record of a proposal made from `state`: the case that it took for granted, and the
    seconds that the loop waited for it."""
    last, note = state.trials[-1], {"waited": round(waited, 3)}
    return note | {"ahead": last.decision.verdict} if isinstance(last, Running) else note


@dataclass
class Branch:
    """One case. `broken`: it was broken off, being of no use any more."""

    state: State
    begun: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    made: Made | None = None
    error: BaseException | None = None
    broken: bool = False
    seconds: float = 0.0


class Ahead:
    """The thread, and what it makes. `abandon` breaks off the request that a brain is busy with.

    A brain that cannot do so is asked for the likelier case alone: a request for the other would
    keep the next one waiting.
    """

    def __init__(self, abandon: Callable[[], None] | None = None) -> None:
        self._abandon = abandon
        self._branches: list[Branch] = []
        self._unused: list[Json] = []
        self._thread = threading.Thread()
        self._ending = threading.Event()

    def begin(
        self, propose: Callable[[State], Made], state: State, trial: Trial, source: str, seed: int
    ) -> None:
        """Propose what follows `trial`, which turns the file of `state` into `source` and now
        runs. `seed`: of the proposal that follows."""
        after = replace(state, trials=(*state.trials, trial), seed=seed)
        kept = replace(after, source=source, incumbent=trial)
        cases = (after, kept) if self._abandon else (after,)
        self._branches = [Branch(masked(case)) for case in cases]
        self._branches[0].begun = True
        self._ending = threading.Event()
        self._thread = threading.Thread(
            target=_work, args=(propose, self._branches, self._ending), daemon=True
        )
        self._thread.start()

    def take(self, state: State) -> Made | None:
        """What was made for `state`, waited for if it is under way; None: nothing was.

        Raises what its making raised, BrainError among others.
        """
        wanted = next((b for b in self._branches if b.begun and b.state == state), None)
        if wanted:
            wanted.done.wait()
        self._end(wanted)
        if wanted and wanted.error:
            raise wanted.error
        return wanted.made if wanted else None

    def close(self) -> None:
        """End what is under way; what cannot be abandoned ends with the process."""
        self._end(None, wait=False)

    def unused(self) -> list[Json]:
        """What proposals cost that nothing came of, told once."""
        told, self._unused = self._unused, []
        return told

    def _end(self, used: Branch | None, wait: bool = True) -> None:
        """No more is begun. What cannot be abandoned is waited for, to be charged, if `wait`."""
        self._ending.set()
        while self._thread.is_alive() and (self._abandon or wait):
            if self._abandon:
                self._abandon()  # again and again: a proposal may take several requests
            self._thread.join(0.05)
        others = (branch for branch in self._branches if branch is not used and branch.begun)
        self._unused += [_facts(branch) for branch in others if branch.broken or not branch.error]
        self._branches = []


def _work(
    propose: Callable[[State], Made], branches: list[Branch], ending: threading.Event
) -> None:
    """One case after the other. An error waits for whoever needs the proposal."""
    for branch in branches:
        if ending.is_set():
            return
        branch.begun, began = True, time.monotonic()
        try:
            branch.made = propose(branch.state)
        except BaseException as error:
            branch.error, branch.broken = error, ending.is_set()
            return
        finally:
            branch.seconds = time.monotonic() - began
            branch.done.set()


def _running(trial: Trial, verdict: Literal["keep", "discard"]) -> Running:
    values = {spec.name: getattr(trial, spec.name) for spec in fields(Trial)}
    outcome, decision = PENDING
    pending = {"seconds": 0.0, "outcome": outcome, "decision": replace(decision, verdict=verdict)}
    return Running(**values | pending)


def _facts(branch: Branch) -> Json:
    """What a proposal cost that nothing came of. Tokens of one that was broken off: not known."""
    last = branch.state.trials[-1]
    case = "kept" if last.decision.verdict == "keep" else "set back"
    says = f"for trial {last.id + 1}, had {last.id} been {case}"
    facts: Json = {"trial": last.id + 1, "ahead": last.decision.verdict, "says": says}
    if branch.made is None:
        broken = {"broken_off": True, "seconds": round(branch.seconds, 3)}
        return facts | broken | {"says": f"{says}: broken off"}
    replies = [reply for call in branch.made[0].calls for reply in call.replies]
    dollars = [reply.dollars for reply in replies if reply.dollars is not None]
    return facts | {
        "replies": len(replies),
        "tokens_read": sum(reply.prompt_tokens for reply in replies),
        "tokens_cached": sum(reply.cached_tokens for reply in replies),
        "tokens_written": sum(reply.completion_tokens for reply in replies),
        "seconds": round(sum(reply.seconds for reply in replies), 3),
        "dollars": sum(dollars) if dollars else None,
    }
