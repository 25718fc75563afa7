"""The table at the end of a run: runs side by side while they fit, else one below the other."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.summary import Summary
from eval.words import duration, listed, measure, signed, visible

if TYPE_CHECKING:
    from rich.table import Table

SIDE_BY_SIDE = 4
"""Runs that stand side by side on a terminal of 80 columns."""
REJECTIONS = 3
"""Reasons named, the most frequent first."""
CAPTION = "baseline and best: one measurement each (n = 1)"


def table(summaries: Sequence[Summary]) -> "Table":
    """What each run proposed, what came of it, what it cost.

    Scores are single measurements (n = 1); the n of the counts is `trials`. A list of more runs
    than stand side by side leaves out all but the figures.
    """
    runs = [_figures(summary) for summary in summaries]
    if len(runs) <= SIDE_BY_SIDE:
        return _side_by_side(runs)
    short = ("run", "trials", "kept", "discarded", "failed", "baseline", "best", "gain", "time")
    return _listed([{name: run[name] for name in short} for run in runs])


def failures(summary: Summary) -> dict[str, int]:
    """Failed trials by outcome type."""
    kinds = {name: n for name, n in summary.outcomes.items() if name != "scored"}
    unusable = summary.failed - sum(kinds.values())
    return kinds | ({"not_finite": unusable} if unusable else {})


def _figures(summary: Summary) -> dict[str, str]:
    return {
        "run": summary.name,
        "arm": summary.arm,
        "trials": f"{summary.proposed:,}",
        "kept": f"{summary.kept:,}",
        "discarded": f"{summary.discarded:,}",
        "failed": f"{summary.failed:,}",
        "failed how": listed(failures(summary)),
        "rejected why": _rejections(summary),
        "baseline": measure(summary.baseline),
        "best": measure(summary.best),
        "gain": "—" if summary.gain is None else signed(summary.gain),
        "tokens": f"{summary.tokens_read:,} in, {summary.tokens_written:,} out",
        "time": duration(summary.brain_seconds + summary.trainer_seconds),
    }


def _rejections(summary: Summary) -> str:
    shown = dict(list(summary.rejected.items())[:REJECTIONS])
    more = len(summary.rejected) - len(shown)
    return listed(shown) + (f", {more} more" if more else "")


def _side_by_side(runs: list[dict[str, str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, caption=CAPTION)
    result.add_column("run", no_wrap=True)
    for run in runs:
        result.add_column(Text(visible(run["run"])), overflow="fold")
    for name in [key for key in (runs[0] if runs else {}) if key != "run"]:
        if any(run[name] for run in runs):
            result.add_row(name, *(Text(visible(run[name])) for run in runs))
    return result


def _listed(runs: list[dict[str, str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, caption=CAPTION, pad_edge=False)
    result.add_column("run", overflow="fold")
    for name in list(runs[0])[1:]:
        result.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        result.add_row(*(Text(visible(cell)) for cell in run.values()))
    return result
