"""The best-so-far chart: runs -> marks in percent of the plot, which the template draws as SVG.

Percentages, not pixels: the page scales the plot to any width while text and symbols keep their
size. No script is needed, and the marks of the trials that have details link to them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import quantiles
from typing import Literal

from eval.summary import Summary, kind, score
from eval.words import measure, plain, visible
from loop.trial import Metric, Trial

By = Literal["trial", "seconds"]
TITLE_CHARS = 140


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`, read in `unit`s of `scale`."""

    low: float
    high: float
    scale: float = 1.0
    unit: str = ""
    whole: bool = False

    def at(self, value: float) -> float:
        """Position of `value` in percent, kept within the axis."""
        part = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, part)), 2)

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Round values within the axis, as (percent, label), in steps of 1, 2 or 5 x 10^k."""
        low, high = self.low / self.scale, self.high / self.scale
        raw = (high - low) / about
        power = 10.0 ** floor(log10(raw))
        step = next(power * s for s in (1, 2, 5, 10) if power * s >= raw * 0.999)
        step = max(step, 1.0) if self.whole else step
        decimals = max(0, -floor(log10(step) + 1e-9))
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        return [(self.at(v * self.scale), f"{v:,.{decimals}f}") for v in values]


@dataclass(frozen=True)
class Mark:
    """One trial in the plot: `x`, `y` in percent (y None: no score, drawn in the lane below)."""

    x: float
    y: float | None
    kind: str
    off_scale: bool
    trial: int
    title: str


@dataclass(frozen=True)
class Series:
    """One run: its number on the page, its step line as an SVG path in thousandths, its marks."""

    index: int
    summary: Summary
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """Runs of one metric over trial number or over trainer seconds."""

    by: By
    metric: Metric
    x: Axis
    y: Axis
    series: tuple[Series, ...]

    @property
    def off_scale(self) -> int:
        """Scores too bad for the axis, drawn at its edge."""
        return sum(mark.off_scale for line in self.series for mark in line.marks)


def charts(runs: Sequence[tuple[int, Summary, set[int]]], by: By) -> list[Chart]:
    """One chart for each metric among the runs, given as (number, run, trials with details)."""
    groups: dict[tuple[str, str], list[tuple[int, Summary, set[int]]]] = {}
    for run in runs:
        if (metric := _metric(run[1])) is not None:
            groups.setdefault((metric.name, metric.direction), []).append(run)
    return [_chart(group, by) for group in groups.values()]


def _metric(summary: Summary) -> Metric | None:
    return next(filter(None, map(score, summary.trials)), None)


def _chart(runs: Sequence[tuple[int, Summary, set[int]]], by: By) -> Chart:
    summaries = [summary for _, summary, _ in runs]
    metric = next(filter(None, map(_metric, summaries)))
    x, y = _trials(summaries) if by == "trial" else _seconds(summaries), _scores(summaries)
    series = tuple(_series(index, run, detailed, by, x, y) for index, run, detailed in runs)
    return Chart(by, metric, x, y, series)


def _trials(summaries: Sequence[Summary]) -> Axis:
    last = max(trial.id for summary in summaries for trial in summary.trials)
    return Axis(0, max(last, 1), whole=True)


def _seconds(summaries: Sequence[Summary]) -> Axis:
    most = max([1.0, *(summary.spent[-1] for summary in summaries if summary.spent)])
    for scale, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if most > 2 * scale:
            return Axis(0, most, scale, unit)
    return Axis(0, most, 1.0, "seconds")


def _scores(summaries: Sequence[Summary]) -> Axis:
    """Every good score fits; bad ones up to Tukey's fence (Q3 + 1.5 IQR) or the worst kept."""
    found = [metric for s in summaries for t in s.trials if (metric := score(t)) is not None]
    sign = 1.0 if found[0].direction == "min" else -1.0
    costs = [sign * metric.value for metric in found]
    kept = [sign * m.value for s in summaries for m in s.best_so_far if m is not None]
    best, worst = min(costs), max(costs)
    if len(costs) >= 4:
        first, _, third = quantiles(costs, n=4, method="inclusive")
        worst = min(worst, max([third + 1.5 * (third - first), *kept]))
    room = max(0.06 * (worst - best), 1e-3 * abs(best), 1e-9)
    low, high = best - room, worst + room
    return Axis(low, high) if sign > 0 else Axis(-high, -low)


def _series(index: int, summary: Summary, detailed: set[int], by: By, x: Axis, y: Axis) -> Series:
    places = [
        x.at(trial.id if by == "trial" else spent)
        for trial, spent in zip(summary.trials, summary.spent, strict=True)
    ]
    marks = [
        _mark(trial, place, y, trial.id in detailed)
        for trial, place in zip(summary.trials, places, strict=True)
    ]
    marks.sort(key=lambda mark: mark.kind in ("keep", "baseline"))  # what is drawn last is on top
    return Series(index, summary, "".join(_steps(summary, places, y)), tuple(marks))


def _mark(trial: Trial, place: float, y: Axis, detailed: bool) -> Mark:
    metric = score(trial)
    title = ""
    if detailed:
        what = measure(metric) if metric else plain(type(trial.outcome).__name__.lower())
        about = visible(trial.proposal.description[:TITLE_CHARS])
        title = f"#{trial.id} {kind(trial)} · {what} · {about}"
    if metric is None:
        return Mark(place, None, kind(trial), False, trial.id, title)
    off = not y.low <= metric.value <= y.high
    return Mark(place, 100 - y.at(metric.value), kind(trial), off, trial.id, title)


def _steps(summary: Summary, places: Sequence[float], y: Axis) -> Iterator[str]:
    """A new command only where the line moves: an SVG path in a box of 1000 x 1000."""
    level: float | None = None
    for place, metric in zip(places, summary.best_so_far, strict=True):
        if metric is None:
            continue
        height = 1000 - 10 * y.at(metric.value)
        if level is None:
            yield f"M{10 * place:.0f} {height:.0f}"
        elif height != level:
            yield f"H{10 * place:.0f}V{height:.0f}"
        level = height
    if level is not None and places:
        yield f"H{10 * places[-1]:.0f}"
