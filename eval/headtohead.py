"""The report of an executed plan: one page of HTML without a script, and the same as Markdown.

Composition and no statistics: the figures are those of `eval.statistics`, `eval.questions`,
`eval.failures` and `eval.costs`, put side by side once for both forms. What was not measured is
None here and "not measured" there.
"""

import statistics as plain_statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval import costs, failures, pages, plots, questions, results, statistics, words
from eval.failures import Failures, Rate
from eval.plan import RECORD, Arm, Role
from eval.questions import Answer, Contrast
from eval.results import Resource, Results
from eval.summary import Summary
from loop import noise
from loop.final import PURPOSE as FINAL
from loop.noise import Noise
from loop.trial import Crashed, Stopped, TimedOut

if TYPE_CHECKING:
    from eval.live import Live

Floats = NDArray[np.float64]
CONTROL = "random_edit"
"""Whom the probability of improvement is against: one knob of the incumbent by chance."""
TABS: tuple[tuple[Resource, str], ...] = (
    ("trials", "equal trials"),
    ("tokens", "equal tokens"),
    ("trainer_seconds", "equal training time"),
    ("dollars", "equal dollars"),
)
STYLES = ("report.css", "headtohead.css")
SEED = 0
"""Of everything that is resampled: the same results give the same page."""


@dataclass(frozen=True)
class Estimate:
    """A value over `n` runs with its 95 % interval (None: too few runs for one)."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Standing:
    """One arm in the league table; None: not measured. Gain is over the run's own baseline."""

    index: int
    arm: Arm
    runs: int
    final: Estimate | None
    gain: Estimate | None
    best: Estimate | None
    area: Estimate | None
    iqm: float | None
    chance: Estimate | None
    valid: Rate
    kept: Rate
    crashed: Rate


@dataclass(frozen=True)
class Tab:
    """Best-so-far at equal spending of one thing; `why`: there is no plot because."""

    key: str
    name: str
    unit: str
    plot: plots.Plot | None
    why: str = ""


@dataclass(frozen=True)
class Bill:
    """What one experiment of an arm costs: means over its `n` proposals in all its runs."""

    arm: str
    n: int
    tokens: float
    brain_seconds: float
    trainer_seconds: float
    api: float | None
    paid: bool
    own: float
    rented: float


@dataclass(frozen=True)
class Spread:
    """Standard deviation of a run, by what it was seen in."""

    seen_in: str
    noise: Noise


@dataclass(frozen=True)
class Comparison:
    """All that the two templates show."""

    results: Results
    runs: Mapping[str, Sequence[Summary]]
    answers: tuple[Answer, ...]
    contrasts: tuple[Contrast, ...]
    league: tuple[Standing, ...]
    control: str
    tabs: tuple[Tab, ...]
    profile: plots.Plot | None
    pairs: plots.Pairs | None
    failures: tuple[Failures, ...]
    bills: tuple[Bill, ...]
    prices: costs.CostsArgs
    spreads: tuple[Spread, ...]
    versions: Mapping[str, str]

    @property
    def measured_on(self) -> str:
        """The text that the final check is scored on."""
        return "untouched text" if self.results.untouched else "the target's own text"

    @property
    def complete(self) -> int:
        """Runs with all their trials."""
        return int(np.isfinite(self.results.best).all(axis=2).sum())

    def colour(self, arm: str) -> int:
        """The number of an arm's colour."""
        return self.results.arms.index(arm)

    def ends(self, tab: Tab, arm: str) -> str:
        """Where an arm's line ends, in words."""
        lines = tab.plot.lines if tab.plot else ()
        for line in lines:
            if line.name == arm and line.end:
                mean, low, high = map(words.number, line.end)
                return (
                    f"{mean} ({low} to {high}; n = {line.n})" if line.n > 1 else f"{mean} (n = 1)"
                )
        return "not measured"


def is_plan(folder: Path) -> bool:
    """Was a plan executed in `folder`?"""
    return (folder / RECORD).is_file()


def write(folder: Path, page: Path) -> Comparison:
    """Write the report of the plan executed in `folder` to `page` and its twin beside it, `.md`.

    Raises UsageError: no plan was executed there. LedgerError. AutoresearchError: `page` cannot be
    written.
    """
    found = compare(folder)
    for path, text in ((page, html(found)), (page.with_suffix(".md"), markdown(found))):
        pages.write(path, text)
    return found


