"""Experience: single moves and what they gained elsewhere, for arms that learn without training.

A file is JSON, one object a move: {"knob", "old", "new", "gain", "win"}; `gain` in the metric's
unit, positive where the move helped, `win` where that is beyond the noise. `python -m
eval.landscape` writes one from surveys.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from loop.errors import UsageError
from loop.knobs import Knob, Value


@dataclass(frozen=True)
class Experience:
    """One move that was measured somewhere."""

    knob: str
    old: Value
    new: Value
    gain: float
    win: bool


def read(path: Path) -> tuple[Experience, ...]:
    """The moves in the file `path`. Raises UsageError."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = tuple(
            Experience(str(r["knob"]), r["old"], r["new"], float(r["gain"]), bool(r["win"]))
            for r in rows
        )
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no list of measured moves ({error}); see --help") from None
    if not found:
        raise UsageError(f"{path} holds no move: survey more states, or leave --experience out")
    return found


def way(knob: Knob, old: Value, new: Value) -> str:
    """`up` or `down` along the knob's space; `to VALUE` where it has no order for the two."""
    if isinstance(old, int | float) and isinstance(new, int | float):
        return "up" if new > old else "down"
    ladder = knob.choices
    if old in ladder and new in ladder:
        return "up" if ladder.index(new) > ladder.index(old) else "down"
    return f"to {new!r}"
