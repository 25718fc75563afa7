"""The A/A figure of a run: how often did its judge keep an edit that does nothing?"""

from eval.summary import Summary
from loop.rate import wilson


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
