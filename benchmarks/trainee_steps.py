"""Training steps of the built-in trainee, as it is and in the ways in which torch could be faster.

Run in the trainer's folder, by `benchmarks.trainee`. Prints {"tokens", "steps": of a round,
"ways": {way: [[seconds, processor seconds], ...]}, "compiled_in": seconds}.
"""

# mypy: allow-untyped-calls

import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from benchmarks.measure import alternate
from settings import read_settings
from tokens import read_manifest, read_rows

STEPS = 10
"""Of a round."""


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


def way(x: Tensor, y: Tensor, vocabulary: int, *, threads: int = 1, compiled: bool = False,
        optimizer: type[train.Optimizer] = train.Optimizer) -> Callable[[], None]:  # fmt: skip
    """STEPS steps of a model of its own, warmed up."""
    torch.manual_seed(0)
    model = train.build_model(vocabulary, x.shape[1])
    forward: Any = torch.compile(model) if compiled else model
    update = optimizer(model)

    def steps(count: int = STEPS) -> None:
        torch.set_num_threads(threads)
        for _ in range(count):
            loss = F.cross_entropy(forward(x).flatten(0, 1), y.flatten())
            loss.backward()
            update.step(1.0)
            model.zero_grad()

    steps(3)
    return steps


def main(rounds: int) -> None:
    settings = read_settings()
    manifest = read_manifest(settings.folder)
    rows = read_rows(manifest, "train", settings.seq_len, stride=1)
    sequences = train.TOTAL_BATCH_SIZE // settings.seq_len
    batch = rows[torch.arange(sequences) * 1000].long()
    make = partial(way, batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), manifest.vocab_size)
    ways = {"as it is": make(), "two threads": make(threads=2), "fused": make(optimizer=FusedAdam)}
    began = time.perf_counter()
    if shutil.which("g++"):
        ways["compiled"] = make(compiled=True)
        ways["compiled, fused"] = make(compiled=True, optimizer=FusedAdam)
    compiled_in = time.perf_counter() - began
    costs = alternate(ways, rounds)
    found = {name: [(c.seconds, c.processor) for c in side] for name, side in costs.items()}
    tokens = STEPS * train.TOTAL_BATCH_SIZE
    told = {"tokens": tokens, "steps": STEPS, "ways": found, "compiled_in": compiled_in}
    print(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]))
