"""How figures and foreign text are put before people, the same on a terminal and on a page."""

import re
from collections.abc import Mapping

from loop.trial import Metric

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""What hides or reorders text: controls, odd line ends, direction overrides, lone surrogates."""


def visible(text: str) -> str:
    """`text` with every character that cannot be seen replaced by one that can."""
    return UNSEEN.sub(_picture, text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"\\u{code:04x}"


def short(text: str, size: int = 300) -> str:
    """At most `size` characters of `text`, saying how many more there are."""
    return text if len(text) <= size else f"{text[:size]} … {len(text) - size:,} more characters"


def number(value: float) -> str:
    """Four decimals where they tell the value apart, else four significant digits."""
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.4g}"


def measure(metric: Metric | None) -> str:
    """A metric's value, or a dash."""
    return "—" if metric is None else number(metric.value)


def signed(value: float) -> str:
    """A difference, always with its sign (a true minus)."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def count(value: int, noun: str) -> str:
    """`1 trial`, `12,000 trials`."""
    return f"{value:,} {noun}" + ("" if value == 1 else "s")


def listed(counts: Mapping[str, int]) -> str:
    """`3 crashed, 1 timed out`; empty for no counts."""
    return ", ".join(f"{n:,} {plain(name)}" for name, n in counts.items())


def plain(name: str) -> str:
    """An identifier as words."""
    return name.replace("_", " ")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits: `42 s`, `3.5 min`, `8.1 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
