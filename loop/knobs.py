"""Knobs: the `ALL_CAPS = literal` lines of an editable file, and the space each may move in.

The convention is that of Karpathy's train.py; a menu over every such line is the one of arXiv
2603.24647. A value may also be arithmetic on number literals (`2**16`).
"""

import ast
import math
import operator
import random
import re
from dataclasses import dataclass
from typing import Any

from loop.errors import TargetError

Value = int | float | str | bool | tuple[int | float, ...]

_OPERATORS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Knob:
    """The space of one knob: an ordered ladder of `choices`, or a range that moves by `step`.

    A range on scale `log` is multiplied or divided by `step`, one on `linear` moves by adding it.
    """

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    scale: str = "log"
    step: float = 2.0

    def moves(self, value: Value) -> list[Value]:
        """The neighbours of `value`: one step down and one step up, where there are such."""
        if self.choices:
            return _neighbours(self.choices, value)
        assert isinstance(value, int | float), f"{self.name} is a range, its value a {type(value)}"
        if self.scale == "log":
            near = [value / self.step, value * self.step]
        else:
            near = [value - self.step, value + self.step]
        low, high = self.low - abs(self.low) / 1000, self.high + abs(self.high) / 1000
        return [self._tidy(v, value) for v in near if low <= v <= high]

    def sample(self, rng: random.Random, like: Value) -> Value:
        """One value from anywhere in the space, of the type of `like`."""
        if self.choices:
            return rng.choice(self.choices)
        if self.scale == "log":
            return self._tidy(math.exp(rng.uniform(math.log(self.low), math.log(self.high))), like)
        return self._tidy(rng.uniform(self.low, self.high), like)

    def _tidy(self, number: float, like: Value) -> Value:
        """Three significant digits, and an int of the range where the knob holds an int."""
        if isinstance(like, int):
            return min(max(round(number), math.ceil(self.low)), math.floor(self.high))
        return float(f"{number:.3g}")


def parse(name: str, spec: Any) -> Knob:
    """A knob from its entry in target.toml: `[..]`, `{choices=[..]}` or `{low, high, scale, step}`.

    Raises TargetError naming the knob.
    """
    if isinstance(spec, list):
        spec = {"choices": spec}
    if isinstance(spec, dict) and set(spec) == {"choices"} and isinstance(spec["choices"], list):
        choices = tuple(_frozen(value) for value in spec["choices"])
        if len(choices) >= 2 and all(isinstance(c, int | float | str | tuple) for c in choices):
            return Knob(name, choices=choices)
    elif isinstance(spec, dict) and {"low", "high"} <= set(spec) <= {
        "low",
        "high",
        "scale",
        "step",
    }:
        knob = Knob(name, **spec)
        numbers = all(type(n) in (int, float) for n in (knob.low, knob.high, knob.step))
        least = {"log": (0, 1), "linear": (-math.inf, 0)}.get(str(knob.scale))  # of low, of step
        if numbers and least and least[0] < knob.low < knob.high and least[1] < knob.step:
            return knob
    raise TargetError(
        f"knob {name}: {spec!r} is not a space; write a list of two or more choices, "
        'or {low, high, scale = "log"|"linear", step}'
    )


def infer(values: dict[str, Value]) -> dict[str, Knob]:
    """Spaces for knobs of a target that states none: numbers may halve and double twice over."""
    found = {}
    for name, value in values.items():
        if isinstance(value, bool | str | tuple) or value <= 0:
            continue
        if isinstance(value, int):
            ladder = sorted({max(1, value // 4), max(1, value // 2), value, value * 2, value * 4})
            if value < 8:
                ladder = sorted({max(1, value + d) for d in (-2, -1, 0, 1, 2)})
            found[name] = Knob(name, choices=tuple(ladder))
        else:
            found[name] = Knob(name, low=value / 8, high=value * 8)
    return found


def read(source: str) -> dict[str, Value]:
    """Every knob of `source` with its value, in the order of the file. Raises SyntaxError."""
    return {name: value for name, value, _ in _assignments(source)}


def write(source: str, changes: dict[str, str]) -> str:
    """`source` with the values of some knobs replaced by Python literals in text form.

    Only the value's own characters change: comments and spacing stay. Raises KeyError for a knob
    that is not there.
    """
    nodes = {name: node for name, _, node in _assignments(source)}
    data = source.encode()
    starts = [0, *(end.end() for end in re.finditer(rb"\r\n|\r|\n", data))]  # as ast counts lines
    spans = []
    for name, text in changes.items():
        node = nodes[name]
        assert node.end_lineno is not None and node.end_col_offset is not None
        begin = starts[node.lineno - 1] + node.col_offset
        spans.append((begin, starts[node.end_lineno - 1] + node.end_col_offset, text.encode()))
    for begin, end, value in sorted(spans, reverse=True):  # from the end, so that offsets hold
        data = data[:begin] + value + data[end:]
    return data.decode()


def literal(text: str) -> Value:
    """The value of a Python literal (arithmetic on numbers included). Raises ValueError."""
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:60]!r} is not a Python literal") from error


def fits(old: Value, new: Value) -> bool:
    """May a knob whose value is `old` become `new`? Same type, or an int where a float was."""
    if type(old) is float and type(new) is int:
        return True
    return type(old) is type(new)


def _assignments(source: str) -> list[tuple[str, Value, ast.expr]]:
    found: dict[str, tuple[str, Value, ast.expr]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id.isupper():
                try:
                    found[target.id] = (target.id, _value(node.value), node.value)
                except (ValueError, RecursionError):
                    found.pop(target.id, None)
    return list(found.values())


def _value(node: ast.expr) -> Value:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool):
        return node.value
    if isinstance(node, ast.Tuple | ast.List) and node.elts:
        items = tuple(_value(item) for item in node.elts)
        if all(isinstance(item, int | float) for item in items):
            return items  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _number(node.left), _number(node.right)
        if isinstance(node.op, ast.Pow) and (abs(right) > 64 or abs(left) > 1e6):
            raise ValueError("too large a power")
        try:
            result = _OPERATORS[type(node.op)](left, right)
        except (ZeroDivisionError, OverflowError) as error:
            raise ValueError(str(error)) from error
        if isinstance(result, int | float):
            return result
    raise ValueError("not a literal")


def _number(node: ast.expr) -> int | float:
    value = _value(node)
    if isinstance(value, str | bool | tuple):
        raise ValueError("not a number")
    return value


def _neighbours(ladder: tuple[Value, ...], value: Value) -> list[Value]:
    if value in ladder:
        at = ladder.index(value)
        return [ladder[i] for i in (at - 1, at + 1) if 0 <= i < len(ladder)]
    if isinstance(value, int | float):
        numbers = [v for v in ladder if isinstance(v, int | float)]
        below = [v for v in numbers if v < value]
        above = [v for v in numbers if v > value]
        return [*below[-1:], *above[:1]]
    return list(ladder)


def _frozen(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value
