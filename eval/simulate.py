"""How do the judges fare where the truth is known? `python -m eval.simulate` prints the tables.

The judges are the real ones; only the trainer is simulated. An edit has a true gain, in standard
deviations (sigma) of a run, and a run of its code scores that plus noise:
- `normal`, `t3` (Student with three degrees of freedom), `skew` (exponential: bad luck has a long
  tail), `two` (two-valued: training that sometimes diverges), all scaled to sigma;
- `shared`: half of the variance belongs to the training seed, so that pairs cancel it;
- `drift`: on top of normal noise the machine gets steadily worse by three sigma in 100 experiments
  and swings by one in 40 (a target that is not steady: its pairs are interleaved);
- `unequal`: an edit that gains nothing, and trebles the noise.
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from loop import flags
from loop.flags import flag
from loop.judge import Contender, Judge, Naive
from loop.noise_aware import NoiseAware
from loop.rate import wilson
from loop.trial import Context, Decision, Measurement, Metric, Outcome, Proposal, Scored, Trial

NOISES = ("normal", "t3", "skew", "two", "shared", "drift", "unequal")
JUDGES = ("naive", "noise-aware")


@dataclass
class World:
    """A simulated run: the `Past` that a judge reads, and the trainer that it measures with.

    `gains[i]`: what trial i gains over the incumbent that it edits, in sigma (which is 1); the
    baseline is trial 0 and gains 0.
    `shrinking`: every edit makes the code one statement smaller.
    """

    gains: Sequence[float]
    noise: str
    rng: random.Random
    shrinking: bool = False
    trials: list[Trial] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    kept: list[int] = field(default_factory=lambda: [0])
    truth: list[float] = field(default_factory=list)
    seeds: dict[int, float] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    experiments: int = 0

    def contender(self, trial: int) -> Contender:
        source = f"x = {trial}\n" + "y = 0\n" * (len(self.gains) - trial) * self.shrinking
        return Contender(trial, "", source, self.metrics[trial], 0)

    def play(self, judge: Judge) -> list[Decision]:
        """Baseline, noise, then a trial for each gain: what `loop.run` does, without a target."""
        for trial, gain in enumerate(self.gains):
            incumbent = self.kept[-1]
            self.truth.append(gain + (self.truth[incumbent] if trial else 0.0))
            self.metrics.append(self.run(trial, 0))
            if trial:
                decision = judge.decide(
                    self.contender(trial), self.contender(incumbent), self, self.measure
                )
            else:
                decision = Decision("baseline", judge.name, "")
            self.trials.append(_trial(trial, self.metrics[trial], decision))
            if decision.verdict == "keep":
                self.kept.append(trial)
            if not trial:
                judge.begin(self, self.measure)
        return [trial.decision for trial in self.trials[1:]]

    def measure(self, contender: Contender, seed: int, purpose: str) -> Outcome:
        outcome = Scored(self.run(contender.trial, seed))
        record = Measurement(contender.trial, purpose, seed, "", 1.0, outcome, contender.code)
        self.measurements.append(record)
        return outcome

    def run(self, trial: int, seed: int) -> Metric:
        """One experiment: lower is better."""
        self.experiments += 1
        noise = self._draw()
        if self.noise == "shared":
            common = self.seeds.setdefault(seed, self._draw())
            noise = (noise + common) / math.sqrt(2)
        if self.noise == "unequal" and trial != self.kept[-1]:
            noise *= 3
        if self.noise == "drift":
            noise += 0.03 * self.experiments + math.sin(self.experiments * math.tau / 40)
        return Metric("loss", noise - self.truth[trial])

    def _draw(self) -> float:
        match self.noise:
            case "t3":
                chi = sum(self.rng.gauss(0, 1) ** 2 for _ in range(3))
                return self.rng.gauss(0, 1) / math.sqrt(chi)  # a variance of 3, over 3
            case "skew":
                return self.rng.expovariate(1) - 1
            case "two":
                value = 2.0 if self.rng.random() < 0.2 else -0.5
                return 0.995 * value + 0.1 * self.rng.gauss(0, 1)
        return self.rng.gauss(0, 1)


@dataclass(frozen=True)
class Result:
    """Of one simulated run. `kept`: keeps by what the edit truly gained, in sigma; `truth`: how
    much better than the baseline the last incumbent truly is."""

    kept: tuple[float, ...]
    truth: float
    experiments: int
    confirmations: int
    pairs: int

    @property
    def false(self) -> int:
        """Keeps of edits that gain nothing."""
        return sum(gain <= 0 for gain in self.kept)


def play(
    judge: Judge, gains: Sequence[float], noise: str, seed: int, shrinking: bool = False
) -> Result:
    """One run of `len(gains)` trials under `judge`. Seeded: the same arguments, the same run."""
    world = World((0.0, *gains), noise, random.Random(f"{seed}/{noise}"), shrinking)
    tests = [d.evidence for d in world.play(judge) if "test" in d.evidence]
    return Result(
        tuple(gains[trial - 1] for trial in world.kept[1:]),
        world.truth[world.kept[-1]],
        world.experiments,
        len(tests),
        sum(len(test["replicates"]) for test in tests),
    )


def _trial(number: int, metric: Metric, decision: Decision) -> Trial:
    context = Context("", None, None, "simulated", "")
    return Trial(number, "", None, "", "", 1.0, context, Proposal("edit"), Scored(metric), decision)


def judge_of(name: str, noise: str, **changes: int) -> Judge:
    """A judge as a run would have it: `drift` is what a target that is not steady does."""
    if name == "naive":
        return Naive()
    return NoiseAware(steady=noise != "drift", **changes)  # type: ignore[arg-type]


def stream(length: int, share: float, gain: float, seed: int) -> list[float]:
    """`length` edits, of which about `share` truly gain `gain` sigma, at random places."""
    rng = random.Random(f"{seed}/stream")
    return [gain if rng.random() < share else 0.0 for _ in range(length)]


@dataclass(frozen=True)
class SimulateArgs:
    """Simulated runs of 100 edits under both judges: false keeps, power, cost."""

    runs: int = flag(200, "per cell of a table")
    edits: int = flag(100, "per run")
    seed: int = flag(0, "of the simulation")
    cap: int = flag(40, "most pairs of one test")


def no_effect(args: SimulateArgs) -> list[str]:
    """A/A: edits that change nothing. A table of what is kept all the same, in Markdown."""
    rows = [
        "| noise | judge | false keeps per 100 edits (95 %) | runs with a false keep (95 %) "
        "| experiments per run |",
        "|---|---|---|---|---|",
    ]
    for noise in NOISES:
        for name in JUDGES:
            results = _results(args, name, noise, 0.0, 0.0)
            kept = sum(r.false for r in results)
            spoilt = sum(r.false > 0 for r in results)
            rows.append(
                f"| {noise} | {name} | {_share(kept, args.runs * args.edits)} "
                f"| {_share(spoilt, args.runs)} | {_mean([r.experiments for r in results]):.0f} |"
            )
    return rows


def real_gains(args: SimulateArgs) -> list[str]:
    """One edit in ten gains; how many of those are kept, among how many false ones, at what cost.

    A table in Markdown. Cost: experiments beyond one per edit, divided by the true keeps.
    """
    rows = [
        "| noise | gain | judge | real gains kept (95 %) | false, of all keeps of all runs "
        "| false share of keeps, mean over runs | experiments per run "
        "| extra experiments per true keep |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for noise in ("normal", "t3", "shared", "drift"):
        for gain in (0.5, 1.0, 2.0, 4.0):
            for name in JUDGES:
                results = _results(args, name, noise, gain, 0.1)
                real = sum(
                    edit > 0
                    for run in range(args.runs)
                    for edit in stream(args.edits, 0.1, gain, args.seed + run)
                )
                true = sum(len(r.kept) - r.false for r in results)
                false = sum(r.false for r in results)
                extra = sum(r.experiments - args.edits - 1 for r in results)
                rows.append(
                    f"| {noise} | {gain:g} | {name} | {_share(true, real)} "
                    f"| {false} of {true + false} "
                    f"| {_mean([r.false / max(1, len(r.kept)) for r in results]):.1%} "
                    f"| {_mean([r.experiments for r in results]):.0f} "
                    f"| {extra / true if true else math.nan:.0f} |"
                )
    return rows


def one_gain(args: SimulateArgs) -> list[str]:
    """The first edit gains: is it kept, and after how many pairs? A table in Markdown."""
    rows = [
        "| noise | gain | kept (95 %) | pairs when kept | pairs when not |",
        "|---|---|---|---|---|",
    ]
    for noise in ("normal", "t3", "shared", "drift"):
        for gain in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
            judge = judge_of("noise-aware", noise, replicates=args.cap)
            results = [play(judge, [gain], noise, args.seed + run) for run in range(args.runs)]
            kept = [r.pairs for r in results if r.kept]
            lost = [r.pairs for r in results if not r.kept and r.confirmations]
            rows.append(
                f"| {noise} | {gain:g} | {_share(len(kept), args.runs)} "
                f"| {_mean(kept):.1f} | {_mean(lost):.1f} |"
            )
    return rows


def simplifications(args: SimulateArgs) -> list[str]:
    """Edits that shorten the code and each truly lose a little: how far does it drift? A table."""
    rows = [
        "| noise | each loses | kept per 100 edits | drift: mean | drift: worst run "
        "| runs beyond the margin of 1 (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for noise in ("normal", "t3", "shared"):
        for loss in (0.0, 0.1, 0.3):
            judge = judge_of("noise-aware", noise, replicates=args.cap)
            edits = [-loss] * args.edits
            results = [play(judge, edits, noise, args.seed + run, True) for run in range(args.runs)]
            drifts = [r.truth for r in results]
            beyond = sum(drift < -1 - 1e-9 for drift in drifts)
            rows.append(
                f"| {noise} | {loss:g} sigma "
                f"| {_mean([len(r.kept) * 100 / args.edits for r in results]):.1f} "
                f"| {_mean(drifts):+.2f} | {min(drifts):+.2f} "
                f"| {_share(beyond, args.runs)} |"
            )
    return rows


def _results(args: SimulateArgs, name: str, noise: str, gain: float, share: float) -> list[Result]:
    judge = judge_of(name, noise, **({} if name == "naive" else {"replicates": args.cap}))
    return [
        play(judge, stream(args.edits, share, gain, args.seed + run), noise, args.seed + run)
        for run in range(args.runs)
    ]


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{hits / n:.1%} ({low:.1%} to {high:.1%})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def main(argv: Sequence[str]) -> int:
    args = flags.parse("simulate", SimulateArgs, argv)
    for title, table in (
        ("No-effect edits", no_effect),
        ("One edit that gains", one_gain),
        ("One edit in ten gains", real_gains),
        ("Simplifications", simplifications),
    ):
        print(f"\n### {title}\n", *table(args), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
