"""The folder of an executed plan -> Results: arrays over arms and seeds, and what was left out.

Only what is comparable gets in: the same code at the start, the same target, budget and judge, the
plan's own settings, as many trials as the plan says. Whatever is not is left out, and a sentence
says so.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval import plan as plans
from eval import statistics
from eval.plan import Arm, Endpoint, Fixed, Plan
from eval.summary import Summary, of_records
from eval.words import count
from loop.caps import tokens_of
from loop.errors import LedgerError
from loop.final import PURPOSE, fresh_seeds
from loop.ledger import LEDGER, read
from loop.position import Position
from loop.start import read_run_toml
from loop.trial import Json, Measurement, Reason, Record, Rejected, Reply, Scored

Floats = NDArray[np.float64]
Resource = Literal["trials", "tokens", "trainer_seconds", "dollars"]
RUNS = "runs"
PROBLEMS = "problems.json"
"""What stopped a run that is not complete: {"arm/seed": a line}."""
POINTS = 60
UNITS = {"trials": "trials", "tokens": "tokens read and written",
         "trainer_seconds": "seconds of training", "dollars": "dollars"}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A plan's runs. All values are in the metric's unit; NaN: not measured.

    `arms`, `seeds`: what the axes of the arrays mean; seeds of the pilot are not among them, but in
    `pilot`, which has the same shape. `runs`: every comparable run that has a baseline, finished or
    not. `best` [arms, seeds, trials + 1]: best score kept after each trial, from the baseline on; a
    run that ended because nothing was left to propose keeps its last. `baseline` [arms, seeds]: the
    baseline's score on the run's seed. `final` and `final_baseline` [arms, seeds]: mean over the
    run's fresh seeds of the incumbent's and of the baseline's score in the final check; where the
    incumbent is the baseline the two are equal. `untouched`: was it on text that no run reads
    before? `left_out`: sentences.
    """

    plan: Plan
    fixed: Fixed
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: dict[tuple[str, int], Summary]
    metric: str
    direction: Literal["min", "max"]
    best: Floats
    baseline: Floats
    final: Floats
    final_baseline: Floats
    untouched: bool
    left_out: tuple[str, ...]
    pilot: "Results | None" = None

    @property
    def sign(self) -> int:
        """Times a fall of the metric is a gain: 1 where lower is better, else -1."""
        return 1 if self.direction == "min" else -1

    def endpoint(self, kind: Endpoint | None = None) -> Floats:
        """[arms, seeds] of the endpoint `kind`, or of the plan's; NaN: the run lacks it."""
        match kind or self.plan.primary.endpoint:
            case "best":
                return np.asarray(self.best[..., -1])
            case "auc":
                return statistics.area(self.best)
        return self.final

    def gains(self, arm: str, against: str, kind: Endpoint | None = None) -> Floats:
        """[n]: how much better `arm` is than `against`, seed by seed that both have."""
        values = self.endpoint(kind)
        ours, theirs = (values[self.arms.index(name)] for name in (arm, against))
        return np.asarray((self.sign * (theirs - ours))[statistics.complete(ours, theirs)])

    def over_baseline(self, arm: str) -> Floats:
        """[n]: how much better the incumbent is than the baseline, in the final check."""
        row = self.arms.index(arm)
        ours, theirs = self.final[row], self.final_baseline[row]
        return np.asarray((self.sign * (theirs - ours))[statistics.complete(ours, theirs)])


@dataclass(frozen=True)
class View:
    """Best-so-far as a function of what was spent of `resource`.

    `at` [points]: amounts spent, from 0 to the least that any arm's runs spent in the end, so that
    every run is there at every point. `best` [arms, seeds, points] in the metric's unit; NaN rows:
    the arm's spending is not known (an API without a known price) or the run is not complete. An
    arm that spends none of it (a control asks no brain) has its end result at every point.
    """

    resource: Resource
    unit: str
    at: Floats
    best: Floats


@dataclass
class _Run:
    """A run as it lies on the disk. `why`: what it lacks to be complete; "": nothing."""

    summary: Summary
    position: Position
    why: str
    lacks_trials: bool
    final: dict[int, list[float]] = field(default_factory=dict)
    untouched: bool = True


def load(out: Path) -> Results:
    """The results of the plan executed in `out`, however far it is. Raises UsageError: no plan."""
    record = plans.fixed(out)
    said = _plan_changed(record)
    runs, more = _comparable(out, record)
    results = _arrays(record, record.plan.seeds, runs, (*said, *more))
    if not record.plan.pilot_seeds:
        return results
    pilot = _arrays(record, record.plan.pilot_seeds, runs, ())
    return Results(**vars(results) | {"pilot": pilot})


