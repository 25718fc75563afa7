"""The A/A figure of a run: how often did its judge keep an edit that does nothing?"""

import math

from eval.summary import Summary


def said(summary: Summary) -> str:
    """A line on a run of no-effect edits; "" for any other run."""
    if summary.info.get("strategy") != "no_effect" or not summary.proposed:
        return ""
    low, high = wilson(summary.kept, summary.proposed)
    return (
        f"A/A: {summary.info.get('judge')} kept {summary.kept} of {summary.proposed} edits that do "
        f"nothing: false-keep rate {summary.kept / summary.proposed:.1%} (95 % interval "
        f"{low:.1%} to {high:.1%})"
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `n` (Wilson 1927); (0, 1) for n = 0."""
    if not n:
        return 0.0, 1.0
    z = 1.959964
    centre = (hits + z * z / 2) / (n + z * z)
    half = z * math.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    return max(0.0, centre - half), min(1.0, centre + half)
