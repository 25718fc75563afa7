"""`random_search`: every knob drawn anew from anywhere in its space (Bergstra & Bengio 2012)."""

from loop.context import State
from loop.strategies.tpe import draft
from loop.strategy import Draft
from loop.trial import Reason, Rejected


class RandomSearch:
    """Ignores the incumbent's values; only the file around the knobs is its own."""

    name = "random_search"
    template_hash = ""
    model = ""
    model_digest = ""

    def propose(self, state: State) -> Draft:
        rng = state.rng
        drawn = {
            name: state.target.knobs[name].sample(rng, value)
            for name, value in state.values().items()
            if f"knob:{name}" != state.target.seed
        }
        if not drawn:
            return Draft(Rejected(Reason.NOTHING_LEFT, "the target has no knobs"))
        return draft(drawn, state, "random")

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """Chance learns nothing from being told."""
