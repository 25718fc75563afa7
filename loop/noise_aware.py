"""The judge `noise-aware`: what looks better must be better again, on fresh training seeds.

The score that a candidate was proposed for only decides whether it is worth a test. The test runs
candidate and anchor side by side on training seeds that neither was chosen on, pair by pair, until
the evidence (`loop.evidence`) reaches what the error budget asks for, until the cap, or until it
is hopeless. The anchor is the latest code that was kept for being better, the baseline at first:
what is kept for being simpler never takes its place, so that however many simplifications there
are, the code cannot drift away from the best by more than one margin.

Seeds and reuse. `steady` targets (a budget in FLOPs) give the same result whenever they run: the
pairs of an anchor are the same for all its challengers, and its half is measured once. Where time
matters (wall clock) every test has seeds of its own, and a coin from the seed says who of a pair
runs first, so that a machine that slows down favours neither.
"""

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from loop.errors import TargetError
from loop.evidence import alpha, growth, log_e, pairs_needed, spent
from loop.judge import Contender, Measure, Past, nodes
from loop.noise import PURPOSES, Noise, estimate, identical, scores
from loop.trial import Decision, Json, Metric, Outcome, Scored

NIGHT_S = 8 * 3600
LATEST = 6
"""Replicates of the anchor that a screening score on another seed is held against."""
OPTIMISM = 1.0
"""Standard errors that a gain is given the benefit of before its test is called hopeless."""


