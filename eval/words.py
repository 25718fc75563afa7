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
    text = f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.4g}"
    return f"\N{MINUS SIGN}{text[1:]}" if value < 0 else text


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


def diff_class(line: str) -> str:
    """What a line of a unified diff is: `head`, `add`, `del`, or "" for one that stays."""
    if line.startswith(("+++", "---", "@@", "diff ", "index ")):
        return "head"
    return {"+": "add", "-": "del"}.get(line[:1], "")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits: `42 s`, `3.5 min`, `8.1 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


PLACE = re.compile(r"(?<![\w/.:~<+])/(?!dev/)(?:[\w.+@~-]+/)+(?=[\w.+@~-])")
"""The folders of an absolute path, up to its last part."""


def placeless(text: str) -> str:
    """`text` without the folders that absolute paths name: where a machine keeps its files."""
    return PLACE.sub("…/", text)


def percent(share: float | None) -> str:
    """A share as whole percent, below ten and above ninety with a decimal; a dash for none."""
    if share is None:
        return "—"
    exact = share in (0, 1) or 0.1 <= share <= 0.9
    return f"{share:.0%}" if exact else f"{share:.1%}"


def points(difference: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * difference:+.1f} points".replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None, form: str = "signed") -> str:
    """`low to high`, each as `form` writes it; empty where there is none."""
    if low is None or high is None:
        return ""
    write = {"signed": signed, "number": number, "percent": percent}[form]
    return f"{write(low)} to {write(high)}"


SIGNS = re.compile(r"([\\`*_\[\]<>|#~&])")


def unmarked(text: str) -> str:
    """`text` on one line, without meaning in Markdown: what a model wrote stays what it wrote."""
    return SIGNS.sub(r"\\\1", " ".join(placeless(visible(text)).split()))


class Fenced(str):
    """Text that stands in a fence which it cannot close."""


def fenced(text: str) -> Fenced:
    """`text` as a Markdown code block."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Fenced(f"{fence}text\n{placeless(visible(text)).strip()}\n{fence}")
