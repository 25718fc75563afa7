"""Survey: every single-knob move of a state, measured on several seeds, as runs like any other.

A state is a variant's start, or a few moves at random away from it. Its run tries the moves of its
menu in random order and keeps none, so that all of them are measured from the same file; each is
paired with that file on further seeds. `collect` labels such runs, and what choosing by chance,
by an adapter or by a rule would have gained can be computed from them exactly.

    python -m eval.survey --out surveys --variants kjv,stdlib --states 3 --budget 1e11flops
"""

import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from eval.forked import STORE, Forked, Store
from eval.summary import improvement
from loop import flags, knobs, start, target
from loop.errors import TargetError, UsageError, ending
from loop.flags import flag
from loop.judge import Contender, Measure, Past
from loop.ledger import LEDGER, Ledger
from loop.run import Loop
from loop.start import RunArgs
from loop.strategies.random_edit import RandomEdit
from loop.target import BUILT_IN
from loop.trial import Decision, Json, Scored


@dataclass(frozen=True)
class SurveyArgs:
    """Measure every single-knob move of some states of the built-in target."""

    out: Path = flag(help="folder of the runs")
    variants: str = flag("kjv", "of the cpu profile, by commas")
    states: int = flag(1, "of each variant: its start, and others a few moves away")
    away: int = flag(3, "moves at random between a start and a further state of it")
    seeds: int = flag(2, "training seeds of each move")
    noise_runs: int = flag(0, "further seeds of the state's own file alone")
    budget: str = flag("", "of one experiment, in FLOPs; the profile's if left out")
    workers: int = flag(1, "states surveyed at once")


@dataclass(frozen=True)
class KeepNone:
    """Keeps nothing; pairs every candidate with the incumbent on `seeds` - 1 further seeds.

    `noise_runs`: of the baseline, for the noise where a survey takes one seed a move.
    """

    seeds: int
    noise_runs: int = 0
    name: str = "survey"

    def begin(self, past: Past, measure: Measure) -> Json | None:
        """Runs of the baseline on seeds that follow those of the pairs."""
        baseline, done = past.contender(0), {m.seed for m in past.measurements}
        first = baseline.seed + self.seeds
        for seed in range(first, first + self.noise_runs):
            if seed not in done:
                measure(baseline, seed, "noise")
        return {"runs": self.noise_runs} if self.noise_runs else None

    def decide(
        self, candidate: Contender, incumbent: Contender, past: Past, measure: Measure
    ) -> Decision:
        known = {(m.trial, m.seed) for m in past.measurements}
        for seed in range(candidate.seed + 1, candidate.seed + self.seeds):
            for who in (incumbent, candidate):
                if (who.trial, seed) not in known:
                    measure(who, seed, "replicate")
        return Decision("discard", self.name, "a survey keeps nothing")


def run(argv: Sequence[str]) -> int:
    """Survey; goes on where an earlier call with the same --out was stopped."""
    args = flags.parse("survey", SurveyArgs, argv)
    if args.seeds < 1 or args.states < 1 or args.workers < 1:
        raise UsageError("--seeds, --states and --workers are 1 or more")
    names = [name.strip() for name in args.variants.split(",")]
    jobs = [(args, name, state) for state in range(args.states) for name in names]
    with ProcessPoolExecutor(args.workers, max_tasks_per_child=1) as pool:
        for said in pool.map(survey, *zip(*jobs, strict=True)):
            print(said, flush=True)
    return 0


def survey(args: SurveyArgs, variant: str, number: int) -> str:
    """One state, in a run of its own; what to say of it."""
    found = target.load(BUILT_IN, "cpu", variant)
    source = (BUILT_IN / found.editable).read_text(encoding="utf-8")
    values = walk(found, knobs.write(source, found.start), random.Random(f"{variant}/{number}"),
                  args.away if number else 0)  # fmt: skip
    out = args.out / f"{variant}-{number}"
    run_args = RunArgs(
        out=out, strategy="random_edit", profile="cpu", variant=variant, budget=args.budget,
        start=",".join(f"{name}={value}" for name, value in values.items()),
        judge="naive", resume=(out / LEDGER).exists(), final_seeds=0,
    )  # fmt: skip
    if run_args.resume:
        run_args = start.recorded(run_args, [])
    prepared = start.prepare(run_args)
    runner = Forked(prepared.target, source, Store(args.out / STORE))
    with Ledger(out) as ledger:
        loop = Loop(
            start.settings(prepared), strategy=RandomEdit(),
            judge=KeepNone(args.seeds, args.noise_runs), runner=runner,
            workspace=prepared.workspace, ledger=ledger,
        )  # fmt: skip
        try:
            loop.run()
        except TargetError as error:
            return f"{out.name}: {error}"
        finally:
            runner.close()
        gains = list(_gains(loop))
    better = sum(gain > 0 for gain in gains)
    return f"{out.name}: {len(gains)} moves scored, {better} better on seed {run_args.seed}"


def walk(found: target.Target, source: str, rng: random.Random, moves: int) -> dict[str, str]:
    """The knobs of `source` after `moves` random single-knob moves, as literals that changed."""
    begin = found.values(source)
    for _ in range(moves):
        values = found.values(source)
        options = [
            (name, new) for name in found.knobs for new in found.knobs[name].moves(values[name])
        ]
        name, new = rng.choice(options)
        source = knobs.write(source, {name: repr(new)})
    return {n: repr(v) for n, v in found.values(source).items() if v != begin[n]}


def _gains(loop: Loop) -> Iterator[float]:
    for trial in loop.position.trials[1:]:
        if isinstance(trial.outcome, Scored) and trial.context.incumbent_metric:
            yield improvement(trial.context.incumbent_metric, trial.outcome.metric)


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
