"""An adapter on rows it has not learned from: by what matters, and by loss.

- `loss`: nats a token of the answers (of wins only where rows say which those are).
- sft and kto: `win_logprob` and `other_logprob`, nats a token of confirmed wins and of the rest,
  and `agreement`: how often a win gets a higher log-probability a token than one of the rest (the
  area under the ROC curve; 0.5 is chance; for pointwise by the nats of Yes over No). dpo: how
  often the chosen answer beats the rejected one.
- `choice`: of a menu, the probability of the move in the row among all moves on offer, each said in
  the same words, with a 95 % interval of its mean; `choice_uniform` is what chance would give it.
- `valid`: share of greedy replies that the loop could use, with Wilson's 95 % interval.
Every figure stands with its n; what rows do not carry is absent.
"""

import math
from statistics import fmean, stdev
from typing import Any

from finetune import answers
from finetune.build import TEMPLATE, split
from finetune.rows import ANSWERS, Json
from loop.errors import AutoresearchError
from loop.rate import above, wilson

SURE = 0.9
"""P(real) from which a row counts as a confirmed win (docs/corpus.md)."""
REPLY_TOKENS = 96
Metrics = dict[str, Any]


def evaluate(
    model: Any, tokenizer: Any, found: list[Json], method: str, strategy: str, max_length: int,
    replies: int,
) -> Metrics:  # fmt: skip
    """Figures of `model` on the rows `found`; `replies`: how many of them it answers itself.

    Rows longer than `max_length` tokens are left out, as in training. Raises AutoresearchError:
    none is left.
    """
    was_training = model.training
    model.eval()
    try:
        usable = [row for row in found if _fits(tokenizer, row, method, max_length)]
        if not usable:
            raise AutoresearchError(
                f"each held-out row is longer than {max_length:,} tokens: raise --max-length"
            )
        scores = [_scores(model, tokenizer, row, method) for row in usable]
        metrics: Metrics = {"rows": len(usable)}
        if strategy == "pointwise":
            metrics |= _verdicts(model, tokenizer, usable, scores)
        else:
            metrics |= _pairs(scores) if method == "dpo" else _classes(usable, scores, method)
        if strategy == "menu" and method != "dpo":
            metrics |= _choices(model, tokenizer, _wins(usable, method))
        if replies:
            asked = usable[:replies]
            good = sum(
                answers.valid(strategy, row["prompt"], reply(model, tokenizer, row["prompt"]))
                for row in asked
            )
            low, high = wilson(good, len(asked))
            metrics |= {"valid": good / len(asked), "valid_n": len(asked),
                        "valid_low": low, "valid_high": high}  # fmt: skip
        return metrics
    finally:
        model.train(was_training)


def logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Nats of `answer` after `prompt`, both token ids; the sum over its tokens."""
    return logprobs(model, prompt, [answer])[0]


def logprobs(model: Any, prompt: list[int], options: list[list[int]]) -> list[float]:
    """Nats of each of `options` after `prompt`, which is read once."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        read = model(
            input_ids=torch.tensor([prompt], device=device), use_cache=True, logits_to_keep=1
        )
        first = torch.log_softmax(read.logits[0, -1].float(), -1)
        found = []
        for ids in options:
            tokens = torch.tensor([ids], device=device)
            total = first[ids[0]].item()
            if len(ids) > 1:
                rest = model(input_ids=tokens[:, :-1], past_key_values=read.past_key_values,
                             use_cache=True)  # fmt: skip
                steps = torch.log_softmax(rest.logits[0].float(), -1)
                total += steps.gather(-1, tokens[0, 1:, None]).sum().item()
                read.past_key_values.crop(1 - len(ids))  # back to the prompt
            found.append(total)
    return found


