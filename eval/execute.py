"""`eval PLAN`: run every arm on every seed, so that whatever drifts hurts all arms alike.

One seed after the other, the pilot's first; within a seed the arms take turns, one trial each. All
that is remembered is in the run folders `OUT/runs/<arm>/<seed>/`, so that the same command goes on
wherever it was stopped, by Ctrl-C or by force.
"""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import queue
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from eval import plan as plans
from eval.forked import STORE, Forked, Forks, Store
from eval.plan import Arm, Fixed, Plan
from eval.progress import Note, PlanProgress
from eval.results import PROBLEMS, RUNS, disagreement, problems, standing
from eval.words import count, signed
from loop import flags, gpu, secrets, start, strategies, warm
from loop.__main__ import Interrupt, mirrors, replies
from loop.brain import Brain
from loop.errors import INTERRUPTED, AutoresearchError, BrainError, UsageError
from loop.experiment import Limits, Runner
from loop.files import write_atomic
from loop.flags import flag
from loop.gpu import GPU
from loop.ledger import LEDGER, Ledger
from loop.position import Position
from loop.run import Loop
from loop.run import Runner as AnyRunner
from loop.sandbox import LACKS, SANDBOXES, Box, open_box
from loop.start import RunArgs
from loop.target import BUILT_IN, Target
from loop.trial import Event, Measurement, Outcome, Record, Scored, Trial

EXECUTORS = ("local",)
ENDED = object()
Tell = Callable[[Note], None]
Stop = Callable[[], bool]
Stands = dict[tuple[str, int], tuple[int, str]]
"""(arm, seed) -> what `eval.results.standing` says of its run."""


@dataclass(frozen=True)
class EvalArgs:
    """Run a plan: every arm on every seed. The same command goes on where it was stopped."""

    plan: Path = flag(help="plan.toml (what it may say: the top of eval/plan.py)", positional=True)
    out: Path = flag(help="folder of the runs")
    executor: str = flag("local", "where runs are executed", choices=EXECUTORS)
    workers: int = flag(1, "seeds at once, each in a process with brains of its own")
    amend: str = flag("", "why the plan differs from the one that was fixed; is recorded")
    sandbox: str = flag("auto", "around experiments", choices=SANDBOXES)
    memory_mb: int = flag(0, "an experiment's memory; 0: 80 %% of the machine")
    threads: int = flag(0, "of an embedded brain; 0: all cores")
    patience: float = flag(300.0, "seconds to wait for a brain's server that is down")
    gpu: str = flag("", "one GPU for brain and training: together or in turn", choices=GPU)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers is {self.workers}, below 1")


@dataclass(frozen=True)
class Job:
    """What a worker must know. `base`: what the paths of the plan are relative to."""

    plan: Plan
    base: Path
    args: EvalArgs

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.args.out / RUNS / arm.name / str(seed)


def run(argv: Sequence[str]) -> int:
    """The verb `eval`. 0: every run is complete; 130: interrupted.

    Raises UsageError, or AutoresearchError when runs are not complete, naming them.
    """
    args = flags.parse("eval", EvalArgs, argv)
    secrets.hide()
    plan, text = plans.read(args.plan)
    job = Job(plan, args.plan.absolute().parent, args)
    console = Console()
    with _alone(args.out):
        stands = {(arm.name, seed): standing(job.folder(arm, seed), plan, arm, seed)
                  for seed in _seeds(plan) for arm in plan.arms}  # fmt: skip
        trials = sum(done for done, _ in stands.values())
        record = plans.fix(plan, text, job.base, args.out, amend=args.amend, trials=trials)
        _said(console, record, stands, args)
        stop = Interrupt(console)
        progress = PlanProgress(console, *_todo(plan, stands), args.workers)
        noted = _Noted(args.out, progress)
        try:
            with progress:
                (_here if args.workers == 1 else _beside)(job, noted, stop)
        except KeyboardInterrupt:
            console.print("trials in flight were abandoned; all finished ones are on the disk")
    if stop.asked:
        console.print("go on with the same command", highlight=False)
        return INTERRUPTED
    _show(console, args.out)
    _end(job)
    return 0


def run_seed(job: Job, seed: int, tell: Tell, stop: Stop, shared: "Shared") -> None:
    """All arms of one seed, a turn each in turn. An arm that stops is told of; the others go on."""
    with ExitStack() as stack:
        live: dict[str, Iterator[None]] = {}
        for arm in job.plan.arms:
            complete = not standing(job.folder(arm, seed), job.plan, arm, seed)[1]
            if complete or arm.name in shared.down:
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
        observers=[_Teller(arm.name, seed, tell), *mirrors(prepared)],
        stop=stop,
    )
    return loop.turns(check_baseline=True)


