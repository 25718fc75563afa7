"""Results -> the four answers that the project exists for, each with its number and its test.

A question that was not measured is said to be that. A "no" is written as plainly as a "yes".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from eval import power, statistics
from eval.plan import BEST_PROMPTING, Plan
from eval.results import Results, best_prompting
from eval.statistics import Floats
from eval.words import count, number, plain, signed
from loop.rate import wilson

Verdict = Literal["yes", "no", "undecided", "not measured"]
ALPHA = 0.05
LEAST_PAIRS = 8
"""Paired seeds below which a contrast decides nothing."""
LEAST_FAILURES = 10
"""Failed proposals below which nothing is said of their kind."""
TEST = "exact paired sign-flip test"
GENUINE = "Does the local model ever produce a genuine improvement, or does it drift?"
SCAFFOLD = "Which scaffolding closes most of the gap to the frontier baseline?"
FAILURE = "Is there a consistent failure mode?"
ADAPTER = "Does the adapter beat prompting?"


@dataclass(frozen=True)
class Answer:
    """One question answered. `sentence`: in plain words. `number`, with its 95 % interval `low` to
    `high` in `unit`: what the answer rests on; None: there is none. `test`: name and p-value, or
    the kind of interval, as a phrase; "": none. `n`: pairs or runs that it rests on."""

    question: str
    verdict: Verdict
    sentence: str
    number: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    test: str = ""
    n: int = 0


@dataclass(frozen=True)
class Contrast:
    """Arm against arm over `n` seeds that both completed, at the plan's endpoint.

    `gain`: mean improvement of `arm` over `against`, positive where `arm` is better, with the 95 %
    interval that inverts the test (None: too few pairs for one). `p`: exact paired sign-flip test,
    two-sided; `p_holm`: corrected over all contrasts that are not `primary`, which needs none.
    """

    arm: str
    against: str
    primary: bool
    n: int
    gain: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None

    @property
    def ahead(self) -> bool:
        """Is `arm` better, after the correction?"""
        return self.p_holm is not None and self.p_holm <= ALPHA and (self.gain or 0.0) > 0

    @property
    def behind(self) -> bool:
        """Is `arm` worse, after the correction?"""
        return self.p_holm is not None and self.p_holm <= ALPHA and (self.gain or 0.0) < 0


def answers(results: Results, rng: np.random.Generator) -> tuple[Answer, Answer, Answer, Answer]:
    """The four, in the order of GENUINE, SCAFFOLD, FAILURE and ADAPTER."""
    return (
        genuine(results, rng),
        scaffold(results, rng),
        failure_mode(results),
        adapter(results, rng),
    )


def contrasts(results: Results, rng: np.random.Generator) -> tuple[Contrast, ...]:
    """The primary contrast first; then its arm against all others, and every other arm against the
    reference, Holm-corrected."""
    primary = results.plan.primary
    rival = best_prompting(results)[0] if primary.against == BEST_PROMPTING else primary.against
    found = []
    if rival is not None:
        found.append(contrast(results, primary.arm, rival, rng, primary=True))
    base = reference(results.plan)
    pairs = [(primary.arm, arm) for arm in results.arms if arm not in (primary.arm, rival)]
    pairs += [(arm, base) for arm in results.arms if arm not in (primary.arm, base)]
    others = [contrast(results, *pair, rng) for pair in pairs if set(pair) != {primary.arm, rival}]
    return (*found, *_corrected(others))


def contrast(
    results: Results, arm: str, against: str, rng: np.random.Generator, primary: bool = False
) -> Contrast:
    """One arm against another, at the plan's endpoint."""
    gains = results.gains(arm, against)
    if not len(gains):
        return Contrast(arm, against, primary, 0, None, None, None, None, None)
    low, high = statistics.flip_interval(gains, rng) or (None, None)
    p = statistics.sign_flip(gains, rng)
    return Contrast(arm, against, primary, len(gains), float(gains.mean()), low, high, p, None)


