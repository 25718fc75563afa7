"""`few_shot`: the menu, with moves that helped elsewhere as examples (Brown et al. 2020).

The same experience that an adapter is trained on, in the prompt instead of in the weights.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from loop.brain import Brain
from loop.context import Shown, State
from loop.edit import sha256
from loop.moves import Move
from loop.strategies import menu
from loop.strategies.experience import Experience, way
from loop.strategies.sampling import Sampling
from loop.trial import Message

EXAMPLES = "Changes that helped other versions of this script:\n{examples}\n"
Asked = tuple[tuple[Message, ...], Shown]
SHOWN, EACH = 12, 2
"""Examples in the prompt, and how many of them may move one knob in one direction."""


class FewShot(menu.Menu):
    """Its prompt is the menu's, with the examples before the settings: they never change."""

    name = "few_shot"
    template_hash = sha256(EXAMPLES + menu.TEMPLATE)

    def __init__(
        self, brain: Brain, sampling: Sampling, experience: Sequence[Experience] = ()
    ) -> None:
        super().__init__(brain, sampling)
        self.experience = tuple(experience)

    def messages(
        self, state: State, moves: list[Move], window: int, count: Callable[[str], int]
    ) -> Asked:
        """The menu's, and the examples before the settings."""
        return messages(self.experience, state, moves, window, count)


def messages(
    experience: Sequence[Experience], state: State, moves: list[Move], window: int,
    count: Callable[[str], int],
) -> Asked:  # fmt: skip
    """As `menu.messages`, with the best of `experience` as examples before the settings."""
    text = EXAMPLES.format(examples="\n".join(map(said, best(experience, state))))
    (system, user), shown = menu.messages(state, moves, window - count(text), count)
    return (system, Message("user", (text, *user.parts))), shown


def best(experience: Sequence[Experience], state: State) -> list[Experience]:
    """The largest gains that were wins."""
    wins = (seen for seen in experience if seen.win)
    return few(sorted(wins, key=lambda seen: -seen.gain), state)


def few(ranked: Sequence[Experience], state: State) -> list[Experience]:
    """The first SHOWN of `ranked` whose knob the target has, at most EACH of a knob and
    direction."""
    picked: list[Experience] = []
    met: Counter[tuple[str, str]] = Counter()
    for seen in ranked:
        if seen.knob not in state.target.knobs:
            continue
        key = seen.knob, way(state.target.knobs[seen.knob], seen.old, seen.new)
        if met[key] < EACH and len(picked) < SHOWN:
            met[key] += 1
            picked.append(seen)
    return picked


def said(seen: Experience) -> str:
    """One example in a line."""
    return f"- {seen.knob}: {seen.old!r} -> {seen.new!r} (better by {seen.gain:.2f})"
