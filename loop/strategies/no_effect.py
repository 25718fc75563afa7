"""`no_effect`: edits that change the file and not the program, so whatever is kept is noise.

The A/A test of a judge. On a target that repeats itself exactly for a seed it needs
`--fresh-seeds`: otherwise every trial has the very score of the baseline.
"""

from loop.context import State
from loop.strategy import Draft
from loop.trial import Reason, Rejected


class NoEffect:
    """Appends a name that nothing reads, another one in each trial."""

    name = "no_effect"
    template_hash = ""
    model = ""
    model_digest = ""

    def propose(self, state: State) -> Draft:
        end = unique_end(state.source)
        if not end:
            return Draft(Rejected(Reason.NO_EDIT, "no end of the file is unique in it"))
        number = state.trials[-1].id + 1
        new = f"_unused_{number} = {number}\n"
        answer = f"<<<<<<< SEARCH\n{end}=======\n{end}{new}>>>>>>> REPLACE\n"
        return Draft(answer, f"no effect: {new.strip()}")

    def repair(self, state: State, draft: Draft, rejected: Rejected) -> None:
        """The next trial has another name."""


def unique_end(source: str) -> str:
    """The fewest last lines of `source` that occur once in it; "" if there are none."""
    lines = source.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    for count in range(1, len(lines) + 1):
        end = "".join(lines[-count:])
        if end.strip() and source.count(end.rstrip("\n")) == 1:
            return end
    return ""
