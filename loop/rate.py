"""Shares, for every room that counts: how sure one is, and how well two kinds are told apart."""

import math
from collections.abc import Sequence
from statistics import fmean


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `n` (Wilson 1927); (0, 1) for n = 0."""
    if not n:
        return 0.0, 1.0
    z = 1.959964
    centre = (hits + z * z / 2) / (n + z * z)
    half = z * math.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    return max(0.0, centre - half), min(1.0, centre + half)


def above(good: Sequence[float], bad: Sequence[float]) -> float:
    """How often one of `good` stands above one of `bad`, ties counting half: the area under the ROC
    curve, 0.5 by chance. Neither is empty."""
    return fmean((g > b) + 0.5 * (g == b) for g in good for b in bad)
