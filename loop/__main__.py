"""`python -m loop`: compose brain, strategy, judge and target, and let the loop turn."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from rich.console import Console

from loop import ahead, flags, gpu, secrets, start, warm
from loop.errors import INTERRUPTED, ending
from loop.experiment import Limits, Runner
from loop.ledger import Ledger
from loop.optimiser import StudyMirror
from loop.progress import Progress
from loop.run import Loop, Observer
from loop.sandbox import LACKS, open_box
from loop.tracking import Mode, WandbTracker
from loop.trial import Event, Trial

OPTIMISED = ("tpe", "hybrid")


class Interrupt:
    """Ctrl-C once: finish the trial in flight. Twice, or SIGTERM: abandon it, cleanly."""

    def __init__(self, console: Console) -> None:
        self._console, self.asked = console, False
        signal.signal(signal.SIGINT, self._once)
        signal.signal(signal.SIGTERM, self._now)

    def __call__(self) -> bool:
        return self.asked

    def _once(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._console.print(
            "stopping after the trial in flight; Ctrl-C again abandons it", style="yellow"
        )

    def _now(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


def run(argv: Sequence[str], console: Console | None = None) -> int:
    """The verb `run`. Returns 0, or 130 when it was interrupted. Raises AutoresearchError."""
    args = flags.parse("run", start.RunArgs, argv)
    secrets.hide()
    if args.resume:
        args = start.recorded(args, argv)
    console = console or Console()
    box = open_box(args.sandbox)
    # Before there is a folder: a brain that cannot be had leaves nothing behind.
    composed = None if args.resume else start.strategy(args, 0)
    prepared = start.prepare(args)
    told = ahead.said(args.brain, prepared.budget) if args.ahead else ()
    for line in (*prepared.said, *(() if box.bwrap else (LACKS,)), *told):
        console.print(f"· {line}", style="dim", highlight=False, markup=False)
    stop = Interrupt(console)
    with Ledger(args.out, repair=args.repair) as ledger:
        strategy, brain = composed or start.strategy(args, replies(ledger))
        limits = Limits(args.timeout or prepared.target.timeout_s, args.memory_mb)
        progress = Progress(console, prepared.name, args.trials)
        tracker = _tracker(prepared)
        worker = warm.worker(prepared.target, box, lambda line: console.print(f"· {line}"))
        runner = Runner(prepared.target, box, limits, worker)
        thread = ahead.Ahead(getattr(brain, "abandon", None)) if args.ahead else None
        loop = Loop(
            start.settings(prepared),
            strategy=strategy,
            judge=start.judge(args, prepared.target, prepared.budget),
            runner=gpu.arrange(args.gpu, runner, brain),
            workspace=prepared.workspace,
            ledger=ledger,
            observers=[progress, *mirrors(prepared), *([tracker] if tracker else [])],
            stop=stop,
            ahead=thread,
        )
        try:
            with progress:
                loop.run()
        except KeyboardInterrupt:
            console.print("the trial in flight was abandoned; all finished ones are on the disk")
        finally:
            if thread:
                thread.close()
            if tracker:
                tracker.finish()
            if worker:
                worker.close()
    if stop.asked:
        command = f"autoresearch run --resume --out {args.out}"
        console.print(f"go on with: {command}", highlight=False, markup=False, soft_wrap=True)
        return INTERRUPTED
    return 0


def mirrors(prepared: start.Prepared) -> list[Observer]:
    """What the optimiser's own tools open, beside the ledger."""
    args = prepared.args
    return [StudyMirror(args.out, prepared.target)] if args.strategy in OPTIMISED else []


def _tracker(prepared: start.Prepared) -> WandbTracker | None:
    args = prepared.args
    if args.wandb == "off":
        return None
    mode: Mode = "offline" if args.wandb == "offline" else "online"
    return WandbTracker(args.out, prepared.name, mode, start.read_run_toml(args.out)["args"])


def replies(ledger: Ledger) -> int:
    """How many replies of its brain the run has consumed."""
    count = 0
    for record in ledger.records:
        if isinstance(record, Trial):
            count += sum(len(call.replies) for call in record.proposal.calls)
        elif isinstance(record, Event) and record.name == ahead.UNUSED:
            count += record.data.get("replies", 0)
    return count


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
