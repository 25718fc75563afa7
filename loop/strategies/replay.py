"""`replay`: the untried move whose knob and direction won most often elsewhere; no model at all.

The control that an adapter has to beat: if the wins of a corpus carry over by being repeated,
nothing had to be learned from the state.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

from loop.context import State
from loop.moves import Move, menu
from loop.strategies.experience import Experience, way
from loop.strategy import Draft
from loop.trial import Reason, Rejected


class Replay:
    """Most wins first, then the larger mean gain; what was never measured comes last, by chance."""

    name = "replay"
    template_hash = ""
    model = ""
    model_digest = ""

    def __init__(self, experience: Sequence[Experience]) -> None:
        self.experience = tuple(experience)

    def propose(self, state: State) -> Draft:
        moves = menu(state)
        if not moves:
            return Draft(Rejected(Reason.NOTHING_LEFT, "every single-knob move has been tried"))
        move = max(moves, key=self.ranks(state))  # the first of equals, and the menu is shuffled
        return Draft(move.text, move.description, notes={"moves": len(moves)})

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """It knows nothing else."""

    def ranks(self, state: State) -> "Ranks":
        """The order of moves in the spaces of this state's target."""
        wins: Counter[tuple[str, str]] = Counter()
        gains: dict[tuple[str, str], list[float]] = defaultdict(list)
        for seen in self.experience:
            if seen.knob in state.target.knobs:
                key = seen.knob, way(state.target.knobs[seen.knob], seen.old, seen.new)
                wins[key] += seen.win
                gains[key].append(seen.gain)
        return Ranks(state, wins, {key: fmean(values) for key, values in gains.items()})


class Ranks:
    """Move -> (wins, mean gain), the higher the better."""

    def __init__(
        self, state: State, wins: Counter[tuple[str, str]], gains: dict[tuple[str, str], float]
    ) -> None:
        self._state, self._wins, self._gains = state, wins, gains

    def __call__(self, move: Move) -> tuple[int, float]:
        key = move.knob, way(self._state.target.knobs[move.knob], move.old, move.new)
        return self._wins[key], self._gains.get(key, float("-inf"))
