"""How likely does a model choose a move that helps? Exactly, over the menu of surveyed states.

`menu`: each move is said in the words that an answer of the corpus has ("Try KNOB: a -> b."), and
its probability is that of the whole answer, normalised over the menu: no sampling, no server, and
the same question to every model. What a model says in words of its own it is not asked here; the
loop itself shows that. `pointwise`: each move by its nats of Yes over No; the highest is chosen, as
in the loop.

    python -m eval.choice SURVEY... [--adapter DIR] [--experience FILE] --out choice.jsonl
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from data_collection.completions import said
from eval import landscape
from eval.landscape import Landscape
from loop import flags
from loop.context import State
from loop.errors import UsageError, ending
from loop.flags import flag
from loop.moves import Move, menu
from loop.rate import above
from loop.strategies import experience, few_shot, pointwise
from loop.strategies import menu as asking
from loop.strategies.experience import Experience
from loop.strategies.replay import Replay
from loop.trial import Message

WINDOW = 4096
Scorer = Callable[[tuple[Message, ...], list[str]], list[float]]
"""(prompt, answers) -> nats of each answer after the prompt."""


@dataclass(frozen=True)
class ChoiceArgs:
    """Score the menu of surveyed states exactly."""

    surveys: tuple[Path, ...] = flag(help="folders of surveys", positional=True)
    name: str = flag("", "of the model in the output")
    base: str = flag("smollm2-135m", "model")
    adapter: str = flag("", "folder of an adapter of it")
    experience: str = flag("", "file: shown as examples; with --rule replay, followed")
    rule: str = flag("model", "who chooses", choices=("model", "replay", "chance"))
    strategy: str = flag("menu", "how a model is asked", choices=("menu", "pointwise"))
    orders: int = flag(8, "of each menu")
    out: Path = flag(Path("choice.jsonl"), "lines are added to it")


@dataclass(frozen=True)
class Choice:
    """One menu in one order. `improving`: the probability of a move that is a win; `uniform`: that
    of chance; `gain`: expected gain, in the metric's unit, moves without a score counting 0; `top`:
    is the likeliest move a win? `best`: the likeliest move. `auc`: how often a win stands above a
    move that is none (0.5 is chance; None: all are wins, or none is)."""

    name: str
    state: str
    order: int
    moves: int
    improving: float
    uniform: float
    gain: float
    top: bool
    best: str
    auc: float | None = None


def run(argv: Sequence[str]) -> int:
    args = flags.parse("choice", ChoiceArgs, argv)
    seen = experience.read(Path(args.experience)) if args.experience else ()
    if args.rule == "replay" and not seen:
        raise UsageError("--rule replay follows a file of moves: --experience FILE")
    score = model_of(args.base, args.adapter) if args.rule == "model" else None
    name = args.name or Path(args.adapter).name or args.rule
    for found in landscape.read(args.surveys):
        choices = []
        for order in range(args.orders):
            state = found.state(order)
            moves = menu(state)
            ranks, chances = _chances(args, state, moves, seen, score)
            choices.append(judged(name, found, order, moves, chances, ranks))
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(choices[-1])) + "\n")
        area = choices[0].auc
        told = "not defined" if area is None else f"{area:.3f}"
        print(
            f"{name} {found.folder.name}: improving {fmean(c.improving for c in choices):.3f} "
            f"(chance {choices[0].uniform:.3f}), gain {fmean(c.gain for c in choices):+.4f}, "
            f"auc {told}, likeliest {choices[0].best}", flush=True,
        )  # fmt: skip
    return 0


def judged(
    name: str,
    found: Landscape,
    order: int,
    moves: Sequence[Move],
    chances: Sequence[float],
    ranks: Sequence[float],
) -> Choice:
    """What choosing among `moves` with the probabilities `chances` (they sum to 1) is worth.
    `ranks`: of the moves, the higher the better."""
    gains = {(g.knob, g.new): g for g in found.gains}
    known = [gains.get((move.knob, move.new)) for move in moves]
    wins = [gain is not None and found.win(gain) for gain in known]
    top = max(range(len(moves)), key=lambda i: chances[i])
    return Choice(
        name, found.folder.name, order, len(moves),
        improving=sum(p for p, win in zip(chances, wins, strict=True) if win),
        uniform=sum(wins) / len(moves),
        gain=sum(p * g.mean for p, g in zip(chances, known, strict=True) if g),
        top=wins[top], best=moves[top].description, auc=auc(wins, ranks),
    )  # fmt: skip


def auc(wins: Sequence[bool], ranks: Sequence[float]) -> float | None:
    """The area under the ROC curve, ties counting half; None without both kinds."""
    good = [rank for rank, win in zip(ranks, wins, strict=True) if win]
    bad = [rank for rank, win in zip(ranks, wins, strict=True) if not win]
    if not good or not bad:
        return None
    return above(good, bad)


def _chances(
    args: ChoiceArgs, state: State, moves: list[Move], seen: Sequence[Experience],
    score: Scorer | None,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """(ranks, probabilities) of the moves."""
    if args.rule == "chance":
        return [0.0] * len(moves), [1 / len(moves)] * len(moves)
    if args.rule == "replay":
        rank = Replay(seen).ranks(state)
        order = sorted(set(map(rank, moves)))
        ranks = [float(order.index(rank(move))) for move in moves]
        return ranks, _highest(ranks)
    assert score is not None, "a model chooses"
    if args.strategy == "pointwise":
        ranks = [_yes(score, asked) for asked in pointwise.messages(state, moves, seen)]
        return ranks, _highest(ranks)
    ask = partial(few_shot.messages, seen) if seen else asking.messages
    prompt, _ = ask(state, moves, WINDOW, lambda text: len(text) // 2)
    nats = score(prompt, [said(move) for move in moves])
    return nats, normalised(nats)


def _yes(score: Scorer, prompt: tuple[Message, ...]) -> float:
    yes, no = score(prompt, [pointwise.YES, pointwise.NO])
    return yes - no


def _highest(ranks: Sequence[float]) -> list[float]:
    """All of the probability on the highest rank; equals share it."""
    ties = [rank == max(ranks) for rank in ranks]
    return [tie / sum(ties) for tie in ties]


def normalised(nats: Sequence[float]) -> list[float]:
    """Log-probabilities -> probabilities that sum to 1."""
    top = max(nats)
    each = [math.exp(x - top) for x in nats]
    return [x / sum(each) for x in each]


def model_of(base: str, adapter: str) -> Scorer:
    """The base, with its adapter, in torch (bf16, as it was trained). Raises UsageError."""
    from finetune import base as bases
    from finetune.build import split
    from finetune.evaluate import logprobs

    found = bases.find(base)
    tokenizer, model = bases.tokenizer(found), bases.load(found, "bf16")
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()

    def score(prompt: tuple[Message, ...], answers: list[str]) -> list[float]:
        asked = [{"role": m.role, "content": m.content} for m in prompt]
        pairs: Iterator[Any] = (
            split(tokenizer, asked, [{"role": "assistant", "content": text}], text)
            for text in answers
        )
        prompts, ids = zip(*pairs, strict=True)
        return logprobs(model, prompts[0], list(ids))

    return score


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
