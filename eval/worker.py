"""What a worker of a plan does: the runs of one seed, a turn each in turn.

A run is begun, or taken up from its ledger, wherever it was stopped. All that a worker remembers is
in the run folders `OUT/runs/<arm>/<seed>/`; what it tells goes to `tell`, and between turns it asks
`stop`.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval import plan as plans
from eval.forked import STORE, Forked, Forks, Store
from eval.plan import Arm, Plan
from eval.progress import Note
from eval.results import RUNS, disagreement, standing
from eval.words import signed
from loop import gpu, start, strategies, warm
from loop.__main__ import mirrors, replies
from loop.brain import Brain
from loop.errors import AutoresearchError, BrainError, UsageError
from loop.experiment import Limits, Runner
from loop.flags import flag
from loop.gpu import GPU
from loop.ledger import LEDGER, Ledger
from loop.position import Position
from loop.run import Loop
from loop.run import Runner as AnyRunner
from loop.sandbox import SANDBOXES, Box, open_box
from loop.start import RunArgs
from loop.target import BUILT_IN, Target
from loop.trial import Event, Json, Measurement, Outcome, Record, Scored, Trial

EXECUTORS = ("local", "ray")
ENDED = object()
Tell = Callable[[Note], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class EvalArgs:
    """Run a plan: every arm on every seed. The same command goes on where it was stopped."""

    plan: Path = flag(help="plan.toml (what it may say: the top of eval/plan.py)", positional=True)
    out: Path = flag(help="folder of the runs")
    executor: str = flag("local", "where runs are executed", choices=EXECUTORS)
    workers: int = flag(1, "seeds at once, each in a process with brains of its own (local)")
    cpus_per_run: float = flag(1.0, "that a run takes of its machine (ray)")
    gpus_per_run: float = flag(-1.0, "e.g. 0.5; below 0: 1, or 0 on the CPU profile (ray)")
    amend: str = flag("", "why the plan differs from the one that was fixed; is recorded")
    sandbox: str = flag("auto", "around experiments", choices=SANDBOXES)
    memory_mb: int = flag(0, "an experiment's memory; 0: 80 %% of the machine")
    threads: int = flag(0, "of an embedded brain; 0: all cores")
    patience: float = flag(300.0, "seconds to wait for a brain's server that is down")
    gpu: str = flag("", "one GPU for brain and training: together or in turn", choices=GPU)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers is {self.workers}, below 1")
        if not self.cpus_per_run > 0:
            raise UsageError(f"--cpus-per-run is {self.cpus_per_run:g}, not above 0")
        if self.gpus_per_run > 1 and self.gpus_per_run % 1:
            raise UsageError(f"--gpus-per-run is {self.gpus_per_run:g}: above 1 it is whole")


@dataclass(frozen=True)
class Job:
    """What a worker must know. `base`: what the paths of the plan are relative to."""

    plan: Plan
    base: Path
    args: EvalArgs

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.args.out / RUNS / arm.name / str(seed)

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of execution: the pilot's first."""
        return (*self.plan.pilot_seeds, *self.plan.seeds)

    def todo(self, seed: int) -> list[Arm]:
        """The arms whose run on that seed is not complete."""
        return [arm for arm in self.plan.arms
                if standing(self.folder(arm, seed), self.plan, arm, seed)[1]]  # fmt: skip


def take_turns(
    job: Job, arms: Sequence[Arm], seed: int, tell: Tell, stop: Stop, shared: "Shared"
) -> None:
    """Runs of one seed, a turn each in turn. One that stops is told of; the others go on."""
    with ExitStack() as stack:
        live: dict[str, Iterator[None]] = {}
        for arm in arms:
            if arm.name in shared.down:
                continue
            with _telling(arm, seed, tell, shared):
                live[arm.name] = _begin(job, arm, seed, tell, stop, shared, stack)
        while live and not stop():
            for name in list(live):
                turns = live.pop(name)
                with _telling(job.plan.arm(name), seed, tell, shared):
                    began = time.monotonic()
                    if next(turns, ENDED) is not ENDED:
                        live[name] = turns
                        tell(Note(name, seed, "turn", seconds=time.monotonic() - began))
                    elif not stop():
                        tell(_ended(job, name, seed))


def _ended(job: Job, name: str, seed: int) -> Note:
    arm = job.plan.arm(name)
    why = standing(job.folder(arm, seed), job.plan, arm, seed)[1]
    return Note(name, seed, "stopped" if why else "done", why or "complete")


@contextmanager
def _telling(arm: Arm, seed: int, tell: Tell, shared: "Shared") -> Iterator[None]:
    """A run that fails ends itself; a brain that fails ends its arm, until the next `eval`."""
    try:
        yield
    except AutoresearchError as error:
        if isinstance(error, BrainError):
            shared.down.add(arm.name)
        tell(Note(arm.name, seed, "stopped", " ".join(str(error).split())))


def _begin(
    job: Job, arm: Arm, seed: int, tell: Tell, stop: Stop, shared: "Shared", stack: ExitStack
) -> Iterator[None]:
    """The turns of one run, begun or taken up again. Raises AutoresearchError."""
    out = job.folder(arm, seed)
    if out.exists() and not (out / LEDGER).exists():
        shutil.rmtree(out)  # cut off while it was made: nothing was measured in it
    args = _run_args(job, arm, seed, out)
    brain = None if args.resume else shared.brain(args, 0)  # before there is a folder
    prepared = start.prepare(args)
    ledger = stack.enter_context(Ledger(out))
    if shared.place:
        _placed(ledger, shared.place, Teller(arm.name, seed, tell))
    if args.resume:
        brain = shared.brain(args, replies(ledger))
    strategy, _ = start.strategy(args, 0, brain)
    loop = Loop(
        start.settings(prepared),
        strategy=strategy,
        judge=start.judge(args, prepared.target, prepared.budget),
        runner=shared.runner(args, prepared.target, brain),
        workspace=prepared.workspace,
        ledger=ledger,
        observers=[Teller(arm.name, seed, tell), *mirrors(prepared)],
        stop=stop,
    )
    return loop.turns(check_baseline=True)


