"""`python -m loop`: compose brain, strategy, judge and target, and let the loop turn."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from rich.console import Console

from loop import flags, start, strategies
from loop.errors import AutoresearchError
from loop.experiment import Limits, Runner
from loop.ledger import Ledger
from loop.progress import Progress
from loop.run import Loop, Observer, Settings
from loop.sandbox import LACKS, open_box
from loop.tracking import Mode, WandbTracker
from loop.trial import Trial

INTERRUPTED = 130


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
    console = console or Console()
    box = open_box(args.sandbox)
    prepared = start.prepare(args, argv)
    args = prepared.args
    for line in (*prepared.said, *(() if box.bwrap else (LACKS,))):
        console.print(f"· {line}", style="dim", highlight=False)
    start.set_up(prepared.target, prepared.workspace.folder)
    stop = Interrupt(console)
    with Ledger(args.out, repair=args.repair) as ledger:
        used = sum(
            len(call.replies)
            for record in ledger.records
            if isinstance(record, Trial)
            for call in record.proposal.calls
        )
        strategy = strategies.build(args.strategy, start.connect(args, used), start.sampling(args))
        limits = Limits(args.timeout or prepared.target.timeout_s, args.memory_mb)
        progress = Progress(console, prepared.name, args.trials)
        observers: list[Observer] = [progress]
        tracker = None
        if args.wandb in ("offline", "online"):
            mode: Mode = "offline" if args.wandb == "offline" else "online"
            config = start.read_run_toml(args.out)["args"]
            tracker = WandbTracker(args.out, prepared.name, mode, config)
            observers.append(tracker)
        loop = Loop(
            Settings(prepared.name, args.seed, args.trials, prepared.budget, args.failsafe),
            strategy=strategy,
            judge=start.judge(args),
            runner=Runner(prepared.target, box, limits),
            workspace=prepared.workspace,
            ledger=ledger,
            observers=observers,
            stop=stop,
        )
        try:
            with progress:
                loop.run()
        except KeyboardInterrupt:
            console.print("the trial in flight was abandoned; all finished ones are on the disk")
        finally:
            if tracker is not None:
                tracker.finish()
    if stop.asked:
        console.print(f"go on with: autoresearch run --resume --out {args.out}", highlight=False)
        return INTERRUPTED
    return 0


def main() -> int:
    try:
        return run(sys.argv[1:])
    except AutoresearchError as error:
        print(f"autoresearch: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