def reference(plan: Plan) -> str:
    """What arms are held against where nothing else is said: random edits, else a control, else
    the plainest prompt, else the first arm."""
    order = [arm.name for arm in plan.arms if arm.strategy == "random_edit"]
    order += [*plan.of("control"), *(a.name for a in plan.arms if a.strategy == "bare")]
    return (order or [plan.arms[0].name])[0]


def genuine(results: Results, rng: np.random.Generator) -> Answer:
    """Question 1: over runs, is what an arm ends with better than the baseline on fresh seeds?"""
    local = results.plan.of("prompting", "adapter")
    gains = {arm: found for arm in local if len(found := results.over_baseline(arm))}
    if not local:
        return Answer(GENUINE, "not measured", "The plan has no arm of a local model.")
    if not gains:
        return Answer(GENUINE, "not measured", "No run of a local model has its final check yet.")
    p = statistics.holm([statistics.sign_flip(found, rng) for found in gains.values()])
    arms = dict(zip(gains, (float(value) for value in p), strict=True))
    wins = [arm for arm in gains if arms[arm] <= ALPHA and gains[arm].mean() > 0]
    best = max(wins or gains, key=lambda arm: float(gains[arm].mean()))
    found, level = gains[best], arms[best]
    low, high = statistics.flip_interval(found, rng) or (None, None)
    answer = Answer(
        GENUINE, "undecided", "", float(found.mean()), low, high, results.metric,
        f"{TEST} over runs, p = {level:.2g}" + _holm_of(len(gains)), len(found),
    )  # fmt: skip
    text = "and untouched text" if results.untouched else "(the target keeps no text aside)"
    said = (
        f"what {best} ends with is better than the baseline by {signed(answer.number or 0.0)} on "
        f"fresh seeds {text}, in {int((found > 0).sum())} of {count(len(found), 'run')}"
        f"{_survived(results, best)}"
    )
    if wins:
        return replace(answer, verdict="yes", sentence=f"Yes: {said}.")
    intervals = [statistics.flip_interval(g, rng) for g in gains.values()]
    drifts = [arm for arm in gains if arms[arm] <= ALPHA and gains[arm].mean() < 0]
    smallest = results.plan.primary.smallest_effect
    if all(span is not None and span[1] < smallest for span in intervals) and _enough(gains):
        end = f"No: {said}; any gain is below the {smallest:g} that would matter."
        if drifts:
            end = f"No, it drifts: {', '.join(drifts)} ends worse than the baseline; {said}."
        return replace(answer, verdict="no", sentence=end)
    return replace(answer, sentence=f"Undecided: {said}. {_more(found, smallest, rng)}")


def scaffold(results: Results, rng: np.random.Generator) -> Answer:
    """Question 2: shares of the gap that local arms close; without a frontier, arm against arm."""
    plan = results.plan
    local = [arm for arm in plan.of("prompting", "adapter") if _measured(results, arm)]
    frontier = [arm for arm in plan.of("frontier") if _measured(results, arm)]
    if not frontier:
        lacks = "was not measured" if plan.of("frontier") else "is not in the plan"
        return _without_frontier(results, local, lacks, rng)
    base = reference(plan)
    endpoint = results.endpoint()
    rows = [endpoint[results.arms.index(arm)] for arm in (base, frontier[0])]
    arms = [arm for arm in local if arm != base]
    closed = {}
    for arm in arms:
        row = endpoint[results.arms.index(arm)]
        there = statistics.complete(row, *rows)
        closed[arm] = statistics.gap_closed(row[there], rows[0][there], rows[1][there], rng)
    if not any(gap.n for gap in closed.values()):
        return Answer(SCAFFOLD, "not measured", f"No local arm shares a seed with {frontier[0]}.")
    gap = max(closed.values(), key=lambda found: found.n)
    lead = -results.sign * gap.gap
    if not any(found.established for found in closed.values()) or lead < 0:
        said = f"No gap established: {frontier[0]} is better than {base} by {signed(lead)}, and "
        said += "the interval of that holds 0 or there are too few pairs for one."
        if gap.established:
            said = f"There is no gap: {frontier[0]} is worse than {base} by {signed(-lead)}."
        return Answer(
            SCAFFOLD, "no" if gap.established else "undecided", said, lead,
            *_turned(gap.gap_low, gap.gap_high, -results.sign),
            results.metric, "interval of the sign-flip test", gap.n,
        )  # fmt: skip
    shares = {arm: gap for arm, gap in closed.items() if gap.share is not None}
    best = max(shares, key=lambda arm: shares[arm].share or 0.0)
    verdict, order = _winner(results, best, local, rng)
    gap = shares[best]
    end = {"yes": "The order is settled", "no": "The arms do not differ by what matters"}
    sentence = (
        f"{best} closes {gap.share:.0%} of the gap between {base} and {frontier[0]}. "
        f"{end.get(verdict, 'Which arm is best is not settled')}: {order}."
    )
    return Answer(
        SCAFFOLD, verdict, sentence, gap.share, gap.low, gap.high, "share of the gap",
        "bootstrap over seeds; arms by sign-flip tests, Holm over all pairs", gap.n,
    )  # fmt: skip


