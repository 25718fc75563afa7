"""The FLOP counter against torch's own where that one counts, and against arithmetic elsewhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parent.parent / "trainer"

AGREE = """
import torch
from torch.utils.flop_counter import FlopCounterMode
from flops import FlopCounter
F = torch.nn.functional

def t(*shape):
    return torch.randn(shape, requires_grad=True)

cases = {
    "mm": lambda: t(3, 4) @ t(4, 5),
    "bmm": lambda: t(2, 3, 4) @ t(2, 4, 5),
    "linear with bias": lambda: F.linear(t(6, 3, 4), t(5, 4), t(5)),
    "baddbmm": lambda: torch.baddbmm(t(2, 3, 5), t(2, 3, 4), t(2, 4, 5)),
    "einsum": lambda: torch.einsum("bhid,bhjd->bhij", t(2, 3, 4, 5), t(2, 3, 6, 5)),
    "conv1d": lambda: F.conv1d(t(2, 4, 9), t(6, 4, 3), t(6), padding=1),
    "conv2d": lambda: F.conv2d(t(2, 3, 9, 8), t(6, 3, 3, 2), stride=2),
    "transposed": lambda: F.conv_transpose1d(t(2, 4, 9), t(4, 6, 3)),
}
for name, case in cases.items():
    with FlopCounterMode(display=False) as theirs, FlopCounter() as ours:
        case().square().sum().backward()
    assert ours.total == theirs.get_total_flops() > 0, (name, ours.total, theirs.get_total_flops())
with FlopCounter() as counter:  # torch overcounts groups in the backward pass
    F.conv1d(t(2, 4, 9), t(6, 2, 3), padding=1, groups=2).sum().backward()
assert counter.total == 3 * (2 * 2 * 6 * 9 * 2 * 3), counter.total
"""

ATTENTION = """
import json, sys, torch
from torch.nn.attention.varlen import varlen_attn
from flops import FlopCounter
q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
said = {}
with FlopCounter() as counter:
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    said["forward"] = counter.total
    y.sum().backward()
said["both"] = counter.total
with torch.device("meta"):
    q, k, v = (torch.randn(32, 3, 8, requires_grad=True) for _ in range(3))
    ends = torch.zeros(3, dtype=torch.int32)
    for name, window in {"causal": (-1, 0), "window": (3, 0)}.items():
        with FlopCounter() as counter:
            varlen_attn(q, k, v, ends, ends, 16, 16, window_size=window).sum().backward()
        said[name] = counter.total
print(json.dumps(said))
"""

REFUSED = """
import torch
from flops import FlopCounter
rnn = torch.nn.LSTM(4, 4)
with torch.no_grad(), FlopCounter() as counter:
    rnn(torch.randn(3, 2, 4))
print(counter.total)
"""

IMPORTS = """
import sys, torch
from flops import FlopCounter
with FlopCounter() as counter:
    (torch.ones(2, 2, requires_grad=True) @ torch.ones(2, 2)).sum().backward()
assert counter.total == 32
print("sympy" in sys.modules)
"""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=TRAINER, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_products_and_convolutions_agree_with_torch() -> None:
    python(AGREE)


@pytest.mark.slow
def test_attention_has_two_products_forward_and_five_backward() -> None:
    said = json.loads(python(ATTENTION))
    product = 2 * (2 * 3) * 16 * 16 * 8  # multiply-adds, heads, queries, keys, head size
    assert said["forward"] == 2 * product
    assert said["both"] == 7 * product
    assert said["causal"] == 7 * product
    assert said["window"] == 7 * product * 4 / 16


def test_counting_imports_no_compiler() -> None:
    assert python(IMPORTS).strip() == "False"


@pytest.mark.slow
def test_what_cannot_be_counted_is_refused_or_counted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], cwd=TRAINER, capture_output=True, text=True
    )
    counted = done.returncode == 0 and int(done.stdout) == 2 * 3 * 2 * 16 * (4 + 4)
    assert counted or "cannot be counted" in done.stderr
