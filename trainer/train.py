"""A small GPT, trained until its budget is spent. The one file to edit: lower val_bpb."""

# mypy: allow-untyped-calls, disable-error-code="no-any-return,union-attr"

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from run import Run

if torch.cuda.is_available():
    from torch.nn.attention.varlen import varlen_attn

# Model
DEPTH = 2  # blocks
ASPECT_RATIO = 32  # width = DEPTH * ASPECT_RATIO, rounded up to whole heads
HEAD_DIM = 32
MLP_RATIO = 4  # hidden units per unit of width
WINDOW_PATTERN = "SL"  # a letter per block, repeated: S sees SHORT_WINDOW tokens, L all
SHORT_WINDOW = 64
SOFTCAP = 15.0  # of the logits
# Batch
TOTAL_BATCH_SIZE = 1024  # tokens per step
DEVICE_BATCH_SIZE = 4  # sequences at once
# Optimiser
MATRIX_LR = 0.03  # of Muon, the others are Adam's
EMBEDDING_LR = 0.1
UNEMBEDDING_LR = 0.02
SCALAR_LR = 0.02
WEIGHT_DECAY = 0.0  # of the matrices
MOMENTUM = 0.95
ADAM_BETA1 = 0.8
ADAM_BETA2 = 0.95
NEWTON_SCHULZ_STEPS = 4
# Schedule, in shares of the budget
WARMUP_RATIO = 0.0
WARMDOWN_RATIO = 0.6
FINAL_LR_FRAC = 0.0


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [B, H, T, D]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of [B, H, T, D] over the last `window` tokens."""
    B, H, T, D = q.shape
    if q.is_cuda:
        q, k, v = (z.transpose(1, 2).reshape(B * T, H, D) for z in (q, k, v))
        ends = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device)
        left = window - 1 if window < T else -1
        y = varlen_attn(q, k, v, ends, ends, T, T, window_size=(left, 0))
        return y.view(B, T, H, D).transpose(1, 2)
    # On a CPU by chunks of a window: each sees itself and the chunk before it.
    at = keys = torch.arange(T, device=q.device)
    if window < T:
        q, at = q.reshape(B, H, -1, window, D), at.view(-1, window)
        k, v = (F.pad(z, (0, 0, window, 0)).unfold(2, 2 * window, window).mT for z in (k, v))
        keys = F.pad(keys, (window, 0), value=T).unfold(0, 2 * window, window)
    past = at.unsqueeze(-1) - keys.unsqueeze(-2)
    scores = (q @ k.mT * D**-0.5).masked_fill((past < 0) | (past >= window), float("-inf"))
    return (scores.softmax(-1) @ v).reshape(B, H, T, D)


class Block(nn.Module):
    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.qkv = nn.Parameter(uniform(3, width, width))
        self.out = nn.Parameter(torch.zeros(width, width))
        self.up = nn.Parameter(uniform(MLP_RATIO * width, width))
        self.down = nn.Parameter(torch.zeros(width, MLP_RATIO * width))
        self.mix = nn.Parameter(torch.tensor([1.0, 0.1]))  # of the stream and of the embedding

    def forward(self, x: Tensor, x0: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.mix[0] * x + self.mix[1] * x0
        qkv = F.linear(norm(x), self.qkv.flatten(0, 1))
        q, k, v = qkv.unflatten(-1, (3, -1, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        q, k = (norm(rotate(z, cos, sin)).to(v.dtype) for z in (q, k))
        y = attend(q, k, v, self.window).transpose(1, 2).flatten(2)
        x = x + F.linear(y, self.out)
        return x + F.linear(F.linear(norm(x), self.up).relu().square(), self.down)


def uniform(*shape: int) -> Tensor:
    return (torch.rand(shape) * 2 - 1) * (3 / shape[-1]) ** 0.5


class GPT(nn.Module):
    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        assert set(WINDOW_PATTERN) <= {"S", "L"}, "WINDOW_PATTERN takes the letters S and L only"
        assert seq_len % SHORT_WINDOW == 0, f"SHORT_WINDOW must divide {seq_len}"
        assert HEAD_DIM % 2 == 0, "HEAD_DIM must be even: rotation turns pairs"
        width = -(-DEPTH * ASPECT_RATIO // HEAD_DIM) * HEAD_DIM
        letters = (WINDOW_PATTERN * DEPTH)[: DEPTH - 1] + WINDOW_PATTERN[-1:]
        windows = [SHORT_WINDOW if letter == "S" else seq_len for letter in letters]
        self.embedding = nn.Parameter(torch.randn(vocab_size, width))
        self.blocks = nn.ModuleList(Block(width, window) for window in windows)
        self.unembedding = nn.Parameter(torch.randn(vocab_size, width) * 0.001)
        angles = torch.outer(torch.arange(seq_len), 10000 ** -torch.linspace(0, 1, HEAD_DIM // 2))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=tokens.is_cuda):
            x = norm(F.embedding(tokens, self.embedding))
            x = x0 = x.bfloat16() if x.is_cuda else x
            for block in self.blocks:
                x = block(x, x0, self.cos, self.sin)
            logits = F.linear(norm(x), self.unembedding)
        return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)


def build_model(vocab_size: int, seq_len: int) -> GPT:
    return GPT(vocab_size, seq_len)


class Optimizer:
    """Muon (Jordan 2024) for the matrices of the blocks, Adam (Kingma 2014) for the rest."""

    def __init__(self, model: GPT) -> None:
        inner = list(model.blocks.parameters())
        self.muon = [(p, torch.zeros_like(p)) for p in inner if p.ndim > 1]
        rates = [(model.embedding, EMBEDDING_LR), (model.unembedding, UNEMBEDDING_LR)]
        rates += [(p, SCALAR_LR) for p in inner if p.ndim == 1]
        self.adam = [(p, lr, torch.zeros_like(p), torch.zeros_like(p)) for p, lr in rates]
        self.steps = 0

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients, every rate times `scale`."""
        self.steps += 1
        for p, mean in self.muon:
            if (g := p.grad) is not None:
                mean.lerp_(g, 1 - MOMENTUM)
                lr = scale * MATRIX_LR * max(1.0, p.size(-2) / p.size(-1)) ** 0.5
                p.mul_(1 - lr * WEIGHT_DECAY).sub_(lr * orthogonal(g.lerp(mean, MOMENTUM)))
        for p, lr, mean, square in self.adam:
            if (g := p.grad) is None:
                continue
            mean.lerp_(g, 1 - ADAM_BETA1)
            square.lerp_(g.square(), 1 - ADAM_BETA2)
            spread = (square / (1 - ADAM_BETA2**self.steps)).sqrt() + 1e-10
            p.sub_(scale * lr / (1 - ADAM_BETA1**self.steps) * mean / spread)


