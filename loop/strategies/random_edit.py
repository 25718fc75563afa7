"""`random_edit`: one untried move of the incumbent by chance, the fair control of `menu`."""

from loop.context import State
from loop.moves import menu
from loop.strategy import Draft
from loop.trial import Reason, Rejected


class RandomEdit:
    """Uniform over the same menu that the arm `menu` is shown."""

    name = "random_edit"
    template_hash = ""
    model = ""
    model_digest = ""

    def propose(self, state: State) -> Draft:
        moves = menu(state)
        if not moves:
            return Draft(Rejected(Reason.NOTHING_LEFT, "every single-knob move has been tried"))
        return Draft(moves[0].text, moves[0].description, notes={"moves": len(moves)})

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """Chance learns nothing from being told."""
