"""What is trained is what is served: the tokenizer that comes out of a GGUF."""

import pytest

from finetune import base
from loop.brains import connect
from loop.brains.llamacpp import LlamaCpp

pytestmark = pytest.mark.slow

TEXTS = ("\n\n1. LR: 0.05 -> 0.1", "WIDTH =  64", "TOTAL_BATCH_SIZE = 2**16", "a\t12\n\n3,456 x")


def test_digits_are_tokens_of_their_own_in_training_as_in_serving() -> None:
    brain = connect("llamacpp:smollm2-135m", threads=1)
    assert isinstance(brain, LlamaCpp)
    tokenizer = base.tokenizer(base.find("smollm2-135m"))
    assert tokenizer.encode("\n\n1", add_special_tokens=False) == [1116, 33]
    for text in TEXTS:
        served = brain.count(text)
        assert len(tokenizer.encode(text, add_special_tokens=False)) == served, text
