"""`re2`: the question is read twice (Xu et al. 2023, Re-Reading Improves Reasoning in LLMs,
arXiv 2309.06275). The format line stands once, after."""

from loop.context import State
from loop.edit import usable
from loop.strategies.asking import Asking
from loop.strategies.question import FORMAT, Question, ask_for_edit, template_hash
from loop.strategy import Draft
from loop.trial import Message

AGAIN = "\nRead the question again:\n"


def messages(question: Question, ending: str = FORMAT) -> tuple[Message, ...]:
    """The whole question, the trigger, the whole question, then `ending`."""
    return (question.system, Message("user", (*question.parts, AGAIN, *question.parts, ending)))


class Re2(Asking):
    """Reads twice, answers directly."""

    name = "re2"
    template_hash = template_hash(AGAIN)

    def propose(self, state: State) -> Draft:
        question = ask_for_edit(state, self.window, self.brain.count, repeats=2)
        call = self.ask(messages(question), state.seed)
        answer = usable(call.replies[0])
        return Draft(answer, calls=(call,), shown=question.shown)