def _without_frontier(
    results: Results, local: Sequence[str], lacks: str, rng: np.random.Generator
) -> Answer:
    said = f"A frontier baseline {lacks}, so there is no gap to close."
    if not local:
        return Answer(SCAFFOLD, "not measured", f"{said} Nor was any local arm measured.")
    base = reference(results.plan)
    endpoint = {arm: results.sign * float(np.nanmean(results.endpoint()[results.arms.index(arm)]))
                for arm in local}  # fmt: skip
    best = min(endpoint, key=lambda arm: endpoint[arm])
    found = contrast(results, best, base, rng)
    if best == base or found.gain is None:
        return Answer(SCAFFOLD, "not measured", f"{said} Of the local arms {best} ends best.")
    order = _winner(results, best, local, rng)[1]
    return Answer(
        SCAFFOLD, "not measured",
        f"{said} Of the local arms {best} ends best, {signed(found.gain)} better than {base}"
        f"{f' ({order})' if order else ''}.",
        found.gain, found.low, found.high, results.metric,
        f"{TEST} against {base}, p = {found.p:.2g}", found.n,
    )  # fmt: skip


def _winner(
    results: Results, best: str, arms: Sequence[str], rng: np.random.Generator
) -> tuple[Verdict, str]:
    """Is `best` better than each of the other `arms`? Holm over all pairs of arms, since the best
    was chosen on the same runs. The verdict, and what to say of the closest rival."""
    pairs = [contrast(results, a, b, rng) for a, b in combinations(arms, 2)]
    pairs = _corrected([pair for pair in pairs if pair.p is not None])
    ours = [_seen_from(pair, best) for pair in pairs if best in (pair.arm, pair.against)]
    if not ours:
        return "undecided", "there is no other local arm to compare it with"
    closest = max(ours, key=lambda pair: pair.p_holm or 0.0)
    said = (
        f"closest is {closest.against}, {signed(closest.gain or 0.0)} behind it, p = "
        f"{closest.p_holm or 0.0:.2g} after Holm over {count(len(pairs), 'pair')} of arms, "
        f"n = {closest.n}"
    )
    if all((pair.p_holm or 0.0) <= ALPHA and (pair.gain or 0.0) > 0 for pair in ours):
        return "yes", said
    smallest = results.plan.primary.smallest_effect
    highs = [pair.high for pair in ours if pair.n >= LEAST_PAIRS and pair.high is not None]
    if len(highs) == len(ours) and max(highs) < smallest:
        return "no", said
    return "undecided", said


