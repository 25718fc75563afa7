"""The menu of a state: every single-knob move that has not been tried yet, shuffled.

Shared by the arm that chooses with a brain and the control that chooses by chance, so that the two
differ in nothing else. A prompt lists what was open as the incumbent was kept, in an order that
stays as long as it stands: an engine then reads the list once for each incumbent.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from loop import knobs
from loop.context import State
from loop.edit import code_hash

ORDER = "order"
"""Among the notes of a proposal: the seed that its list was shuffled by."""


@dataclass(frozen=True)
class Move:
    """One knob of the incumbent, one step away. `text` is the edit itself: `KNOB = value`."""

    knob: str
    old: knobs.Value
    new: knobs.Value

    @property
    def text(self) -> str:
        return f"{self.knob} = {self.new!r}"

    @property
    def description(self) -> str:
        return f"{self.knob}: {self.old!r} -> {self.new!r}"


@lru_cache(maxsize=1024)
def _hash(source: str, knob: str, literal: str) -> object:
    """Of the file that a move leads to; kept, since a menu is made anew for each proposal while
    the incumbent stays, and a syntax tree costs 8 ms."""
    return code_hash(knobs.write(source, {knob: literal}))


def menu(state: State) -> list[Move]:
    """The moves open in `state`, in an order drawn from its seed.

    Shuffled because small models prefer what stands first. What leads to code already proposed in
    this run is left out.
    """
    tried = state.tried()
    seed_knob = state.target.seed.removeprefix("knob:")
    moves = [
        move
        for name, value in state.values().items()
        if name != seed_knob
        for new in state.target.knobs[name].moves(value)
        if _hash(state.source, name, repr(new)) not in tried
        for move in [Move(name, value, new)]
    ]
    state.rng.shuffle(moves)
    return moves


def listed(state: State) -> list[Move]:
    """The moves that were open when the incumbent was kept, so the tried ones of `menu` too."""
    before = tuple(trial for trial in state.trials if trial.id <= state.incumbent.id)
    return menu(replace(state, trials=before, seed=order(state)))


def order(state: State) -> int:
    """The seed of the first list that was shown of this incumbent; it then is in the notes of that
    proposal, so that all later ones, of a resumed run as well, find it in the ledger."""
    for trial in state.trials:
        if trial.context.incumbent == state.incumbent.id and ORDER in trial.proposal.notes:
            return int(trial.proposal.notes[ORDER])
    return state.seed
