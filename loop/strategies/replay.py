"""`replay`: the untried move whose knob and direction won most often elsewhere; no model at all.

The control that an adapter has to beat: if the wins of a corpus carry over by being repeated,
nothing had to be learned from the state.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
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

    def ranks(self, state: State) -> Callable[[Move], tuple[int, float]]:
        """Move -> (wins, mean gain) in the spaces of this state's target; the higher the better."""
        space = state.target.knobs
        gains: dict[tuple[str, str], list[float]] = defaultdict(list)
        wins: Counter[tuple[str, str]] = Counter()
        for seen in self.experience:
            if seen.knob in space:
                key = seen.knob, way(space[seen.knob], seen.old, seen.new)
                wins[key] += seen.win
                gains[key].append(seen.gain)
        means = {key: fmean(values) for key, values in gains.items()}

        def rank(move: Move) -> tuple[int, float]:
            key = move.knob, way(space[move.knob], move.old, move.new)
            return wins[key], means.get(key, float("-inf"))

        return rank
