"""The metric: bits per byte of a split, computed by fixed code from a model's logits."""

# mypy: allow-untyped-calls

import math
import secrets
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from settings import Settings
from tokens import read_manifest, read_rows

PROBE_ROWS = 64
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 32_768}  # small ones stay in a CPU cache


class Model(Protocol):
    """A module, or the far end of a pipe to one: tokens [B, T] -> logits [B, T, vocabulary]."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def eval(self) -> Any: ...


@torch.no_grad()
def bits_per_byte(
    model: Model, settings: Settings, split: str, device: str, known: Sequence[Tensor] = ()
) -> tuple[float, int]:
    """Bits per byte and the bytes counted, over the first `eval_tokens` of a split.

    The model sees inputs only. Logits become log-probabilities in float32 here, and nats are
    summed in float64. Tokens of zero bytes (special ones) count in neither sum. `known`: nats
    [B, T] of the first batches, asked before (see `leak`).
    """
    manifest = read_manifest(settings.folder)
    rows = read_rows(manifest, split, settings.seq_len, stride=settings.seq_len)
    rows = rows[: settings.eval_tokens // settings.seq_len][:: settings.every]
    token_bytes = torch.tensor(manifest.token_bytes or [1] * manifest.vocab_size, device=device)
    nats, total_bytes = 0.0, 0
    model.eval()
    for number, batch in enumerate(rows.split(_rows_at_once(settings, device))):
        batch = batch.to(device).long()
        y = batch[:, 1:]
        if number < len(known) and known[number].shape == y.shape:
            losses = known[number]
        else:
            logits = checked_logits(model, batch[:, :-1].contiguous(), manifest.vocab_size)
            losses = _nats(logits, y)
        counts = token_bytes[y]
        nats += (losses * (counts > 0)).sum(dtype=torch.float64).item()
        total_bytes += int(counts.sum())
    if not math.isfinite(nats):
        raise SystemExit(f"{split}_bpb is {nats}: the model's logits are not finite")
    return nats / (math.log(2) * total_bytes), total_bytes


def checked_logits(model: Model, x: Tensor, vocab_size: int) -> Tensor:
    logits = model(x)
    wanted = (*x.shape, vocab_size)
    if not isinstance(logits, Tensor) or logits.shape != wanted:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SystemExit(f"the model must return logits {wanted}, but returned {shape}")
    return logits


@torch.no_grad()
def leak(
    model: Model, settings: Settings, split: str, device: str
) -> tuple[float, float, list[Tensor]]:
    """Does the model look at later tokens? (logits moved, nats of surprise), both near 0 if not.

    Also the nats [B, T] of the rows as they are, so that nobody need ask for them again.

    Rows of the split continue, from a random place on, with the real text of another row. Logits
    before that place must not move. And since the spliced rows come first, nobody can know what
    really follows there: the loss on that token exceeds the mean loss of the whole rows by no more
    than chance, whatever the model remembers of earlier questions.
    """
    manifest = read_manifest(settings.folder)
    rows = read_rows(manifest, split, settings.seq_len, settings.seq_len)
    at_once = _rows_at_once(settings, device)
    moved, at_cut, whole = 0.0, [], []
    positions = torch.arange(settings.seq_len, device=device)
    model.eval()
    for batch in rows[: PROBE_ROWS // at_once * at_once].split(at_once):
        batch = batch.to(device).long()
        x = batch[:, :-1].contiguous()
        cuts = torch.tensor([1 + secrets.randbelow(len(positions) - 1) for _ in x], device=device)
        before_cut = positions < cuts.unsqueeze(1)
        spliced = torch.where(before_cut, x, x.roll(1, 0))
        after, before = (checked_logits(model, z, manifest.vocab_size) for z in (spliced, x))
        moved = max(moved, float((before - after)[before_cut].abs().max()))
        each = torch.arange(len(x), device=device)
        at_cut.append(_nats(after[each, cuts - 1], x[each, cuts]))
        whole.append(_nats(before, batch[:, 1:]))
    overall = torch.cat([nats[:, :-1].flatten() for nats in whole]).mean()
    return moved, float(torch.cat(at_cut).mean() - overall), whole


def _rows_at_once(settings: Settings, device: str) -> int:
    return max(2, TOKENS_AT_ONCE[device] // settings.seq_len)  # two, to splice one with another


def _nats(logits: Tensor, tokens: Tensor) -> Tensor:
    return -logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
