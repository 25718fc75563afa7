"""`pointwise`: every open move on its own, "does it help? Yes or No"; the likeliest Yes is made.

Pointwise ranking by the log-probability of one word (monoT5: Nogueira et al. 2020, arXiv
2003.06713; Liang et al. 2022, arXiv 2211.09110). No list, so no place in it to prefer; no reason in
the model's own words, which at 135M is noise that the choice then follows. What was tried is not
shown: it is not on offer again, and with the same question from trial to trial the prompt stays
short enough for two cores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loop.brain import Brain
from loop.context import State
from loop.edit import sha256
from loop.errors import BrainError
from loop.moves import Move, menu
from loop.strategies.asking import Asking
from loop.strategies.experience import Experience
from loop.strategies.few_shot import best, few
from loop.strategies.menu import SETTINGS, settings
from loop.strategies.question import goal
from loop.strategies.sampling import Sampling
from loop.strategy import Draft
from loop.trial import Call, Message, Reason, Rejected, Reply

INSTRUCTIONS = """\
You judge changes to the settings of a training script, one at a time. {goal}
Answer with one word: Yes or No.
"""
EXAMPLES = "Changes to other versions of this script:\n{examples}\n"
QUESTION = "\nChange: {change}\nDoes it improve {metric}?"
YES, NO = "Yes", "No"
LIKELIEST = 20
"""First tokens to be told: the most that OpenAI's API and Ollama tell."""


def messages(
    state: State, moves: Sequence[Move], experience: Sequence[Experience] = ()
) -> list[tuple[Message, ...]]:
    """The question about each of `moves`; what comes before it is the same for all of them."""
    lines = "\n".join(f"- {said(e)} {YES if e.win else NO}" for e in examples(experience, state))
    shown = EXAMPLES.format(examples=lines) if lines else ""
    system, now = Message("system", (INSTRUCTIONS.format(goal=goal(state)),)), settings(state)
    asked = (QUESTION.format(change=said(move), metric=state.target.metric) for move in moves)
    return [(system, Message("user", (shown, now, question))) for question in asked]


def said(move: Move | Experience) -> str:
    """A move in words, with its direction where it has one: a table of wins counts it, too."""
    old, new = move.old, move.new
    if isinstance(old, int | float) and isinstance(new, int | float):
        return f"{'raise' if new > old else 'lower'} {move.knob} from {old!r} to {new!r}."
    return f"set {move.knob} from {old!r} to {new!r}."


def examples(experience: Sequence[Experience], state: State) -> list[Experience]:
    """The largest gains that were wins and the largest losses, taking turns."""
    losses = sorted((e for e in experience if not e.win), key=lambda e: e.gain)
    both = zip(best(experience, state), few(losses, state), strict=False)
    return [e for pair in both for e in pair]


def score(logprobs: Mapping[str, float]) -> float:
    """Nats of YES over NO, in any case and spacing; a word that is not among the likeliest counts
    as the least of them. 0 where neither is."""
    if not logprobs:
        return 0.0
    least = min(logprobs.values())

    def total(word: str) -> float:
        found = [nats for text, nats in logprobs.items() if text.strip().lower() == word.lower()]
        return math.log(sum(map(math.exp, found))) if found else least

    return total(YES) - total(NO)


class Pointwise(Asking):
    """As many requests as there are moves, which differ in their last line."""

    name = "pointwise"
    template_hash = sha256(INSTRUCTIONS + SETTINGS + QUESTION)

    def __init__(
        self, brain: Brain, sampling: Sampling, experience: Sequence[Experience] = ()
    ) -> None:
        super().__init__(brain, sampling)
        self.experience = tuple(experience)
        self._known: dict[tuple[Message, ...], Reply] = {}

    def propose(self, state: State) -> Draft:
        moves = menu(state)
        if not moves:
            return Draft(Rejected(Reason.NOTHING_LEFT, "every single-knob move has been tried"))
        questions = messages(state, moves, self.experience)
        calls = tuple(self._judge(state, asked) for asked in questions)
        self._known = {call.messages: _again(call.replies[0]) for call in calls}
        scores = [score(call.replies[0].logprobs) for call in calls]
        top = max(range(len(moves)), key=scores.__getitem__)
        notes = {"moves": len(moves), "score": round(scores[top], 4)}
        return Draft(moves[top].text, moves[top].description, calls, notes=notes)

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """The move is its own: there is nothing to say otherwise."""

    def _judge(self, state: State, asked: tuple[Message, ...]) -> Call:
        """The answer to a question; that of the last trial, if it was asked then: as long as an
        incumbent stands, so do its questions, and nothing is drawn by chance."""
        if known := self._known.get(asked):
            return Call(asked, (known,), 0.0, 1, state.seed, purpose="judge")
        replies = self.brain.chat(asked, max_tokens=1, seed=state.seed, logprobs=LIKELIEST)
        if not replies[0].logprobs:
            raise BrainError(
                f"{self.brain.name} tells no log-probabilities, by which {self.name} chooses: take "
                "--strategy menu"
            )
        return Call(asked, replies, 0.0, 1, state.seed, purpose="judge")


def _again(reply: Reply) -> Reply:
    """A reply that is used once more, for nothing."""
    return replace(
        reply,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        seconds=0.0,
        dollars=None if reply.dollars is None else 0.0,
    )


class PointwiseFewShot(Pointwise):
    """The same experience that an adapter is trained on, in the prompt (Brown et al. 2020)."""

    name = "pointwise_few_shot"
    template_hash = sha256(INSTRUCTIONS + EXAMPLES + SETTINGS + QUESTION)
