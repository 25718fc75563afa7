"""Early stopping: an experiment whose training loss lags far behind the incumbent's is cut short.

The rule: past half of the budget, the mean of the last five training losses that the target logs
(`progress 0.52 step 18 loss 2.4101`) exceeds the incumbent's at the same share of the budget by
more than `MARGIN` nats a token. What it cuts is censored (`Stopped`), not a loss: nobody knows what
it would have scored. docs/box.md says on how many recorded curves it was calibrated and which share
of would-be keeps it may still cost.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FROM = 0.5
MARGIN = 0.2
POINTS = 5
_TAIL_BYTES = 2**16
_LINE = re.compile(r"^progress ([0-9.]+) step \d+ loss ([0-9.]+)$", re.MULTILINE)

Curve = Sequence[tuple[float, float]]
"""(share of the budget, training loss), in order."""


@dataclass(frozen=True)
class Rival:
    """The incumbent's curve, against which the log of an experiment in flight is held."""

    curve: Curve

    def hopeless(self, log: Path) -> bool:
        """Does what is logged so far lag too far behind?"""
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return lags(read(file.read().decode("utf-8", "replace")), self.curve)


def lags(curve: Curve, rival: Curve) -> bool:
    """Is `curve`, as far as it goes, hopeless against `rival`?"""
    if not curve or curve[-1][0] < FROM or len(curve) < POINTS:
        return False
    theirs = [loss for at, loss in rival if at <= curve[-1][0]]
    if len(theirs) < POINTS:
        return False
    ours = [loss for _, loss in curve[-POINTS:]]
    return (sum(ours) - sum(theirs[-POINTS:])) / POINTS > MARGIN


def read(log: str) -> list[tuple[float, float]]:
    """The curve in a log."""
    found = []
    for at, loss in _LINE.findall(log):
        try:
            found.append((float(at), float(loss)))
        except ValueError:
            continue
    return found


def rival(measurements: dict[str, object]) -> Rival | None:
    """The curve that a target reported among its measurements, if it did."""
    curve = measurements.get("curve")
    if not isinstance(curve, list):
        return None
    points = [point for point in curve if isinstance(point, list) and len(point) == 2]
    return Rival([(float(at), float(loss)) for at, loss in points]) if points else None