def compare(out: Path) -> Comparison:
    """All figures of the plan executed in `out`. Raises UsageError, LedgerError."""
    found = results.load(out)
    rng = np.random.default_rng(SEED)
    arms = [(name, found.plan.arm(name).role) for name in found.arms]
    runs = failures.by_arm(found)
    contrasts = tuple(questions.contrasts(found, rng))
    control = _control(found)
    prices = costs.CostsArgs(runs=())
    return Comparison(
        results=found,
        runs=runs,
        answers=tuple(questions.answers(found, rng)),
        contrasts=contrasts,
        league=tuple(_league(found, runs, control, rng)),
        control=control,
        tabs=tuple(_tab(found, resource, name, arms, rng) for resource, name in TABS),
        profile=_profile(found, arms),
        pairs=_pairs(found, contrasts),
        failures=tuple(failures.analyse(runs, rng)),
        bills=tuple(_bills(runs, prices)),
        prices=prices,
        spreads=tuple(_spreads(runs)),
        versions=_versions(runs),
    )


def said(comparison: Comparison) -> Iterator[str]:
    """The four answers for a terminal."""
    for number, answer in enumerate(comparison.answers, 1):
        yield f"{number}. {answer.question} {answer.verdict.upper()}"
        yield f"   {words.visible(answer.sentence)}"


def html(comparison: Comparison, live: "Live | None" = None) -> str:
    """The page, with `live` one that follows. The same comparison gives the same bytes."""

    def tidy(text: str) -> str:
        return words.placeless(words.visible(text))

    return pages.html("headtohead.html.j2", STYLES, tidy, live, c=comparison, **_names())


def markdown(comparison: Comparison) -> str:
    """The twin of the page, for a repository's own pages."""
    return pages.markdown("headtohead.md.j2", words.unmarked, c=comparison, **_names())


def _names() -> dict[str, Any]:
    from eval.drift import THIRDS

    return {"thirds": THIRDS, "mean": plain_statistics.fmean, "sure": _sure}


def _sure(value: float | None, form: str = "number") -> str:
    """A value as people read it, or that it was not measured."""
    if value is None or not np.isfinite(value):
        return "not measured"
    return {"signed": words.signed, "percent": words.percent, "number": words.number}[form](value)


def _control(found: Results) -> str:
    """The arm that others are held against; "": the plan has no control."""
    controls = found.plan.of("control")
    by_chance = [name for name in controls if found.plan.arm(name).strategy == CONTROL]
    return next(iter([*by_chance, *controls]), "")


def _estimate(values: Floats, rng: np.random.Generator) -> Estimate | None:
    """Mean of `values` [seeds] that are numbers, with a bootstrap interval over runs."""
    there = values[np.isfinite(values)]
    if not len(there):
        return None
    if len(there) == 1:
        return Estimate(float(there[0]), None, None, 1)
    low, high = statistics.bootstrap(lambda a: float(a.mean()), there[None, :], rng)
    return Estimate(float(there.mean()), low, high, len(there))


def _league(
    found: Results, runs: Mapping[str, Sequence[Summary]], control: str, rng: np.random.Generator
) -> Iterator[Standing]:
    """Every arm, the best first: by the final check, else by the best score."""
    rows = [_standing(found, runs[arm], arm, control, rng) for arm in found.arms]

    def place(row: Standing) -> tuple[float, float]:
        values = (row.final, row.best)
        first, second = (found.sign * v.value if v else np.inf for v in values)
        return first, second

    return iter(sorted(rows, key=place))


def _standing(
    found: Results, runs: Sequence[Summary], arm: str, control: str, rng: np.random.Generator
) -> Standing:
    row = found.arms.index(arm)
    final = found.final[row]
    there = final[np.isfinite(final)]
    return Standing(
        index=row,
        arm=found.plan.arm(arm),
        runs=len(runs),
        final=_estimate(final, rng),
        gain=_estimate(found.over_baseline(arm), rng),
        best=_estimate(found.best[row, :, -1], rng),
        area=_estimate(statistics.area(found.best)[row], rng),
        iqm=statistics.iqm(there) if len(there) else None,
        chance=_chance(found, arm, control, rng),
        valid=_rate(runs, lambda run: run.proposed - run.failed),
        kept=_rate(runs, lambda run: run.kept),
        crashed=_rate(
            runs,
            lambda run: sum(
                isinstance(t.outcome, Crashed | TimedOut | Stopped) for t in run.trials
            ),
        ),
    )  # fmt: skip


def _rate(runs: Sequence[Summary], count: Any) -> Rate:
    return Rate(sum(map(count, runs)), sum(run.proposed for run in runs))