def _run_args(job: Job, arm: Arm, seed: int, out: Path) -> RunArgs:
    """What `run` would be told to make the same run. Raises UsageError."""
    plan, machine = job.plan, job.args
    names = ("sandbox", "memory_mb", "threads", "patience", "gpu")
    here: dict[str, Any] = {name: getattr(machine, name) for name in names}
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

    `down`: arms whose brain failed.
    """

    job: Job
    tell: Tell
    down: set[str] = field(default_factory=set)
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
            return Forked(target_, source, Store(self.job.args.out / STORE), self._forks)
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


def _here(job: Job, tell: Tell, stop: Stop) -> None:
    """All seeds in this process."""
    shared = Shared(job, tell)
    try:
        for seed in _seeds(job.plan):
            if stop():
                return
            run_seed(job, seed, tell, stop, shared)
    finally:
        shared.close()


def _beside(job: Job, tell: Tell, stop: Interrupt) -> None:
    """Whole seeds in processes of their own, as many as there are workers."""
    context = multiprocessing.get_context("spawn")
    notes, seeds, halt = context.Queue(), context.Queue(), context.Event()
    for seed in (*_seeds(job.plan), *[None] * job.args.workers):
        seeds.put(seed)
    workers = [context.Process(target=_work, args=(job, seeds, notes, halt, os.getpid()))
               for _ in range(job.args.workers)]  # fmt: skip
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            if stop():
                halt.set()
            _drain(notes, tell, 0.2)
        _drain(notes, tell, 0.2)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join()
    if bad := [worker.exitcode for worker in workers if worker.exitcode]:
        raise AutoresearchError(
            f"{count(len(bad), 'worker')} ended with status {bad[0]}; what they said stands above: "
            "go on with the same command"
        )


def _drain(notes: Any, tell: Tell, wait: float) -> None:
    try:
        while True:
            tell(notes.get(timeout=wait))
    except queue.Empty:
        return


def _work(job: Job, seeds: Any, notes: Any, halt: Any, parent: int) -> None:
    """A worker's life: seeds until there are none, a halt, or no one who listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    secrets.hide()

    def stop() -> bool:
        return halt.is_set() or os.getppid() != parent

    shared = Shared(job, notes.put)
    try:
        while not stop() and (seed := seeds.get()) is not None:
            run_seed(job, seed, notes.put, stop, shared)
    except KeyboardInterrupt:
        notes.cancel_join_thread()
    finally:
        shared.close()


def _seeds(plan: Plan) -> tuple[int, ...]:
    return (*plan.pilot_seeds, *plan.seeds)


def _todo(plan: Plan, stands: Stands) -> tuple[dict[str, int], int, int]:
    """(turns that each arm has still to take, runs, runs that are complete)."""
    whole = 1 + plan.trials + 2 * plan.final_seeds
    turns = {arm.name: 0 for arm in plan.arms}
    for (arm, _), (trials, lacks) in stands.items():
        turns[arm] += whole - trials if lacks else 0
    return turns, len(stands), sum(not lacks for _, lacks in stands.values())


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One `eval` at a time in a folder. Raises UsageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AutoresearchError(f"cannot write in {out}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(f"another eval is at work in {out}: wait for it or stop it") from None
    finally:
        os.close(descriptor)


def _said(console: Console, record: Fixed, stands: Stands, args: EvalArgs) -> None:
    plan = record.plan
    seeds = count(len(plan.seeds), "seed")
    pilot = f" and {len(plan.pilot_seeds)} of a pilot" if plan.pilot_seeds else ""
    said = [f"{count(len(plan.arms), 'arm')} x {seeds}{pilot}, {count(plan.trials, 'trial')} each; "
            f"plan {plan.hash[:12]}, fixed {record.at}"]  # fmt: skip
    if done := sum(not lacks for _, lacks in stands.values()):
        said.append(f"{done} of {count(len(stands), 'run')} are complete already")
    if plan.runner == "boxed" and not open_box(args.sandbox).bwrap:
        said.append(LACKS)
    for line in said:
        console.print(f"· {line}", style="dim", highlight=False, markup=False)


class _Noted:
    """Passes notes on; keeps on the disk what stopped a run, until it is complete."""

    def __init__(self, out: Path, tell: Tell) -> None:
        self._out, self._tell, self._found = out, tell, problems(out)

    def __call__(self, note: Note) -> None:
        self._tell(note)
        key, before = f"{note.arm}/{note.seed}", dict(self._found)
        if note.kind == "stopped":
            self._found[key] = note.text
        elif note.kind == "turn":
            self._found.pop(key, None)
        if self._found != before:
            body = json.dumps(self._found, indent=1, ensure_ascii=False)
            write_atomic(self._out / PROBLEMS, body.encode())


@dataclass(frozen=True)
class _Teller:
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


def _show(console: Console, out: Path) -> None:
    """The four answers and the page, as `report OUT` gives them."""
    from eval import headtohead

    page = out / "report.html"
    for line in headtohead.said(headtohead.write(out, page)):
        console.print(line, highlight=False, markup=False)
    console.print(f"report: {page}", highlight=False, markup=False)


def _end(job: Job) -> None:
    """Raises AutoresearchError when runs are not complete."""
    known, lacking = problems(job.args.out), {}
    for seed in _seeds(job.plan):
        for arm in job.plan.arms:
            name = f"{arm.name}/{seed}"
            if why := standing(job.folder(arm, seed), job.plan, arm, seed)[1]:
                lacking[name] = known.get(name, why)
    if not lacking:
        return
    first = next((name for name in lacking if name in known), next(iter(lacking)))
    names = ", ".join(list(lacking)[:6])
    more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
    raise AutoresearchError(
        f"{count(len(lacking), 'run')} not complete ({names}{more}); {first}: {lacking[first]}; "
        "mend it and give the same command again: what is complete stands"
    )
