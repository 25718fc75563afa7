"""A plain GPT of the trainee's shape, as nanoGPT has it, trained until it reaches a loss.

Layer norms, learned positions, GELU, torch's own attention, tied embeddings, AdamW with a warm-up
and a cosine (after the description of Karpathy's nanoGPT). Run in the trainer's folder, by
`benchmarks.trainee`: nanogpt.py TARGET SECONDS RATE. Prints {"bpb", "processor" (seconds of the
training alone), "tokens", "reached"}.
"""

# mypy: allow-untyped-calls, disable-error-code="no-any-return"

import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from evaluate import bits_per_byte
from settings import read_settings
from tokens import read_manifest, read_rows

LOOKS = 6
"""Evaluations on the way, none of which counts as training."""


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
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        hidden = self.last(self.blocks(self.tokens(x) + self.places(at)))
        return hidden @ self.tokens.weight.T


def main(target: float, seconds: float, rate: float) -> None:
    settings = read_settings()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    manifest = read_manifest(settings.folder)
    rows = read_rows(manifest, "train", settings.seq_len, stride=1)
    width = train.DEPTH * train.ASPECT_RATIO
    model = GPT(manifest.vocab_size, settings.seq_len, train.DEPTH, width, width // train.HEAD_DIM)
    update = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1,
                               fused=True)  # fmt: skip
    generator = torch.Generator().manual_seed(settings.seed)
    sequences = train.TOTAL_BATCH_SIZE // settings.seq_len
    spent, steps, looked, bpb = 0.0, 0, 0, math.inf
    while spent < seconds and bpb > target:
        began, progress = time.process_time(), spent / seconds
        batch = rows[torch.randint(len(rows), (sequences,), generator=generator)].long()
        x, y = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        update.param_groups[0]["lr"] = rate * min(1.0, (steps + 1) / 20) * cosine
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad()
        spent += time.process_time() - began
        steps += 1
        if spent / seconds * LOOKS > looked + 1 or spent >= seconds:
            looked += 1
            bpb, _ = bits_per_byte(model, settings, "val", "cpu")
            model.train()
    found = {"bpb": bpb, "processor": spent, "tokens": steps * train.TOTAL_BATCH_SIZE}
    print(json.dumps(found | {"reached": bpb <= target}))


if __name__ == "__main__":
    main(*(float(text) for text in sys.argv[1:4]))