def _chance(found: Results, arm: str, control: str, rng: np.random.Generator) -> Estimate | None:
    """The chance that a run of `arm` ends better than one of `control`, at the plan's endpoint."""
    if not control or arm == control:
        return None
    values = -found.sign * found.endpoint()
    ours, theirs = (values[found.arms.index(name)] for name in (arm, control))
    both = statistics.complete(ours, theirs)
    if not both.any():
        return None
    pair = np.stack([ours[both], theirs[both]])

    def chance(scores: Floats) -> float:
        return statistics.improvement_probability(scores[0], scores[1])

    n = int(both.sum())
    low, high = statistics.bootstrap(chance, pair, rng) if n > 1 else (None, None)
    return Estimate(chance(pair), low, high, n)


def _tab(
    found: Results,
    resource: Resource,
    name: str,
    arms: Sequence[tuple[str, Role]],
    rng: np.random.Generator,
) -> Tab:
    view = results.view(found, resource)
    if len(view.at) < 2 or view.at[-1] <= 0:
        why = {
            "tokens": "no run that is complete asked a brain",
            "dollars": "no reply has a known price",
        }.get(resource, "no run is complete yet")
        return Tab(resource, name, view.unit, None, why)
    x = plots.axis(view.at, resource == "trials", resource == "trainer_seconds")
    plot = plots.best_so_far(view.at, view.best, arms, x, rng)
    unit = f"{x.unit} of training" if x.unit else view.unit
    return Tab(resource, name, unit, plot, "" if plot else "no run is complete yet")


def _profile(found: Results, arms: Sequence[tuple[str, Role]]) -> plots.Plot | None:
    """Share of an arm's runs that end at each score of the plan's endpoint or better."""
    scores = -found.sign * found.endpoint()
    known = scores[np.isfinite(scores)]
    if len(known) < 2:
        return None
    levels = statistics.thresholds(known)
    shares: list[tuple[Floats, int] | None] = []
    for row in scores:
        there = row[np.isfinite(row)]
        # At or above: rliable's profile counts what is above, which leaves the best run out.
        share = statistics.profile(there[None, :], np.nextafter(levels, -np.inf))[0]
        shares.append((share[:: -found.sign], len(there)) if len(there) else None)
    return plots.profiles((-found.sign * levels)[:: -found.sign], shares, arms)


def _pairs(found: Results, contrasts: Sequence[Contrast]) -> plots.Pairs | None:
    """The primary contrast, seed by seed."""
    primary = next((contrast for contrast in contrasts if contrast.primary), None)
    if primary is None or primary.against not in found.arms:
        return None
    values = found.endpoint()
    before, after = (values[found.arms.index(a)] for a in (primary.against, primary.arm))
    return plots.pairs(primary.against, primary.arm, found.seeds, before, after, found.sign)


def _bills(runs: Mapping[str, Sequence[Summary]], prices: costs.CostsArgs) -> Iterator[Bill]:
    """One row an arm that proposed anything; its runs weigh by their proposals."""
    for arm, of_arm in runs.items():
        rows = costs.costs(list(of_arm), prices)
        n = sum(row.n for row in rows)
        if not n:
            continue

        def mean(name: str, rows: list[costs.Cost] = rows, n: int = n) -> float:
            return float(sum(getattr(row, name) * row.n for row in rows) / n)

        tokens = mean("tokens")
        yield Bill(
            arm, n, tokens, mean("brain_seconds"), mean("trainer_seconds"),
            mean("api") if tokens else None, all(row.paid for row in rows),
            mean("own"), mean("rented"),
        )  # fmt: skip


def _spreads(runs: Mapping[str, Sequence[Summary]]) -> Iterator[Spread]:
    """Noise of one run, pooled over codes; what several runs share counts once."""
    measured = [m for of_arm in runs.values() for run in of_arm for m in run.measurements]
    seen = {
        "the judges' repeats on other training seeds": noise.scores(measured),
        "the final checks, on fresh seeds": noise.scores(measured, (FINAL,)),
    }
    for where, groups in seen.items():
        found = noise.estimate([list(values.values()) for values in groups.values()])
        if found is not None:
            yield Spread(where, found)


def _versions(runs: Mapping[str, Sequence[Summary]]) -> dict[str, str]:
    """What the runs were made with; several values are listed."""
    found: dict[str, set[str]] = {}
    for of_arm in runs.values():
        for run in of_arm:
            for name, version in dict(run.info.get("versions", {})).items():
                found.setdefault(str(name), set()).add(str(version))
    return {name: ", ".join(sorted(values)) for name, values in found.items()}
