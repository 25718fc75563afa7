"""`cot`: zero-shot chain of thought in two calls (Kojima et al. 2022, Large Language Models are
Zero-Shot Reasoners, arXiv 2205.11916): a reasoning call that ends with the trigger, then a call
that is given the reasoning and extracts the answer. `re2_cot` reads the question twice first."""

from loop.context import State
from loop.edit import usable
from loop.strategies import re2
from loop.strategies.asking import Asking
from loop.strategies.question import FORMAT, Question, ask_for_edit, template_hash
from loop.strategy import Draft
from loop.trial import Message, Reply

TRIGGER = "\nLet's think step by step."
EXTRACT = "Therefore, the change is:\n"


def reasoning_messages(question: Question) -> tuple[Message, ...]:
    """The first call: the question, then the trigger. No format yet."""
    return (question.system, Message("user", (*question.parts, TRIGGER)))


def extraction_messages(first: tuple[Message, ...], reasoning: Reply) -> tuple[Message, ...]:
    """The second call: the first one, what it brought, and the request for the answer alone."""
    thought = reasoning.text or reasoning.reasoning or "(nothing)"
    return (*first, Message("assistant", (thought,)), Message("user", (EXTRACT, FORMAT)))


class Cot(Asking):
    """Reasons first, then answers."""

    name = "cot"
    template_hash = template_hash(TRIGGER, EXTRACT)

    def propose(self, state: State) -> Draft:
        # Half of the window is left for the reasoning to come back in the second call.
        question = ask_for_edit(state, self.window - self.sampling.max_tokens, self.brain.count)
        return self.reason(state, question, reasoning_messages(question))

    def reason(self, state: State, question: Question, first: tuple[Message, ...]) -> Draft:
        thought = self.ask(first, state.seed, purpose="reason")
        second = extraction_messages(first, thought.replies[0])
        call = self.ask(second, state.seed, purpose="extract")
        answer = usable(call.replies[0])
        return Draft(answer, calls=(thought, call), shown=question.shown)


class Re2Cot(Cot):
    """Reads twice, reasons, then answers (RE2 on top of CoT, the same paper's section 3)."""

    name = "re2_cot"
    template_hash = template_hash(re2.AGAIN, TRIGGER, EXTRACT)

    def propose(self, state: State) -> Draft:
        window = self.window - self.sampling.max_tokens
        question = ask_for_edit(state, window, self.brain.count, repeats=2)
        return self.reason(state, question, re2.messages(question, TRIGGER))
