"""`tpe`: a tree-structured Parzen estimator proposes whole configurations, no brain."""

from loop import optimiser
from loop.context import State
from loop.strategy import Draft
from loop.trial import Reason, Rejected


class Tpe:
    """What the literature uses where no language model is at hand."""

    name = "tpe"
    template_hash = ""
    model = ""
    model_digest = ""

    def propose(self, state: State) -> Draft:
        drawn = optimiser.propose(state)
        if not drawn:
            return Draft(Rejected(Reason.NOTHING_LEFT, "the target has no knobs"))
        return draft(drawn, state, "tpe")

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """A configuration that was seen before stays rejected."""


def draft(drawn: optimiser.Values, state: State, who: str) -> Draft:
    """A whole configuration as `KNOB = value` lines, described by what differs from now."""
    now = state.values()
    moved = [f"{name}={value!r}" for name, value in drawn.items() if value != now[name]]
    answer = "\n".join(f"{name} = {value!r}" for name, value in drawn.items())
    return Draft(answer, f"{who}: {', '.join(moved) or 'nothing new'}", notes={"by": who})
