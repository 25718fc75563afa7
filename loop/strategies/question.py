"""The question that every free-edit arm asks; the arms differ only in how they ask it.

Stable parts come first, so that consecutive prompts share a prefix: system, file, trials, ask.
"""

from collections.abc import Callable
from dataclasses import dataclass

from loop.context import Shown, State, history
from loop.edit import sha256
from loop.errors import ContextOverflow
from loop.trial import Message

SYSTEM = "You improve a program by one experiment at a time. {goal}\n\n{program}\n"
FILE = "This is {name}, the best version so far:\n```python\n{source}\n```\n"
HISTORY = "\nTrials so far (id. change: result, decision):\n{history}"
ASK = "\nPropose one new change to {name} that is likely to improve {metric}.\n"
FORMAT = """
Answer with the change in one of these forms, and nothing else:

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
TEMPLATE = SYSTEM + FILE + HISTORY + ASK + FORMAT
OVERHEAD = 64  # tokens that a chat template adds around a few messages, generously


@dataclass(frozen=True)
class Question:
    """`parts`: of the user's message, without the format. `shown`: what of the state is in it."""

    system: Message
    parts: tuple[str, ...]
    shown: Shown


def ask_for_edit(
    state: State, window: int, count: Callable[[str], int], repeats: int = 1
) -> Question:
    """The question in this state, its history fitted to `window` tokens by `count`.

    `repeats`: how often the whole question will stand in the prompt. Raises ContextOverflow when
    not even the file fits.
    """
    target = state.target
    system = SYSTEM.format(goal=goal(state), program=target.instructions.strip())
    file = FILE.format(name=target.editable, source=state.source.rstrip())
    ask = ASK.format(name=target.editable, metric=target.metric)
    fixed = count(system) + count(FORMAT) + repeats * (count(file) + count(HISTORY) + count(ask))
    room = (window - fixed - OVERHEAD) // repeats
    if room < 0:
        raise ContextOverflow(
            f"{target.editable} takes {count(file):,} tokens{' twice' if repeats > 1 else ''} and "
            f"does not fit a window of {window:,}; use --strategy menu or a longer window"
        )
    text, shown = history(state.trials, room, count)
    tried = HISTORY.format(history=text) if text else ""
    return Question(Message("system", (system,)), (file, tried, ask), shown)


def goal(state: State) -> str:
    """Which way is up, in a sentence."""
    way = "Lower" if state.target.direction == "min" else "Higher"
    return f"{way} {state.target.metric} is better."


def template_hash(*texts: str) -> str:
    """Of the question's template and of what an arm adds to it."""
    return sha256("\n".join((TEMPLATE, *texts)))