def standing(folder: Path, plan: Plan, arm: Arm, seed: int) -> tuple[int, str]:
    """(trials that the run in `folder` has, what it lacks to be the plan's; "": nothing)."""
    try:
        run = _read(folder, plan, seed)
    except LedgerError as error:
        return 0, str(error) if (folder / LEDGER).exists() else "was not run"
    said = disagreement(run.summary.info, plan, arm, seed)
    return len(run.summary.trials[1:]), f"was run with {said}" if said else run.why


def disagreement(info: Json, plan: Plan, arm: Arm, seed: int) -> str:
    """How a run's run.toml differs from what the plan says of it, in a phrase; "": it does not."""
    recorded = info.get("args", {})
    said = plans.asked(plan, arm, seed)
    free = {"trials", "final_seeds"} | ({"brain"} if arm.adapter else set())
    differ = [f"{key} {recorded.get(key)!r} and not {value!r}" for key, value in said.items()
              if key not in free and recorded.get(key) != value]  # fmt: skip
    return ", ".join(differ)


def view(results: Results, resource: Resource, points: int = POINTS) -> View:
    """Best-so-far at equal spending of `resource`, over the complete runs (see View)."""
    shape = results.best.shape[:2]
    spent: dict[tuple[int, int], Floats] = {}
    for row, arm in enumerate(results.arms):
        for column, seed in enumerate(results.seeds):
            summary = results.runs.get((arm, seed))
            if summary is not None and np.isfinite(results.best[row, column]).all():
                spent[row, column] = spending(summary, resource)
    ends = [costs[-1] for costs in spent.values() if np.isfinite(costs[-1]) and costs[-1] > 0]
    end = min(ends, default=0.0)
    at = np.linspace(0, end, points) if resource != "trials" else np.arange(end + 1)
    best = np.full((*shape, len(at)), np.nan)
    for (row, column), costs in spent.items():
        curve = results.best[row, column]
        if costs[-1] == 0:
            best[row, column] = curve[-1]
        elif np.isfinite(costs[-1]):
            ids = [t.id for t in results.runs[results.arms[row], results.seeds[column]].trials]
            best[row, column] = statistics.at_spending(curve[ids], costs, at)
    return View(resource, UNITS[resource], at, best)


def spending(summary: Summary, resource: Resource) -> Floats:
    """What a run had spent of `resource` after each of its trials, the baseline first: [trials].

    Every reply counts, also those that a vote did not choose. Dollars are what the brain's API
    took: NaN where a reply has no known price.
    """
    if resource == "trials":
        return np.arange(len(summary.trials), dtype=float)
    if resource == "trainer_seconds":
        return np.asarray(summary.spent, float)

    def cost(reply: Reply) -> float:
        if resource == "tokens":
            return tokens_of(reply)
        return np.nan if reply.dollars is None else reply.dollars

    each = [sum(cost(reply) for call in trial.proposal.calls for reply in call.replies)
            for trial in summary.trials]  # fmt: skip
    return np.cumsum(np.asarray(each, float))


def best_prompting(results: Results) -> tuple[str | None, str]:
    """The prompting arm that the primary contrast is held against, and how it came to be that one.

    The best at the plan's endpoint over the pilot's seeds, which then decide nothing else; the only
    one needs no pilot. None: the pilot does not tell.
    """
    rivals = [name for name in results.plan.of("prompting") if name != results.plan.primary.arm]
    if len(rivals) == 1:
        return rivals[0], f"{rivals[0]} is the only prompting arm"
    pilot = results.pilot
    if pilot is None:
        return None, "no pilot chose among the prompting arms"
    rows = {name: pilot.endpoint()[pilot.arms.index(name)] for name in rivals}
    rows = {name: row for name, row in rows.items() if np.isfinite(row).any()}
    if not rows:
        return None, "no prompting arm has a complete run in the pilot"
    shared = statistics.complete(*rows.values())
    if not shared.any():
        return None, "the prompting arms share no complete seed of the pilot"
    means = {name: pilot.sign * float(row[shared].mean()) for name, row in rows.items()}
    best = min(means, key=lambda name: means[name])
    said = f"{best} was the best of {count(len(rows), 'prompting arm')} on " + count(
        int(shared.sum()), "pilot seed"
    )
    if missing := [name for name in rivals if name not in rows]:
        said += f" ({', '.join(missing)} not measured there)"
    return best, said


