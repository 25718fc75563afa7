"""A plain GPT of the trainee's shape, as nanoGPT has it: `train.py` as many would write it.

Layer norms, learned positions, GELU, torch's own attention, tied embeddings, AdamW with a warm-up
and a cosine (after the description of Karpathy's nanoGPT); width, depth, heads, batch and text are
the trainee's. Run in the trainer's folder: nanogpt.py RATE. It leaves `result.json` as `train.py`
does: the same budget counted in the same way, and the same evaluation.
"""

# mypy: allow-untyped-calls, disable-error-code="no-any-return"

import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from run import Run

WARM_UP, LAST = 0.05, 0.1
"""Share of the budget in which the rate rises, and what is left of it at the end."""


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.between(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, length: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.last = nn.LayerNorm(width)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                adds = name.endswith(("out.weight", "down.weight"))  # to the stream
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5 if adds else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.last(self.blocks(self.tokens(x) + self.places.weight[: x.shape[1]]))
        return hidden @ self.tokens.weight.T


def build(vocabulary: int, length: int) -> GPT:
    """The trainee's width, depth and heads."""
    width = train.DEPTH * train.ASPECT_RATIO
    return GPT(vocabulary, length, train.DEPTH, width, width // train.HEAD_DIM)


def learner(model: GPT, rate: float) -> Callable[[Tensor, Tensor, float], float]:
    """(x, y, scale of the rate) -> loss in nats a token, after one step."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    update = torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), fused=True)

    def step(x: Tensor, y: Tensor, scale: float) -> float:
        for group in update.param_groups:
            group["lr"] = scale * rate
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad()
        return float(loss.detach())

    return step


def cosine(progress: float) -> float:
    """Scale of the rate at a share of the budget: rise, then half a wave down to LAST."""
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return LAST + (1 - LAST) / 2 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def main(rate: float) -> None:
    run = Run()
    model = build(run.vocab_size, run.seq_len)
    step = learner(model, rate)
    for x, y in run.batches(train.TOTAL_BATCH_SIZE // run.seq_len):
        run.log(step(x, y, cosine(run.progress)))
    run.finish(model, train.DEPTH)


if __name__ == "__main__":
    main(float(sys.argv[1]))
