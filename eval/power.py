"""`power`: how many paired seeds an effect needs, by simulating the test that will be used.

The test is the two-sided sign-flip test at 0.05, exact for few pairs: with five of them no p-value
is below 0.0625, so that fewer than six never find anything, however large the effect.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval import results as executed
from eval.plan import BEST_PROMPTING, RECORD, Endpoint
from eval.results import Results, best_prompting
from eval.statistics import Floats, area, sign_flips
from eval.summary import Summary, improvement, summarise
from eval.words import count, number
from loop import flags
from loop.errors import UsageError
from loop.flags import flag

ALPHA, GOAL = 0.05, 0.8
REPETITIONS, DRAWS, EXACT = 2_000, 2_000, 14
MOST = 200
ENDPOINTS = ("final", "best", "auc")
LEAST = 3
"""Differences from which a standard deviation is taken."""


@dataclass(frozen=True)
class PowerArgs:
    """How many paired seeds are needed to find an effect four times out of five."""

    folders: tuple[Path, ...] = flag(
        (), "an executed plan, or pilot runs, that tell the spread; else give --sd", positional=True
    )
    effect: float = flag(0.0, "the gain to be found, in the metric's unit; 0: the plan's smallest")
    sd: float = flag(0.0, "standard deviation of the difference of a pair, in the same unit")
    endpoint: str = flag("", "of runs: final, best or auc; the plan's, or best", choices=ENDPOINTS)
    most: int = flag(MOST, "seeds to look at, at most")
    seed: int = flag(0, "of the simulation")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sd) and self.sd >= 0):
            raise UsageError(f"--sd is {self.sd:g}: write a number above 0")
        if not (math.isfinite(self.effect) and self.effect >= 0):
            raise UsageError(f"--effect is {self.effect:g}: write a number above 0")
        if bool(self.sd) == bool(self.folders):
            raise UsageError("give --sd, or folders of runs that tell it (not both)")
        if self.sd and not self.effect:
            raise UsageError("--sd needs --effect: how large a gain is to be found?")
        if self.most < 2:
            raise UsageError(f"--most is {self.most}, below 2")


@dataclass(frozen=True)
class Spread:
    """How far the differences of pairs scatter. `gains` [n]: those it was taken from, or none, then
    noise is taken for normal. `said`: where it comes from, in a phrase."""

    sd: float
    gains: Floats
    said: str


def run(argv: Sequence[str]) -> int:
    """The verb `power`. Raises UsageError, LedgerError."""
    from rich.console import Console

    args = flags.parse("power", PowerArgs, argv)
    spread, effect = _known(args)
    rows = table(effect, spread, np.random.default_rng(args.seed), args.most)
    console = Console()
    console.print(
        f"gain {number(effect)}; standard deviation of a pair's difference {number(spread.sd)} "
        f"({spread.said}); two-sided sign-flip test at {ALPHA:g}, {REPETITIONS:,} simulations each",
        highlight=False, markup=False,
    )  # fmt: skip
    console.print(_table(rows))
    console.print(conclusion(rows, args.most), highlight=False)
    return 0


def power(
    effect: float, spread: Spread, n: int, rng: np.random.Generator, repetitions: int = REPETITIONS
) -> float:
    """How often the test finds `effect` with `n` pairs: the share of `repetitions` with p <= 0.05
    and the right sign.

    Differences are `effect` plus noise: normal with the standard deviation of `spread`, or, from
    `LEAST` times `LEAST` recorded differences on, drawn from those (their mean taken off).
    """
    if len(spread.gains) >= LEAST**2:
        noise = rng.choice(spread.gains - spread.gains.mean(), (repetitions, n))
        noise *= spread.sd / (np.std(spread.gains) or 1.0)
    else:
        noise = rng.normal(0.0, spread.sd, (repetitions, n))
    gains = effect + noise
    p = sign_flips(gains, rng, DRAWS, EXACT)
    return float(((p <= ALPHA) & (gains.mean(axis=1) > 0)).mean())


def table(
    effect: float, spread: Spread, rng: np.random.Generator, most: int = MOST
) -> list[tuple[int, float]]:
    """(n, power) for growing n, to the first that reaches 80 %, or to `most`."""
    rows: list[tuple[int, float]] = []
    for n in _sizes(most):
        rows.append((n, power(effect, spread, n, rng)))
        if rows[-1][1] >= GOAL:
            break
    if len(rows) > 1 and rows[-1][1] >= GOAL:  # between the last two sizes, if there are any
        for n in range(rows[-2][0] + 1, rows[-1][0]):
            if (found := power(effect, spread, n, rng)) >= GOAL:
                return [*rows[:-1], (n, found)]
    return rows


def needed(effect: float, sd: float, rng: np.random.Generator, most: int = MOST) -> int | None:
    """Pairs that find `effect` four times out of five; None: more than `most`."""
    n, found = table(effect, Spread(sd, np.empty(0), ""), rng, most)[-1]
    return n if found >= GOAL else None


def conclusion(rows: Sequence[tuple[int, float]], most: int) -> str:
    """What the table says, in a sentence."""
    n, found = rows[-1]
    if found >= GOAL:
        return f"{n} paired seeds find it four times out of five ({found:.0%})."
    return (
        f"Even {n} paired seeds find it {found:.0%} of the time: look for a larger effect, "
        "lessen the noise (longer runs, more final seeds), or look beyond with --most"
    )


def of_results(results: Results, endpoint: Endpoint | None = None) -> Spread:
    """The spread of the primary contrast's pairs, in the pilot if there is one.

    Raises UsageError for too few pairs.
    """
    arm, against = results.plan.primary.arm, results.plan.primary.against
    source = results.pilot or results
    if against == BEST_PROMPTING:
        found, said = best_prompting(results)
        if found is None:
            raise UsageError(f"no rival of {arm} is known: {said}; or give --sd and --effect")
        against = found
    gains = source.gains(arm, against, endpoint)
    if len(gains) < LEAST and source is not results:
        source, gains = results, results.gains(arm, against, endpoint)
    which = "pilot" if source is results.pilot else "plan"
    if len(gains) < LEAST:
        raise UsageError(
            f"{count(len(gains), 'pair')} of {arm} and {against} tell no spread: "
            f"{LEAST} do; or give --sd and --effect"
        )
    said = f"{count(len(gains), 'pair')} of {arm} and {against} in the {which}"
    return Spread(float(np.std(gains, ddof=1)), gains, said)


def of_runs(summaries: Sequence[Summary], endpoint: str) -> Spread:
    """The spread by pilot runs: of pairs that share a seed where there are two arms, else of one
    arm's runs, times the root of two, as if arms shared nothing. Raises UsageError."""
    arms: dict[str, dict[int, float]] = defaultdict(dict)
    for summary in summaries:
        if (gain := _gain(summary, endpoint)) is not None:
            arms[summary.arm][int(summary.info.get("seed", 0))] = gain
    names = list(arms)
    if len(names) > 2:
        raise UsageError(f"runs of {len(names)} arms ({', '.join(names)}): give those of two")
    if len(names) == 2:
        first, second = (arms[name] for name in names)
        gains = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second)])
        said = f"{count(len(gains), 'pair')} of {' and '.join(names)}"
        scale = 1.0
    else:
        gains = np.array(list(next(iter(arms.values()), {}).values()))
        said = f"{count(len(gains), 'run')} of one arm, times the root of 2"
        scale = math.sqrt(2)
    if len(gains) < LEAST:
        raise UsageError(f"{said} with a score tell no spread: {LEAST} or more seeds do")
    spread = float(np.std(gains, ddof=1)) * scale
    return Spread(spread, gains if scale == 1 else np.empty(0), said)