def problems(out: Path) -> dict[str, str]:
    """What stopped the runs that are not complete: "arm/seed" -> a line."""
    try:
        found = json.loads((out / PROBLEMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(line) for key, line in found.items()}


def _plan_changed(record: Fixed) -> list[str]:
    return [
        f"The plan of {record.at} was changed on {a.at}, after {a.trials:,} trials "
        f'({"; ".join(a.changes)}), because: "{a.why}".'
        for a in record.amendments
    ]


def _comparable(out: Path, record: Fixed) -> tuple[dict[tuple[str, int], _Run], list[str]]:
    """Every run that may stand beside the others, and a sentence on whatever may not."""
    plan, known = record.plan, problems(out)
    runs: dict[tuple[str, int], _Run] = {}
    why: dict[tuple[str, int], str] = {}
    for seed in (*plan.pilot_seeds, *plan.seeds):
        for arm in plan.arms:
            key, folder = (arm.name, seed), out / RUNS / arm.name / str(seed)
            try:
                found = _read(folder, plan, seed)
                if said := disagreement(found.summary.info, plan, arm, seed):
                    why[key] = f"was run with {said}"
                elif not found.position.trials or found.position.trials[-1].id > plan.trials:
                    why[key] = found.why
                else:
                    runs[key] = found
                    why[key] = found.why
            except LedgerError as error:
                missing = not (folder / LEDGER).exists()
                line = str(error).replace(f"{out}/", "")
                why[key] = "was not run" if missing else f"cannot be read ({line})"
            if why[key] and (note := known.get(f"{arm.name}/{seed}")):
                why[key] += f" ({note})"
    for what, of in _SAME.items():
        for key, said in _odd(runs, what, of):
            del runs[key]
            why[key] = said
    for arm_name in (arm.name for arm in plan.arms):
        ours = {key: run for key, run in runs.items() if key[0] == arm_name}
        for key, said in _odd(ours, "brain's weights", _weights):
            del runs[key]
            why[key] = said
    return runs, [*_sentences(plan, why), *_notices(runs)]


_SAME: dict[str, Callable[[Summary], Hashable]] = {
    "metric": lambda s: _metric(s)[:2],
    "target": lambda s: repr(s.target),
    "code at the start": lambda s: _start(s),
}
"""What runs must share to be compared."""


def _odd(
    runs: dict[tuple[str, int], _Run], what: str, of: Callable[[Summary], Hashable]
) -> list[tuple[tuple[str, int], str]]:
    """Runs that differ in `of` from most, each with what to say of it."""
    values = {key: of(run.summary) for key, run in runs.items()}
    if len(set(values.values())) < 2:
        return []
    usual = Counter(values.values()).most_common(1)[0][0]
    return [(key, f"differs from the other runs in its {what}")
            for key, value in values.items() if value != usual]  # fmt: skip


def _metric(summary: Summary) -> tuple[str, Literal["min", "max"]]:
    assert summary.trials, "a comparable run has a baseline"
    outcome = summary.trials[0].outcome
    assert isinstance(outcome, Scored), "a baseline has a score"
    return outcome.metric.name, outcome.metric.direction


def _start(summary: Summary) -> str:
    edit = summary.trials[0].proposal.edit
    return edit.code_hash if edit else ""


def _weights(summary: Summary) -> tuple[str, ...]:
    return tuple(sorted({t.proposal.model_digest for t in summary.trials[1:]} - {""}))


def _read(folder: Path, plan: Plan, seed: int) -> _Run:
    """The run of the plan in `folder`. Raises LedgerError."""
    if not (folder / LEDGER).exists():
        raise LedgerError(f"{folder} has no ledger")
    records = list(read(folder))
    position = Position()
    for record in records:
        position.add(record)
    info = read_run_toml(folder)
    run = _Run(of_records(records, info, folder.name), position, "", False)
    if not position.trials:
        run.why, run.lacks_trials = "has no baseline", True
        return run
    last = position.trials[-1]
    ended = isinstance(last.outcome, Rejected) and last.outcome.reason is Reason.NOTHING_LEFT
    if last.id > plan.trials:
        run.why = f"has {last.id:,} trials where the plan has {plan.trials:,}"
    elif last.id < plan.trials and not ended:
        run.why = f"has {last.id:,} of {plan.trials:,} trials so far"
    run.lacks_trials = bool(run.why)
    if not run.why and plan.final_seeds:
        run.why = _check(run, fresh_seeds(seed, plan.final_seeds), records)
    return run


def _check(run: _Run, seeds: list[int], records: Iterable[Record]) -> str:
    """Take in the final check of the incumbent and the baseline; what is wrong with it, if it is.

    A run that kept nothing is its baseline: that is its final result, measured on the same seeds.
    """
    who = sorted({0, run.position.kept[-1]})
    found = {(r.trial, r.seed): r.outcome for r in records
             if isinstance(r, Measurement) and r.purpose == PURPOSE}  # fmt: skip
    for trial in who:
        outcomes = [found.get((trial, seed)) for seed in seeds]
        if None in outcomes:
            return "is not through its final check"
        scored = [o for o in outcomes if isinstance(o, Scored) and np.isfinite(o.metric.value)]
        if len(scored) < len(seeds):
            lost = len(seeds) - len(scored)
            return f"gave no score on {lost} of {len(seeds)} seeds of the final check"
        run.final[trial] = [outcome.metric.value for outcome in scored]
        run.untouched &= all(o.measurements.get("metric_channel") == "test" for o in scored)
    return ""


def _arrays(
    record: Fixed, seeds: tuple[int, ...], runs: dict[tuple[str, int], _Run], said: Iterable[str]
) -> Results:
    plan, arms = record.plan, tuple(arm.name for arm in record.plan.arms)
    shape = (len(arms), len(seeds))
    best = np.full((*shape, plan.trials + 1), np.nan)
    baseline, final, start = (np.full(shape, np.nan) for _ in range(3))
    ours = {key: run for key, run in runs.items() if key[1] in seeds}
    for (arm, seed), run in ours.items():
        at = arms.index(arm), seeds.index(seed)
        best[at] = _curve(run, plan.trials)
        baseline[at] = run.summary.baseline.value if run.summary.baseline else np.nan
        if run.final and not run.why:
            start[at] = np.mean(run.final[0])
            final[at] = np.mean(run.final[run.position.kept[-1]])
    first = next(iter(runs.values()), None)
    metric, direction = _metric(first.summary) if first else ("the metric", "min")
    return Results(
        plan, record, arms, seeds, {key: run.summary for key, run in ours.items()},
        metric, direction, best, baseline, final, start,
        untouched=any(run.final for run in ours.values())
        and all(run.untouched for run in ours.values()),
        left_out=tuple(said),
    )  # fmt: skip


def _curve(run: _Run, trials: int) -> Floats:
    """[trials + 1]: best so far after each trial; a gap in the ids repeats the one before."""
    curve = np.full(trials + 1, np.nan)
    known = {trial.id: metric.value for trial, metric in
             zip(run.summary.trials, run.summary.best_so_far, strict=True) if metric}  # fmt: skip
    value = np.nan
    for number in range((run.position.trials[-1].id if run.lacks_trials else trials) + 1):
        value = known.get(number, value)
        curve[number] = value
    return curve


def _sentences(plan: Plan, why: dict[tuple[str, int], str]) -> list[str]:
    """Missing runs, an arm's alike ones in one sentence."""
    grouped: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for (arm, seed), said in why.items():
        if said:
            grouped[arm, said, seed in plan.pilot_seeds].append(seed)
    found = []
    for (arm, said, pilot), seeds in grouped.items():
        kind = "pilot seed" if pilot else "seed"
        names = f"{kind}{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        found.append(f"{arm}, {names}: left out, as it {said}.")
    for name in (arm.name for arm in plan.arms):
        if all(why[name, seed] for seed in plan.seeds):
            found.append(f"{name} has no complete run: this arm is not measured.")
    return found


def _notices(runs: dict[tuple[str, int], _Run]) -> list[str]:
    """What runs may differ in and a reader should know."""
    found = []
    versions: dict[str, set[str]] = defaultdict(set)
    for run in runs.values():
        for name, value in dict(run.summary.info.get("versions", {})).items():
            versions[name].add(str(value))
    for name, values in versions.items():
        if len(values) > 1:
            found.append(f"Runs were made with different {name}: {', '.join(sorted(values))}.")
    if any(run.final and not run.untouched for run in runs.values()):
        found.append("The target keeps no text aside: the final check has fresh seeds alone.")
    events = (event for run in runs.values() for event in run.summary.events)
    places = {
        ", ".join(map(str, event.data.values())) for event in events if event.name == "placed"
    }
    if len(places) > 1:
        found.append(f"Runs were made on different machines: {'; '.join(sorted(places))}.")
    return found