def _placed(ledger: Ledger, place: Json, teller: "Teller") -> None:
    """Record where a run is begun or goes on: it may move from machine to machine."""
    done = sum(isinstance(record, Trial) for record in ledger.records)
    ledger.append(Event("placed", datetime.now(UTC).isoformat(timespec="seconds"), place))
    where = ", ".join(map(str, place.values()))
    goes_on = f", goes on after trial {done - 1}" if done else ""
    teller.line(f"     on {where}{goes_on}", "placed")


def _run_args(job: Job, arm: Arm, seed: int, out: Path) -> RunArgs:
    """What `run` would be told to make the same run. Raises UsageError."""
    plan, machine = job.plan, job.args
    names = ("sandbox", "memory_mb", "threads", "patience", "gpu")
    here: dict[str, Any] = {name: getattr(machine, name) for name in names}
    if not arm.brain.startswith("llamacpp:"):
        here["threads"] = 0  # of an embedded brain; a server's are its own affair
    if (out / LEDGER).exists():
        if said := disagreement(start.read_run_toml(out), plan, arm, seed):
            raise UsageError(
                f"{out} was begun with {said}: put the plan back, or move that folder away"
            )
        recorded = start.recorded(RunArgs(out=out, resume=True), [])
        here |= {"trials": plan.trials, "final_seeds": plan.final_seeds}
        return dataclasses.replace(recorded, **here)
    brain, lora = plans.served(arm, job.base)
    asked = plans.asked(plan, arm, seed) | {"brain": brain}
    return RunArgs(
        out=out,
        target=plans.target_folder(plan, job.base),
        adapter=str(lora or ""),
        experience=str(job.base / arm.experience) if arm.experience else "",
        **asked,
        **here,
    )


@dataclass
class Shared:
    """What the runs of one worker share: loaded brains, the box or the process that forks.

    `down`: arms whose brain failed. `place`: which machine this is, where that is not plain.
    `store`: of the forked runner; the plan's own if left out.
    """

    job: Job
    tell: Tell
    down: set[str] = field(default_factory=set)
    place: Json = field(default_factory=dict)
    store: Path | None = None
    _brains: dict[tuple[object, ...], Brain] = field(default_factory=dict)
    _boxed: tuple[Box, warm.Worker | None] | None = None
    _forks: Forks = field(default_factory=Forks)

    def brain(self, args: RunArgs, used: int) -> Brain | None:
        """The brain of a run: one for all runs that ask the same weights, except for a script,
        which each run reads from its own place on. Raises BrainError or UsageError."""
        key = (args.brain, args.adapter, args.base_url, args.window)
        if key in self._brains and args.strategy not in strategies.CONTROLS:
            return self._brains[key]
        brain = start.connect(args, used)
        if brain is not None and not args.brain.startswith("scripted:"):
            self._brains[key] = brain
        return brain

    def runner(self, args: RunArgs, target_: Target, brain: Brain | None) -> AnyRunner:
        """What runs the experiments of one run."""
        if self.job.plan.runner == "forked":
            source = (BUILT_IN / target_.editable).read_text(encoding="utf-8")
            store = Store(self.store or self.job.args.out / STORE)
            return Forked(target_, source, store, self._forks)
        if self._boxed is None:
            box = open_box(args.sandbox)
            self._boxed = box, warm.worker(target_, box, self._say)
        limits = Limits(args.timeout or target_.timeout_s, args.memory_mb)
        return gpu.arrange(args.gpu, Runner(target_, self._boxed[0], limits, self._boxed[1]), brain)

    def _say(self, line: str) -> None:
        self.tell(Note("", 0, "line", line))

    def close(self) -> None:
        """Free the brains, end the processes that fork."""
        for brain in self._brains.values():
            if close := getattr(brain, "close", None):
                close()
        self._brains.clear()
        self._forks.close()
        if self._boxed and self._boxed[1]:
            self._boxed[1].close()


@dataclass(frozen=True)
class Teller:
    """An Observer that tells of one run."""

    arm: str
    seed: int
    tell: Tell

    def phase(self, trial: int, text: str) -> None:
        self.tell(Note(self.arm, self.seed, "phase", f"trial {trial} {text}"))

    def record(self, record: Record, position: Position) -> None:
        match record:
            case Trial():
                style: str = (
                    record.decision.verdict if isinstance(record.outcome, Scored) else "failed"
                )
                text = f"{record.id:4d} {_trial(record)}  {record.seconds:.1f}s"
            case Measurement():
                style = record.purpose
                text = f"     of trial {record.trial}: {_came(record.outcome)}"
            case Event():
                style, text = "", f"     {record.name}: {record.data.get('says', record.data)}"
        self.line(text, style)

    def line(self, text: str, style: str = "") -> None:
        self.tell(Note(self.arm, self.seed, "line", text, style))


def _trial(trial: Trial) -> str:
    parts, before = [_came(trial.outcome)], trial.context.incumbent_metric
    if isinstance(trial.outcome, Scored) and before is not None:
        parts.append(signed(trial.outcome.metric.value - before.value))
    return " ".join([*parts, trial.proposal.description])


def _came(outcome: Outcome) -> str:
    if isinstance(outcome, Scored):
        return f"{outcome.metric.name} {outcome.metric.value:.4f}"
    return str(outcome.reason)
