"""`self_consistency`: sample several chains of thought, marginalise the reasoning, vote on the edit
(Wang et al. 2022, Self-Consistency Improves Chain of Thought Reasoning, arXiv 2203.11171).

Fixed beforehand: the samples are drawn in one request at T = 0.7 and share its prefix; a sample
without a usable edit abstains; two edits agree when they move the same knobs in the same direction
into the same bucket (a factor of two wide), other edits when their syntax trees are equal; a tie
goes to the answer that was sampled first; a bucket takes the value that was sampled first.
"""

import math
from collections import Counter
from dataclasses import replace

from loop import edit, knobs
from loop.brain import Brain
from loop.context import State
from loop.strategies.asking import Asking
from loop.strategies.cot import EXTRACT, TRIGGER, extraction_messages, reasoning_messages
from loop.strategies.question import ask_for_edit, template_hash
from loop.strategies.sampling import Sampling
from loop.strategy import Draft
from loop.trial import KnobChange, Rejected

TEMPERATURE = 0.7  # of the paper's main results


class SelfConsistency(Asking):
    """A vote over `sampling.samples` chains of thought."""

    name = "self_consistency"
    template_hash = template_hash(TRIGGER, EXTRACT, __doc__)

    def __init__(self, brain: Brain, sampling: Sampling) -> None:
        super().__init__(brain, replace(sampling, temperature=TEMPERATURE))

    def propose(self, state: State) -> Draft:
        question = ask_for_edit(state, self.window - self.sampling.max_tokens, self.brain.count)
        first = reasoning_messages(question)
        thoughts = self.ask(first, state.seed, n=self.sampling.samples, purpose="reason")
        calls = [thoughts]
        answers: list[str | Rejected] = []
        for at, thought in enumerate(thoughts.replies):
            call = self.ask(extraction_messages(first, thought), state.seed + at, purpose="extract")
            calls.append(call)
            answers.append(edit.usable(call.replies[0]))
        votes = [ballot(answer, state) for answer in answers]
        winner = elect(votes)
        agreeing = sum(vote == votes[winner] for vote in votes if vote is not None)
        notes = {
            "votes": votes,
            "agreement": agreeing / len(votes),
            "voted": agreeing > 1,
        }
        return Draft(answers[winner], calls=tuple(calls), shown=question.shown, notes=notes)

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """A vote stands: no sample of it is asked again."""


def ballot(answer: str | Rejected, state: State) -> str | None:
    """What an answer votes for, in canonical form; None when it is not usable and abstains."""
    if isinstance(answer, Rejected):
        return None
    target = state.target
    edited = edit.apply(answer, state.source, target.editable, target.fixed)
    if isinstance(edited, Rejected):
        return None
    if edited.edit.knobs:
        return "; ".join(sorted(_bucket(change) for change in edited.edit.knobs))
    return edited.edit.code_hash


def elect(votes: list[str | None]) -> int:
    """Index of the first sample of the answer with most votes; 0 when all abstain."""
    counted = Counter(vote for vote in votes if vote is not None)
    if not counted:
        return 0
    most = max(counted.values())
    return next(at for at, vote in enumerate(votes) if vote is not None and counted[vote] == most)


def _bucket(change: KnobChange) -> str:
    """`KNOB up x2`: direction and size of a move; the new value itself where it is no number."""
    old, new = knobs.literal(change.old), knobs.literal(change.new)
    if isinstance(old, bool | str | tuple) or isinstance(new, bool | str | tuple):
        return f"{change.knob} = {change.new}"
    direction = "up" if new > old else "down"
    if old > 0 and new > 0:
        return f"{change.knob} {direction} x{2 ** max(0, math.floor(abs(math.log2(new / old))))}"
    return f"{change.knob} {direction}"