@dataclass(frozen=True)
class NoiseAware:
    """Keeps a candidate that is better than the best ever, or simpler and not worse by a margin.

    `rate`: expected share of false keeps among the keeps. `replicates`: most pairs of one test.
    `noise_runs`: runs of the baseline at the start. `margin`: of a simplification, in standard
    deviations of one run. `seeded`: does a training seed reach the target? If not, what is known is
    the machine's own noise on one pinned seed, and it is called that. `seed`: the run's.
    """

    seed: int = 0
    rate: float = 0.05
    replicates: int = 40
    noise_runs: int = 4
    margin: float = 1.0
    steady: bool = True
    seeded: bool = True
    name: str = "noise-aware"

    @property
    def kind(self) -> Literal["training", "machine"]:
        """Which noise can be known."""
        return "training" if self.seeded else "machine"

    def begin(self, past: Past, measure: Measure) -> Json:
        """Run the baseline again on other seeds. Raises TargetError if that shows no noise."""
        baseline = past.contender(0)
        for pair in range(self.noise_runs):
            _run(baseline, self._seed("noise", pair), "noise", past, measure)
        noise = self._noise(past, ())
        if noise is None:
            raise TargetError(
                f"none of {self.noise_runs} noise runs of the baseline has a score; see their logs "
                "in the run folder, or use --judge naive"
            )
        if noise.sigma == 0:
            runs = f"{noise.runs} {'training seeds' if self.seeded else 'runs'}"
            raise TargetError(
                f"{runs} gave the identical {baseline.metric.name} {baseline.metric.value:g}, so "
                "repeats are no evidence; say in target.toml how the target takes its seed (seed = "
                "env:NAME or knob:NAME), or use --judge naive"
            )
        seconds = [m.seconds for m in past.measurements if m.purpose == "noise"]
        return self._cost(baseline.metric.name, noise, statistics.fmean(seconds))

    def decide(
        self, candidate: Contender, incumbent: Contender, past: Past, measure: Measure
    ) -> Decision:
        """Screen; test if the screening score gives reason to."""
        anchor = past.contender(_anchor(past))
        noise = self._noise(past, (candidate.code, anchor.code))
        against = _reference(candidate, anchor, past, self.steady)
        margin = self.margin * noise.sigma if noise else 0.0
        if nodes(candidate.source) >= nodes(incumbent.source):
            margin = 0.0
        facts = self._facts(noise) | {
            "anchor": anchor.trial,
            "screening": {"candidate": candidate.metric.value, "anchor": against.value},
        }
        seen = _gain(against, candidate.metric)
        if seen < -margin or (seen == 0 and not margin):
            scored = f"{against.value:.6f} -> {candidate.metric.value:.6f}"
            return Decision("discard", self.name, f"not better: {against.name} {scored}", facts)
        test = self._open(anchor, noise, margin, past)
        before = len(past.measurements)
        stopped = self._confirm(test, candidate, past, measure)
        facts |= test.facts() | {"runs": len(past.measurements) - before}
        return self._verdict(test, candidate.metric.name, stopped, facts)

    def _confirm(
        self, test: "Confirmation", candidate: Contender, past: Past, measure: Measure
    ) -> str:
        """Pairs until `test` is decided. Why it had to stop; "": it came to its own end."""
        for pair in range(self.replicates):
            seed = self._seed(f"{(test.anchor if self.steady else candidate).trial}", pair)
            order = (candidate, test.anchor) if seed % 2 else (test.anchor, candidate)
            found = {who.trial: _run(who, seed, "replicate", past, measure) for who in order}
            ours, theirs = found[candidate.trial], found[test.anchor.trial]
            if not isinstance(ours, Scored):
                return f"no score on training seed {seed}: {ours.reason}"
            if not isinstance(theirs, Scored):
                return f"trial {test.anchor.trial} itself has no score on training seed {seed}"
            test.add(seed, ours.metric, theirs.metric)
            if refused := test.refused(self.seeded):
                return refused
            if test.decided(left=self.replicates - pair - 1):
                break
        return ""

    def _verdict(self, test: "Confirmation", metric: str, stopped: str, facts: Json) -> Decision:
        if stopped:
            return Decision("discard", self.name, stopped, facts)
        gain = f"{metric} gains {test.mean:.6f} on average over {_count(len(test.gains), 'pair')}"
        if test.sigma:
            gain += f" ({test.mean / test.sigma:.1f} sigma)"
        if not self.seeded:
            gain += " on one pinned seed, the machine's noise alone considered"
        if test.better:
            reason = f"better on fresh seeds: {gain}; e-value {_e(test.best)} of {test.needed}"
            return Decision("keep", self.name, reason, facts | {"rule": "better"})
        if test.simpler:
            reason = (
                f"simpler, and not worse than trial {test.anchor.trial} by {test.margin:.2g}: "
                f"{gain}; e-value {_e(test.best_simpler)} of {test.needed}"
            )
            return Decision("keep", self.name, reason, facts | {"rule": "simpler"})
        reason = f"not confirmed on fresh seeds: {gain}; e-value {_e(test.best)} of {test.needed}"
        return Decision("discard", self.name, reason, facts)

    def _open(
        self, anchor: Contender, noise: Noise | None, margin: float, past: Past
    ) -> "Confirmation":
        earlier = [t.decision for t in past.trials if "test" in t.decision.evidence]
        # Simplifications are no wins: were they counted, many of them would buy false wins.
        number, keeps = 1 + len(earlier), sum(d.evidence.get("rule") == "better" for d in earlier)
        level = alpha(self.rate, number, keeps)
        return Confirmation(anchor, noise.sigma if noise else 0.0, margin, level, number, keeps)

    def _noise(self, past: Past, tested: Sequence[str]) -> Noise | None:
        """Pooled over codes; the baseline's own run counts too, as nothing selected it.

        Replicates of the codes `tested` are left out: bets are fixed before the pairs are seen,
        and a test that was cut off bets the same when it is taken up again.
        """
        counted = [m for m in past.measurements if m.purpose == "noise" or m.code not in tested]
        groups = {code: list(found.values()) for code, found in scores(counted).items()}
        baseline = past.contender(0)
        if baseline.code in groups:
            groups[baseline.code].append(baseline.metric.value)
        return estimate(groups.values())

    def _seed(self, purpose: str, number: int) -> int:
        """31 bits of the run, the purpose and the number: no candidate was screened on them."""
        text = f"{self.seed}/{self.name}/{purpose}/{number}"
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) & 0x7FFFFFFF

    def _facts(self, noise: Noise | None) -> Json:
        if noise is None:
            return {"noise": self.kind, "sigma": None, "sigma_df": 0, "sigma_runs": 0}
        facts = {"sigma": noise.sigma, "sigma_df": noise.df, "sigma_runs": noise.runs}
        return {"noise": self.kind, **facts, "sigma_interval": [noise.low, noise.high]}

    def _cost(self, metric: str, noise: Noise, seconds: float) -> Json:
        """What a confirmation costs: pairs by gain in sigma, runs a night, and a sentence."""
        night = int(NIGHT_S / max(seconds, 1e-3))
        pairs = {str(size): pairs_needed(size, alpha(self.rate, 1, 0)) for size in (4, 2, 1)}
        runs = [str(count if self.steady else 2 * count) for count in pairs.values()]
        of = "from seed to seed" if self.seeded else "of the machine alone, on one pinned seed"
        says = (
            f"sigma of {metric} {noise.sigma:.2g} {of} (95 % interval {noise.low:.2g} to "
            f"{noise.high:.2g}, {noise.runs} runs). A run takes {seconds:.0f} s, a night of 8 h "
            f"has {night}. Confirming a first gain of 4, 2 or 1 sigma takes about {', '.join(runs)}"
        )
        if self.steady:
            says += ", and as many again once for every new best"
        cost = {"seconds": round(seconds, 3), "runs_a_night": night, "pairs": pairs}
        return {"says": says, **self._facts(noise), **cost}