def _gain(summary: Summary, endpoint: str) -> float | None:
    """A run's endpoint as a gain over its baseline; None: it has none."""
    if endpoint == "final":
        if (check := summary.final) is not None:
            return check.gain
        return 0.0 if summary.best_trial == 0 else None
    if endpoint == "best" or summary.baseline is None:
        return summary.gain
    base = summary.baseline
    gains = [improvement(base, m) for m in summary.best_so_far if m is not None]
    return float(area(gains)) if len(gains) > 1 else None


def _known(args: PowerArgs) -> tuple[Spread, float]:
    if args.sd:
        return Spread(args.sd, np.empty(0), "as given"), args.effect
    if len(args.folders) == 1 and (args.folders[0] / RECORD).exists():
        results = executed.load(args.folders[0])
        endpoint: Endpoint | None = args.endpoint or None  # type: ignore[assignment]
        spread = of_results(results, endpoint)
        effect = args.effect or results.plan.primary.smallest_effect
    else:
        spread = of_runs([summarise(folder) for folder in args.folders], args.endpoint or "best")
        effect = args.effect
    if not effect:
        raise UsageError("--effect is needed: how large a gain is to be found?")
    if not spread.sd:
        raise UsageError(f"{spread.said}: all the same, so that they tell no spread; give --sd")
    return spread, effect


def _sizes(most: int) -> list[int]:
    """Numbers of pairs that are looked at: all to 20, then steps of a tenth."""
    sizes = list(range(5, min(most, 20) + 1)) or [most]
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, math.ceil(sizes[-1] * 1.1))))
    return sizes


def _table(rows: Sequence[tuple[int, float]]) -> object:
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("pairs", justify="right")
    result.add_column("power", justify="right")
    for n, found in rows:
        result.add_row(f"{n}", f"{found:.0%}")
    return result
