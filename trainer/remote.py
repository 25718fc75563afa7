"""Both ends of the pipe between an evaluator that sees a text and a box that holds a model.

The evaluator begins with two int64: vocabulary and sequence length. A question is two int64, rows
and columns, and rows * columns int32 tokens; its answer is rows * columns * vocabulary float32
logits. All little-endian. Model-written code runs at one end only: the end without the text.
"""

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor, nn

PAIR = struct.Struct("<qq")


class RemoteModel:
    """A model as `evaluate` calls it: tokens [R, C] -> logits [R, C, vocabulary], float32."""

    def __init__(self, vocab_size: int, seq_len: int, device: str) -> None:
        self.vocab_size, self.device = vocab_size, device
        self._ask, self._answer = _private_pipes()
        self._send(PAIR.pack(vocab_size, seq_len))

    def __call__(self, x: "Tensor") -> "Tensor":
        import torch

        rows, columns = x.shape
        self._send(PAIR.pack(rows, columns) + x.cpu().int().numpy().tobytes())
        data = bytearray(rows * columns * self.vocab_size * 4)
        if _read_into(self._answer, data) < len(data):
            raise SystemExit("the box of the model ended before it had answered")
        return torch.frombuffer(data, dtype=torch.float32).view(rows, columns, -1).to(self.device)

    def eval(self) -> None:
        """Its own end sees to that."""

    def _send(self, data: bytes) -> None:
        try:
            self._ask.write(data)
            self._ask.flush()
        except BrokenPipeError:
            raise SystemExit("the box of the model is gone") from None


def serve(build: Callable[[int, int], "nn.Module"]) -> None:
    """Answer questions on standard input until it ends; `build` makes the model, ready to run."""
    import torch

    answer, ask = _private_pipes()
    if (greeting := _read(ask, PAIR.size)) is None:
        return
    model = build(*PAIR.unpack(greeting))
    device = next(model.parameters()).device
    while (head := _read(ask, PAIR.size)) is not None:
        rows, columns = PAIR.unpack(head)
        tokens = _read(ask, rows * columns * 4)
        if tokens is None:
            return
        x = torch.frombuffer(tokens, dtype=torch.int32).view(rows, columns).to(device).long()
        with torch.no_grad():
            logits = model(x)
        answer.write(logits.float().cpu().contiguous().numpy().data)
        answer.flush()


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """(what was standard output, what was standard input); prints now go to standard error."""
    out, into = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    return out, into


def _read(pipe: BinaryIO, size: int) -> bytearray | None:
    """Exactly `size` bytes, or None at the end of the pipe."""
    data = bytearray(size)
    return data if _read_into(pipe, data) == size else None


def _read_into(pipe: BinaryIO, data: bytearray) -> int:
    filled, view = 0, memoryview(data)
    while filled < len(data) and (got := pipe.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += got
    return filled