@dataclass
class Confirmation:
    """One test under way, the `number`-th of its run, at the level `alpha` after `keeps` wins.

    `sigma`, of one run, and `margin` (0: no simplification) are in the metric's unit. `pairs`:
    (training seed, candidate, anchor). `best`, `best_simpler`: logs of the highest e-values so far.
    """

    anchor: Contender
    sigma: float
    margin: float
    alpha: float
    number: int
    keeps: int
    pairs: list[tuple[int, float, float]] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    best: float = 0.0
    best_simpler: float = 0.0

    @property
    def needed(self) -> int:
        """The e-value that keeps."""
        return math.ceil(1 / self.alpha)

    @property
    def better(self) -> bool:
        return self.best >= -math.log(self.alpha)

    @property
    def simpler(self) -> bool:
        """Smaller and not worse by the margin. What is better is that as well: one level is enough
        for both claims, since the evidence for the stronger one is never the larger."""
        return self.margin > 0 and self.best_simpler >= -math.log(self.alpha)

    @property
    def mean(self) -> float:
        """Mean gain, positive when the candidate is better; 0.0 without a pair."""
        return statistics.fmean(self.gains) if self.gains else 0.0

    def add(self, seed: int, ours: Metric, theirs: Metric) -> None:
        """Take in a pair on the same training seed."""
        self.pairs.append((seed, ours.value, theirs.value))
        self.gains.append(_gain(theirs, ours))
        self.best = max(self.best, self._log_e(0.0))
        self.best_simpler = max(self.best_simpler, self._log_e(self.margin))

    def decided(self, left: int) -> bool:
        """Is it better, or hopeless with `left` more pairs, as a simplification too?"""
        if self.better:
            return True
        if not self._hopeless(0.0, left):
            return False
        return not self.margin or self.simpler or self._hopeless(self.margin, left)

    def refused(self, seeded: bool) -> str:
        """Why these pairs are no evidence, if they are none: the same number again and again."""
        if len(self.pairs) < 2:
            return ""
        ours = {seed: value for seed, value, _ in self.pairs}
        theirs = {seed: value for seed, _, value in self.pairs}
        if identical(ours) and identical(theirs):
            return "repeats are identical on both sides, so they are no evidence"
        if identical(ours) and seeded:
            return f"the same score on {len(ours)} training seeds: it does not take its seed"
        if not self.margin and not any(self.gains):
            return f"the same scores as trial {self.anchor.trial} seed by seed: it changes nothing"
        return ""

    def facts(self) -> Json:
        pairs = [{"seed": s, "candidate": ours, "anchor": theirs} for s, ours, theirs in self.pairs]
        facts: Json = {
            "test": self.number,
            "keeps_before": self.keeps,
            "alpha": self.alpha,
            "budget_spent": spent(self.number),
            "e_value": math.exp(min(self.best, 700.0)),
            "gain": self.mean,
            "replicates": pairs,
        }
        if self.margin:
            e_value = math.exp(min(self.best_simpler, 700.0))
            facts |= {"margin": self.margin, "e_value_not_worse": e_value}
        return facts

    def _log_e(self, margin: float) -> float:
        return log_e([gain + margin for gain in self.gains], self.sigma)

    def _hopeless(self, margin: float, left: int) -> bool:
        """Would even an optimistic view of the gain so far not reach the level in `left` pairs?"""
        count = len(self.gains)
        if not self.sigma:
            return not left
        spread = self.sigma * math.sqrt(2)
        if count > 2:  # seeds that move both alike leave less than that
            spread = min(spread, max(statistics.stdev(self.gains), spread * 1e-6))
        effect = (self.mean + margin) / spread + OPTIMISM / math.sqrt(count)
        return self._log_e(margin) + left * growth(effect) < -math.log(self.alpha)


def _run(who: Contender, seed: int, purpose: str, past: Past, measure: Measure) -> Outcome:
    """How the code fares on the training seed: from the ledger if it is there, else by a run."""
    code = who.code
    for record in past.measurements:
        if record.seed == seed and record.code == code and record.purpose in PURPOSES:
            return record.outcome
    return measure(who, seed, purpose)


def _anchor(past: Past) -> int:
    """Id of the latest standing trial that was kept for being better, or of the baseline."""
    simpler = {t.id for t in past.trials if t.decision.evidence.get("rule") == "simpler"}
    return next(trial for trial in reversed(past.kept) if trial not in simpler)


def _reference(candidate: Contender, anchor: Contender, past: Past, steady: bool) -> Metric:
    """What a screening score is held against.

    The anchor's own score on the same seed; else, and where the machine may have changed since, the
    mean of its latest replicates, which unlike that score were not selected for being good.
    """
    values = list(scores(past.measurements)[anchor.code].values())[-LATEST:]
    if not values or (steady and candidate.seed == anchor.seed):
        return anchor.metric
    return Metric(anchor.metric.name, statistics.fmean(values), anchor.metric.direction)


def _gain(old: Metric, new: Metric) -> float:
    return old.value - new.value if new.direction == "min" else new.value - old.value


def _e(log: float) -> str:
    return f"{math.exp(min(log, 700.0)):.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
