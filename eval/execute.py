"""`eval PLAN`: run every arm on every seed, so that whatever drifts hurts all arms alike.

One seed after the other, the pilot's first; within a seed the arms take turns, one trial each. All
that is remembered is in the run folders `OUT/runs/<arm>/<seed>/`, so that the same command goes on
wherever it was stopped, by Ctrl-C or by force.
"""

import json
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from eval import lock
from eval import plan as plans
from eval.plan import Fixed, Plan
from eval.progress import Note, PlanProgress
from eval.results import PROBLEMS, problems, standing
from eval.words import count
from eval.worker import EvalArgs, Job, Shared, Stop, Tell, take_turns
from loop import flags, secrets
from loop.__main__ import Interrupt
from loop.errors import INTERRUPTED, AutoresearchError, UsageError
from loop.files import write_atomic
from loop.sandbox import LACKS, open_box

Execute = Callable[[Job, Tell, Stop], None]
Stands = dict[tuple[str, int], tuple[int, str]]
"""(arm, seed) -> what `eval.results.standing` says of its run."""


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
                  for seed in job.seeds for arm in plan.arms}  # fmt: skip
        trials = sum(done for done, _ in stands.values())
        record = plans.fix(plan, text, job.base, args.out, amend=args.amend, trials=trials)
        _said(console, record, stands, args)
        with _executor(job) as (execute, at_once):
            stop = Interrupt(console)
            progress = PlanProgress(console, *_todo(plan, stands), at_once)
            try:
                with progress:
                    execute(job, _Noted(args.out, progress), stop)
            except KeyboardInterrupt:
                console.print("trials in flight were abandoned; all finished ones are on the disk")
    if stop.asked:
        console.print("go on with the same command", highlight=False)
        return INTERRUPTED
    _show(console, args.out)
    _end(job)
    return 0


@contextmanager
def _executor(job: Job) -> Iterator[tuple[Execute, int]]:
    """What executes the plan, and how many runs at once. Raises AutoresearchError."""
    if job.args.executor == "ray":
        from eval import ray_executor

        with ray_executor.connected(job) as at_once:
            yield ray_executor.execute, at_once
    else:
        yield (_here if job.args.workers == 1 else _beside), job.args.workers


def _here(job: Job, tell: Tell, stop: Stop) -> None:
    """All seeds in this process."""
    shared = Shared(job, tell)
    try:
        for seed in job.seeds:
            if stop():
                return
            take_turns(job, job.todo(seed), seed, tell, stop, shared)
    finally:
        shared.close()


def _beside(job: Job, tell: Tell, stop: Stop) -> None:
    """Whole seeds in processes of their own, as many as there are workers."""
    context = multiprocessing.get_context("spawn")
    notes, seeds, halt = context.Queue(), context.Queue(), context.Event()
    for seed in (*job.seeds, *[None] * job.args.workers):
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
            take_turns(job, job.todo(seed), seed, notes.put, stop, shared)
    except KeyboardInterrupt:
        notes.cancel_join_thread()
    finally:
        shared.close()


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
        held = lock.take(out / lock.EVAL)
    except OSError as error:
        raise AutoresearchError(f"cannot write in {out}: {error.strerror}") from None
    if held is None:
        raise UsageError(f"another eval is at work in {out}: wait for it or stop it")
    try:
        yield
    finally:
        os.close(held)


def _said(console: Console, record: Fixed, stands: Stands, args: EvalArgs) -> None:
    plan = record.plan
    seeds = count(len(plan.seeds), "seed")
    pilot = f" and {len(plan.pilot_seeds)} of a pilot" if plan.pilot_seeds else ""
    said = [f"{count(len(plan.arms), 'arm')} x {seeds}{pilot}, {count(plan.trials, 'trial')} each; "
            f"plan {plan.hash[:12]}, fixed {record.at}"]  # fmt: skip
    if done := sum(not lacks for _, lacks in stands.values()):
        said.append(f"{done} of {count(len(stands), 'run')} are complete already")
    elsewhere = args.executor == "ray" and args.sandbox != "none"  # each machine looks for itself
    if plan.runner == "boxed" and not elsewhere and not open_box(args.sandbox).bwrap:
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
    for seed in job.seeds:
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