def orthogonal(g: Tensor) -> Tensor:
    """Roughly the nearest orthogonal matrix to g [..., m, n], by Newton-Schulz steps."""
    x = g.bfloat16() if g.is_cuda else g
    x = x.mT if g.size(-2) > g.size(-1) else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        a = x @ x.mT
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    return x.mT if g.size(-2) > g.size(-1) else x


def lr_scale(progress: float) -> float:
    """Rise, stay, fall to FINAL_LR_FRAC."""
    rise = progress / WARMUP_RATIO if progress < WARMUP_RATIO else 1.0
    left = min(1.0, (1.0 - progress) / WARMDOWN_RATIO) if WARMDOWN_RATIO > 0 else 1.0
    return rise * (left + (1.0 - left) * FINAL_LR_FRAC)


def main() -> None:
    run = Run()
    sequences = TOTAL_BATCH_SIZE // run.seq_len
    assert sequences > 0, f"TOTAL_BATCH_SIZE must hold a sequence of {run.seq_len} tokens"
    model = build_model(run.vocab_size, run.seq_len).to(run.device)
    forward = torch.compile(model) if run.device == "cuda" else model
    optimizer = Optimizer(model)
    for x, y in run.batches(sequences):
        total = torch.zeros((), device=run.device)
        for i in range(0, sequences, DEVICE_BATCH_SIZE):
            part, targets = x[i : i + DEVICE_BATCH_SIZE], y[i : i + DEVICE_BATCH_SIZE]
            loss = F.cross_entropy(forward(part).flatten(0, 1), targets.flatten())
            loss *= len(part) / sequences
            loss.backward()
            total += loss.detach()
        optimizer.step(lr_scale(run.progress))
        model.zero_grad()
        run.log(total)
    run.finish(model, DEPTH)


if __name__ == "__main__":
    main()