def reply(model: Any, tokenizer: Any, prompt: list[Json]) -> str:
    """The greedy answer to `prompt`, up to the end of its turn."""
    import torch

    device = next(model.parameters()).device
    asked = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt", **TEMPLATE
    ).to(device)
    with torch.inference_mode():
        out = model.generate(**asked, max_new_tokens=REPLY_TOKENS, do_sample=False, use_cache=True,
                             pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    return str(tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def _fits(tokenizer: Any, row: Json, method: str, max_length: int) -> bool:
    sizes = [split(tokenizer, row["prompt"], row[name], row["key"]) for name in ANSWERS[method]]
    return max(len(prompt) + len(answer) for prompt, answer in sizes) <= max_length


def _scores(model: Any, tokenizer: Any, row: Json, method: str) -> list[tuple[float, int]]:
    """(nats, tokens) of each answer of a row."""
    pairs = [split(tokenizer, row["prompt"], row[name], row["key"]) for name in ANSWERS[method]]
    return [(logprob(model, prompt, answer), len(answer)) for prompt, answer in pairs]


def _is_win(row: Json, method: str) -> bool:
    if method == "kto":
        return bool(row["label"])
    return row["p_real"] is not None and row["p_real"] >= SURE


def _wins(usable: list[Json], method: str) -> list[Json]:
    return [row for row in usable if _is_win(row, method)]


def _classes(usable: list[Json], scores: list[list[tuple[float, int]]], method: str) -> Metrics:
    """Confirmed wins against the rest."""
    a_token = [score[0][0] / score[0][1] for score in scores]
    won = [_is_win(row, method) for row in usable]
    wins = [x for x, is_win in zip(a_token, won, strict=True) if is_win]
    others = [x for x, is_win in zip(a_token, won, strict=True) if not is_win]
    learned = [s[0] for s, is_win in zip(scores, won, strict=True) if is_win or method == "sft"]
    metrics: Metrics = {"wins": len(wins), "others": len(others)}
    if learned:
        metrics["loss"] = -sum(nats for nats, _ in learned) / sum(n for _, n in learned)
    if wins:
        metrics["win_logprob"] = fmean(wins)
    if others:
        metrics["other_logprob"] = fmean(others)
    if wins and others:
        metrics["agreement"] = above(wins, others)
    return metrics


def _verdicts(
    model: Any, tokenizer: Any, usable: list[Json], scores: list[list[tuple[float, int]]]
) -> Metrics:
    """Moves that help against those that do not, by the nats of Yes over No."""
    yes, no = answers.VERDICTS
    helps: dict[bool, list[float]] = {True: [], False: []}
    for row in usable:
        pairs = [split(tokenizer, row["prompt"], [{"role": "assistant", "content": text}],
                       row["key"]) for text in (yes, no)]  # fmt: skip
        nats = logprobs(model, pairs[0][0], [answer for _, answer in pairs])
        helps[row["completion"][0]["content"] == yes].append(nats[0] - nats[1])
    metrics: Metrics = {
        "wins": len(helps[True]), "others": len(helps[False]),
        "loss": -sum(s[0][0] for s in scores) / sum(s[0][1] for s in scores),
    }  # fmt: skip
    if helps[True] and helps[False]:
        metrics["agreement"] = above(helps[True], helps[False])
    return metrics


def _pairs(scores: list[list[tuple[float, int]]]) -> Metrics:
    """Chosen against rejected, by the log-probability of the whole answer (as DPO has it)."""
    n = len(scores)
    good = sum(chosen[0] > rejected[0] for chosen, rejected in scores)
    low, high = wilson(good, n)
    return {
        "loss": -sum(c[0] for c, _ in scores) / sum(c[1] for c, _ in scores),
        "margin": fmean(c[0] - r[0] for c, r in scores),
        "agreement": good / n, "agreement_low": low, "agreement_high": high,
    }  # fmt: skip


def _choices(model: Any, tokenizer: Any, wins: list[Json]) -> Metrics:
    """The probability of a confirmed win's move among the moves on offer."""
    chances: list[float] = []
    uniform: list[float] = []
    for row in wins:
        options = answers.candidates(row["prompt"], row["completion"][0]["content"])
        if options is None or len(options) < 2:
            continue
        pairs = [split(tokenizer, row["prompt"], [{"role": "assistant", "content": text}],
                       row["key"]) for text in options]  # fmt: skip
        nats = logprobs(model, pairs[0][0], [answer for _, answer in pairs])
        top = max(nats)
        chances.append(math.exp(nats[0] - top) / sum(math.exp(x - top) for x in nats))
        uniform.append(1 / len(options))
    if not chances:
        return {}
    half = 1.96 * stdev(chances) / math.sqrt(len(chances)) if len(chances) > 1 else math.inf
    middle = fmean(chances)
    return {
        "choice": middle, "choice_low": max(0.0, middle - half),
        "choice_high": min(1.0, middle + half), "choice_n": len(chances),
        "choice_uniform": fmean(uniform),
    }  # fmt: skip
