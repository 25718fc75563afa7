"""Count the floating-point operations that really run: matrix products, convolutions, attention.

A multiply-add counts as two. Attention counts every pair of the window as if none were masked,
the convention of the PaLM paper's MFU (Chowdhery et al. 2022, appendix B). Not counted:
elementwise work, look-ups, reductions, and whatever runs outside torch. Inside the dispatcher
because only there backward passes and optimisers are seen. Torch's own FlopCounterMode is not
used: it costs seconds of imports and misses attention on the CPU.
"""

# mypy: allow-untyped-calls

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def _mm(a: Tensor, b: Tensor, *_: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _mv(a: Tensor, *_: Any) -> int:
    return 2 * a.numel()


def _added(_: Tensor, a: Tensor, b: Tensor, *__: Any) -> int:
    return _mm(a, b)


def _outer(_: Tensor, a: Tensor, b: Tensor, *__: Any) -> int:
    return 2 * a.numel() * b.numel()


def _linear(x: Tensor, weight: Tensor, *_: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _conv(x: Tensor, weight: Tensor, *rest: Any, out: Tensor) -> int:
    """x [N, Cin, ...]; weight [Cout, Cin/groups, ...], or [Cin, Cout/groups, ...] transposed."""
    transposed = rest[4]
    return 2 * (x if transposed else out).numel() * prod(weight.shape[1:])


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    transposed, wanted = rest[4], rest[7]
    once = 2 * (x if transposed else grad).numel() * prod(weight.shape[1:])
    return once * (bool(wanted[0]) + bool(wanted[1]))


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> int:
    """q [..., T, D], k [..., S, D], v [..., S, E]: two products."""
    return 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *__: Any) -> int:
    """Five products: the scores again, and the gradients of scores, q, k and v."""
    return 2 * q.shape[:-1].numel() * k.shape[-2] * (3 * q.shape[-1] + 2 * v.shape[-1])


def _varlen_pairs(q: Tensor, max_k: int, window: list[int] | None) -> int:
    """q [N, H, D]: query-key pairs of all heads; a window [left, 0] sees left + 1 keys."""
    left = window[0] if window else -1
    return q.shape[0] * q.shape[1] * (min(max_k, left + 1) if left >= 0 else max_k)


def _varlen(*args: Any) -> int:
    q, max_k, window = args[0], args[6], args[9] if len(args) > 9 else None
    return 4 * _varlen_pairs(q, max_k, window) * int(q.shape[-1])


def _varlen_backward(*args: Any) -> int:
    q, max_k, window = args[1], args[9], args[13] if len(args) > 13 else None
    return 10 * _varlen_pairs(q, max_k, window) * int(q.shape[-1])


FORMULAS: dict[str, Callable[..., int]] = {
    "aten::mm": _mm,
    "aten::bmm": _mm,
    "aten::mv": _mv,
    "aten::dot": _mv,
    "aten::vdot": _mv,
    "aten::addmm": _added,
    "aten::_addmm_activation": _added,
    "aten::baddbmm": _added,
    "aten::addbmm": _added,
    "aten::addmv": lambda _, matrix, *__: _mv(matrix),
    "aten::addr": _outer,
    "aten::linear": _linear,
    "aten::convolution": _conv,
    "aten::convolution_backward": _conv_backward,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten::_scaled_dot_product_flash_attention_backward": _attention_backward,
    "aten::_scaled_dot_product_efficient_attention_backward": _attention_backward,
    "aten::_scaled_dot_product_cudnn_attention_backward": _attention_backward,
    "aten::_scaled_dot_product_fused_attention_overrideable_backward": _attention_backward,
    "torch_attn::_varlen_attn": _varlen,
    "torch_attn::_varlen_attn_backward": _varlen_backward,
}
WITHOUT_A_FORMULA = ("rnn", "lstm", "gru", "scaled_dot_product", "flash_attention", "_scaled_mm")


class FlopCounter(TorchDispatchMode):
    """`with FlopCounter() as counter: ...; counter.total` is the FLOPs of what ran inside."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import torch._dynamo at the first operation: 1.5 s of a 10 s experiment.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name: str = func._schema.name
        if formula := FORMULAS.get(name):
            self.total += formula(*args, out=out) if formula is _conv else formula(*args)
        elif any(word in name for word in WITHOUT_A_FORMULA):
            raise RuntimeError(f"{name} cannot be counted in a FLOPs budget; use matrix products")
        return out
