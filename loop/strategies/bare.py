"""`bare`: the state and the edit format, and nothing else. Native thinking is off."""

from loop.context import State
from loop.edit import usable
from loop.strategies.asking import Asking
from loop.strategies.question import FORMAT, Question, ask_for_edit, template_hash
from loop.strategy import Draft
from loop.trial import Message


def messages(question: Question) -> tuple[Message, ...]:
    """The question, then the format."""
    return (question.system, Message("user", (*question.parts, FORMAT)))


class Bare(Asking):
    """The baseline among the arms."""

    name = "bare"
    template_hash = template_hash()

    def propose(self, state: State) -> Draft:
        question = ask_for_edit(state, self.window, self.brain.count)
        call = self.ask(messages(question), state.seed)
        answer = usable(call.replies[0])
        return Draft(answer, calls=(call,), shown=question.shown)
