"""`bare`: the state and the edit format, and nothing else. Native thinking is off."""

from loop.brain import Brain
from loop.context import State
from loop.edit import sha256, usable
from loop.errors import ContextOverflow
from loop.strategies.sampling import Sampling
from loop.strategy import Draft
from loop.trial import Message, Rejected

INSTRUCTIONS = """\
You improve a program by one experiment at a time. {goal}

{program}

Answer with one change to {name}, in one of these forms:

1. A knob, on a line of its own:
KNOB = value

2. A passage, copied exactly from the file, and what replaces it:
<<<<<<< SEARCH
old lines
=======
new lines
>>>>>>> REPLACE

3. The whole new file in one ```python block.
"""
FILE = "This is {name}, the best version so far:\n```python\n{source}\n```\n"
HISTORY = "\nTrials so far (id. change: result, decision):\n{history}"
ASK = "\nPropose one new change that is likely to improve {metric}. Answer in one of the forms."


class Bare:
    """The baseline among the arms."""

    name = "bare"
    template_hash = sha256(INSTRUCTIONS + FILE + HISTORY + ASK)

    def __init__(self, brain: Brain, sampling: Sampling) -> None:
        self._brain, self._sampling = brain, sampling
        self.model, self.model_digest = brain.name, brain.digest

    def propose(self, state: State) -> Draft:
        """Raises ContextOverflow when not even the file fits the window."""
        target, metric = state.target, state.target.metric
        goal = f"{'Lower' if target.direction == 'min' else 'Higher'} {metric} is better."
        system = INSTRUCTIONS.format(
            goal=goal, program=target.instructions.strip(), name=target.editable
        )
        file = FILE.format(name=target.editable, source=state.source.rstrip())
        ask = ASK.format(metric=metric)
        if self._sampling.room(self._brain, system, file, ask) < 0:
            raise ContextOverflow(
                f"{target.editable} takes {self._brain.count(file):,} tokens and does not fit the "
                f"{self._brain.window:,} of {self.model}; use --strategy menu or a longer window"
            )
        tried, shown = self._sampling.history(self._brain, state, HISTORY, system, file, ask)
        messages = (Message("system", (system,)), Message("user", (file, tried, ask)))
        call = self._sampling.ask(self._brain, messages, state.seed)
        answer = usable(call.replies[0])
        description = "" if isinstance(answer, Rejected) else answer.strip().splitlines()[0]
        return Draft(answer, description, (call,), shown)