def failure_mode(results: Results) -> Answer:
    """Question 3: is one reason more than half of what goes wrong, in every local arm?"""
    try:
        from eval.failures import shares
    except ImportError:
        return Answer(FAILURE, "not measured", "Failures were not analysed.")
    local = results.plan.of("prompting", "adapter")
    found = {arm: counts for arm, counts in shares(results).items() if arm in local}
    proposed = sum(max((n for _, n in counts.values()), default=0) for counts in found.values())
    if not found or not any(results.runs.get((arm, s)) for arm in found for s in results.seeds):
        return Answer(FAILURE, "not measured", "No arm of a local model has run yet.")
    totals: dict[str, int] = {}
    for counts in found.values():
        for reason, (hits, _) in counts.items():
            totals[reason] = totals.get(reason, 0) + hits
    failed = sum(totals.values())
    if failed < LEAST_FAILURES:
        few = f"Only {count(failed, 'proposal')}" if failed else "No proposal"
        said = f"{few} failed, too few to speak of a mode."
        return Answer(FAILURE, "undecided", said, unit="share of failures", n=failed)
    top = max(totals, key=lambda reason: totals[reason])
    share, (low, high) = totals[top] / failed, wilson(totals[top], failed)
    leads = [arm for arm, counts in found.items() if counts and _first(counts) == top]
    with_any = [arm for arm, counts in found.items() if counts]
    everywhere = len(leads) == len(with_any)
    said = (
        f'"{plain(top)}" is {share:.0%} of {failed:,} failed proposals (of {proposed:,} from arms '
        f"that had any), and the most frequent failure in {len(leads)} of "
        f"{count(len(with_any), 'arm')} that failed at all"
    )
    verdict: Verdict = "undecided"
    if low > 0.5 and everywhere:
        verdict, said = "yes", f"Yes: {said}."
    elif high < 0.5 or not everywhere:
        verdict, said = "no", f"No single one: {said}."
    else:
        said = f"Undecided: {said}."
    test = "Wilson interval over proposals, taken as independent"
    return Answer(FAILURE, verdict, said, share, low, high, "share of failures", test, failed)


def adapter(results: Results, rng: np.random.Generator) -> Answer:
    """Question 4: the one primary contrast, fixed beforehand.

    "yes" asks for more: that no other prompting arm that was run is as good as the adapter. A rival
    that was chosen badly would otherwise make a specialist of anything.
    """
    plan, primary = results.plan, results.plan.primary
    if plan.arm(primary.arm).role != "adapter":
        said = "The primary contrast of the plan is not one of an adapter"
        return Answer(ADAPTER, "not measured", f"{said}: {primary.arm} is none.")
    rival, how = primary.against, "fixed in the plan"
    if primary.against == BEST_PROMPTING:
        found, how = best_prompting(results)
        if found is None:
            return Answer(ADAPTER, "not measured", f"There is no rival: {how}.")
        rival = found
    if plan.arm(rival).role not in ("prompting", "frontier"):
        return Answer(ADAPTER, "not measured", f"{rival}, its rival in the plan, does not prompt.")
    result = contrast(results, primary.arm, rival, rng, primary=True)
    if result.gain is None or result.p is None:
        said = f"{primary.arm} and {rival} have no complete seed in common."
        return Answer(ADAPTER, "not measured", said)
    answer = Answer(
        ADAPTER, "undecided", "", result.gain, result.low, result.high, results.metric,
        f"{TEST}, p = {result.p:.2g}", result.n,
    )  # fmt: skip
    which = "better" if result.gain >= 0 else "worse"
    said = f"{primary.arm} ends {number(abs(result.gain))} {which} than {rival} ({how})"
    smallest, gains = primary.smallest_effect, results.gains(primary.arm, rival)
    if result.n < LEAST_PAIRS:
        few = f"{count(result.n, 'paired seed')} cannot decide, {LEAST_PAIRS} are the least"
        said = f"Undecided: {said}, but {few}. {_more(gains, smallest, rng)}"
        return replace(answer, sentence=said)
    if result.p <= ALPHA:
        verdict: Verdict = "yes" if result.gain > 0 else "no"
        small = result.high is not None and result.high < smallest and result.gain > 0
        tail = f", though by less than the {smallest:g} that would matter" if small else ""
        others = [name for name in plan.of("prompting") if name != rival]
        beside = _beside(results, primary.arm, others, rng)
        if verdict == "yes" and any(not pair.ahead for pair in beside):
            verdict = "no" if any(pair.behind for pair in beside) else "undecided"
            tail += ", which is not enough to beat prompting"
        tail += f".{_told('other arms that prompt', beside)}"
        controls = _beside(results, primary.arm, plan.of("control"), rng)
        tail += _told("the arms that ask no model", controls)
        return replace(answer, verdict=verdict, sentence=f"{verdict.title()}: {said}{tail}")
    if result.high is not None and result.high < smallest:
        tail = f"and a gain of {smallest:g}, the least that would matter, is excluded"
        return replace(answer, verdict="no", sentence=f"No: {said}, no clear difference, {tail}.")
    return replace(answer, sentence=f"Undecided: {said}. {_more(gains, smallest, rng)}")


