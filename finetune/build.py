"""Rows -> examples that trl takes as they are: nothing cut, nothing without an answer.

trl's own default cuts at 1,024 tokens from the end, which is where the answer is. Here a row that
is too long is left out and counted, and trl is told to cut nothing. The prompt is the base's chat
template over the loop's messages, without thinking, as in serving; its tokens must be the beginning
of the tokens of prompt and answer together, else training and serving would differ.
"""

from dataclasses import dataclass
from typing import Any

from finetune.rows import ANSWERS, Json
from loop.errors import AutoresearchError

TEMPLATE = {"enable_thinking": False}
"""Arguments of the chat template, the same in training and in serving."""


@dataclass(frozen=True)
class Examples:
    """`kept`: rows with prompt and answers as messages, plus what their method needs.

    `longest`, `tokens`: of prompt and answer, in tokens. `supervised`: tokens of the answers.
    `left_out`: keys of rows longer than the recipe allows.
    """

    kept: list[Json]
    longest: int
    tokens: int
    supervised: int
    left_out: list[str]


def build(found: list[Json], method: str, tokenizer: Any, max_length: int) -> Examples:
    """Rows -> Examples of at most `max_length` tokens each.

    Raises AutoresearchError: a row has no supervised token (it is named), the template does not
    continue its own prompt, or all rows are too long.
    """
    kept: list[Json] = []
    left_out: list[str] = []
    longest = tokens = supervised = 0
    for row in found:
        pairs = [split(tokenizer, row["prompt"], row[name], row["key"]) for name in ANSWERS[method]]
        most = max(len(prompt) + len(answer) for prompt, answer in pairs)
        if most > max_length:
            left_out.append(row["key"])
            continue
        kept.append(_example(row, method))
        longest = max(longest, most)
        tokens += sum(len(prompt) + len(answer) for prompt, answer in pairs)
        supervised += sum(len(answer) for _, answer in pairs)
    if not kept:
        raise AutoresearchError(
            f"each of {len(found)} rows is longer than {max_length:,} tokens: raise --max-length, "
            "or render them with a smaller --window"
        )
    return Examples(kept, longest, tokens, supervised, left_out)


def split(
    tokenizer: Any, prompt: list[Json], answer: list[Json], key: str
) -> tuple[list[int], list[int]]:
    """Messages -> (tokens of the prompt, tokens of the answer with what ends it)."""
    asked: list[int] = _ids(tokenizer, prompt, add_generation_prompt=True)
    whole: list[int] = _ids(tokenizer, prompt + answer)
    if whole[: len(asked)] != asked:
        raise AutoresearchError(
            f"row {key}: the chat template renders the prompt otherwise once it is answered, so "
            "training would differ from serving; take another base"
        )
    if not any(message["content"].strip() for message in answer) or len(whole) == len(asked):
        raise AutoresearchError(
            f"row {key} has no supervised token: its answer is empty; remove it from the corpus, "
            "or render the rows anew"
        )
    return asked, whole[len(asked) :]


def check_template(tokenizer: Any, name: str) -> None:
    """Raises AutoresearchError: the base `name` was never taught to chat."""
    if not tokenizer.chat_template:
        raise AutoresearchError(f"{name} has no chat template: take its instruct version")


def _ids(tokenizer: Any, messages: list[Json], **options: bool) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, **TEMPLATE, **options
        )
    )


def _example(row: Json, method: str) -> Json:
    names = ["prompt", *ANSWERS[method], *(["label"] if method == "kto" else [])]
    return {name: row[name] for name in names} | {"chat_template_kwargs": TEMPLATE}
