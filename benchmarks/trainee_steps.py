"""Training steps of the built-in trainee, in one of the ways in which torch could be faster.

Run in the trainer's folder, by `benchmarks.trainee`: trainee_steps.py WORDS, of
    fused      Adam by torch's fused kernel
    bf16       matrix products in bfloat16 (autocast)
    compiled   by torch.compile
    threads    on all cores
    memory     one batch, in memory, whose FLOPs nobody counts
    plain      another model: benchmarks/nanogpt.py
joined by commas; none of them is the trainee as it is, `run.py` included. Prints a line when it is
warm, {"tokens": of a round, "warm": processor seconds until then}; then, for each line that it
reads, a round of steps and its [seconds, processor seconds].
"""

# mypy: allow-untyped-calls

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from benchmarks import nanogpt
from benchmarks.measure import cost
from run import Run

STEPS = 10
WORDS = {"fused", "bf16", "compiled", "threads", "memory", "plain"}


class FusedAdam(train.Optimizer):
    """The trainee's optimiser, its Adam part by torch's fused kernel."""

    def __init__(self, model: train.GPT) -> None:
        super().__init__(model)
        groups = [{"params": [p], "lr": lr, "rate": lr} for p, lr, _, _ in self.adam]
        self.fused = torch.optim.Adam(groups, betas=(train.ADAM_BETA1, train.ADAM_BETA2),
                                      eps=1e-10, fused=True)  # fmt: skip
        self.adam = []

    def step(self, scale: float) -> None:
        super().step(scale)
        for group in self.fused.param_groups:
            group["lr"] = scale * group["rate"]
        self.fused.step()


def stepping(words: set[str]) -> Callable[[], object]:
    """What does STEPS steps, as `train.main` does them."""
    run = Run()
    if "threads" in words:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    sequences = train.TOTAL_BATCH_SIZE // run.seq_len
    batches: Iterable[tuple[Tensor, Tensor]] = run.batches(sequences)
    if "memory" in words:
        batches = repeat(next(iter(batches)))
    steps = iter(batches)
    if "plain" in words:
        learn = nanogpt.learner(nanogpt.build(run.vocab_size, run.seq_len), 1e-3)
        return lambda: [learn(*next(steps), 1.0) for _ in range(STEPS)]
    model = train.build_model(run.vocab_size, run.seq_len)
    forward: Any = torch.compile(model) if "compiled" in words else model
    update = (FusedAdam if "fused" in words else train.Optimizer)(model)

    def work() -> None:
        for _ in range(STEPS):
            x, y = next(steps)
            with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in words):
                logits = forward(x).float()
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            loss.backward()
            update.step(1.0)
            model.zero_grad()
            float(loss.detach())

    return work


def main(words: set[str]) -> None:
    assert words <= WORDS, f"{words - WORDS} is not among {WORDS}"
    began = time.process_time()
    work = stepping(words)
    work()
    tokens = STEPS * train.TOTAL_BATCH_SIZE
    print(json.dumps({"tokens": tokens, "warm": time.process_time() - began}), flush=True)
    for _ in sys.stdin:
        spent = cost(work)
        print(json.dumps([spent.seconds, spent.processor]), flush=True)


if __name__ == "__main__":
    main({word for word in sys.argv[1].split(",") if word})