def _beside(
    results: Results, arm: str, others: Sequence[str], rng: np.random.Generator
) -> list[Contrast]:
    """`arm` against each of `others` that was measured, Holm-corrected among them."""
    pairs = _corrected([contrast(results, arm, other, rng) for other in others])
    return [pair for pair in pairs if pair.p_holm is not None]


def _told(which: str, pairs: Sequence[Contrast]) -> str:
    """A sentence on `pairs`: to beat one rival is little if others, or chance, do as well."""
    said = []
    for pair in pairs:
        way = "worse" if pair.ahead else "better"
        far = f"ends {number(abs(pair.gain or 0.0))} {way}"
        found = far if pair.ahead or pair.behind else "cannot be told from it"
        said.append(f"{pair.against} {found} (p = {pair.p_holm:.2g})")
    return f" Of {which}, {'; '.join(said)}." if said else ""


def _more(gains: Floats, smallest: float, rng: np.random.Generator) -> str:
    """How many pairs would do, by the spread of those there are."""
    spread = float(np.std(gains, ddof=1)) if len(gains) > 2 else 0.0
    if not spread:
        return f"At least {LEAST_PAIRS} paired seeds are needed; these do not tell the spread."
    n = power.needed(smallest, spread, rng)
    if n is None:
        return f"A gain of {smallest:g} would need more than {power.MOST} paired seeds."
    return (
        f"By their spread {max(n, LEAST_PAIRS)} paired seeds would find a gain of {smallest:g} "
        "four times out of five."
    )


def _survived(results: Results, arm: str) -> str:
    """How much of the gain that was seen on the way is there on fresh seeds, as a clause."""
    row = results.arms.index(arm)
    there = statistics.complete(results.final[row], results.final_baseline[row])
    seen = float((results.sign * (results.baseline[row] - results.best[row, :, -1]))[there].mean())
    return f"; on the way {signed(seen)} was seen" if np.isfinite(seen) else ""


def _measured(results: Results, arm: str) -> bool:
    return bool(np.isfinite(results.endpoint()[results.arms.index(arm)]).any())


def _enough(gains: dict[str, Floats]) -> bool:
    return all(len(found) >= LEAST_PAIRS for found in gains.values())


def _corrected(pairs: Sequence[Contrast]) -> list[Contrast]:
    """The same with `p_holm`, over those that have a p."""
    known = [pair for pair in pairs if pair.p is not None]
    adjusted = iter(statistics.holm([pair.p or 0.0 for pair in known]))
    return [replace(p, p_holm=float(next(adjusted))) if p.p is not None else p for p in pairs]


def _seen_from(pair: Contrast, arm: str) -> Contrast:
    """The same contrast with `arm` in the first place."""
    if pair.arm == arm:
        return pair
    low, high = _turned(pair.low, pair.high, -1)
    gain = None if pair.gain is None else -pair.gain
    return replace(pair, arm=arm, against=pair.arm, gain=gain, low=low, high=high)


def _turned(low: float | None, high: float | None, sign: int) -> tuple[float | None, float | None]:
    if low is None or high is None or sign > 0:
        return low, high
    return -high, -low


def _first(counts: dict[str, tuple[int, int]]) -> str:
    return max(counts, key=lambda reason: counts[reason][0])


def _holm_of(arms: int) -> str:
    return f" (Holm over {arms} arms)" if arms > 1 else ""
