"""`demo`: the whole story on this machine, with the embedded 135M brain and the built-in target.

Three arms on the same target and seed, each a run of its own, by as many one-thread workers as
there are cores: a control that edits by chance, the brain choosing from a menu, the brain editing
freely. Then one report over all three.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from eval import report
from eval.summary import summarise
from eval.table import table
from loop import flags
from loop.brains.models import cached
from loop.errors import AutoresearchError, UsageError
from loop.flags import flag
from loop.sandbox import LACKS, SANDBOXES, open_box
from loop.start import set_up
from loop.target import BUILT_IN, load

BRAIN = "smollm2-135m"
ARMS = {"bare": 3, "menu": 6, "random_edit": 6}
"""Strategy -> trials; the slowest first, so that no worker idles at the end."""


@dataclass(frozen=True)
class DemoArgs:
    """Run three arms with the embedded brain and report on them."""

    out: Path = flag(Path("demo"), "folder of the runs and the report")
    seed: int = flag(0, "of the proposals and of the training")
    budget: str = flag("", "of one experiment; the cpu profile's if left out")
    sandbox: str = flag("auto", "around experiments", choices=SANDBOXES)
    workers: int = flag(0, "runs at once; 0: one a core, three at most")


def run(argv: Sequence[str]) -> int:
    """The verb `demo`. Raises AutoresearchError when an arm fails."""
    args = flags.parse("demo", DemoArgs, argv)
    if any((args.out / arm).exists() for arm in ARMS):
        raise UsageError(f"{args.out} holds a demo already; remove it, or name another --out")
    console, began = Console(), time.monotonic()
    if not open_box(args.sandbox).bwrap:
        console.print(LACKS, style="yellow")
    _fetch(console)
    workers = args.workers or min(len(ARMS), _cores())
    console.print(
        f"{len(ARMS)} arms, {sum(ARMS.values())} trials and a baseline each, {workers} at a time; "
        "five to ten minutes on two cores",
        highlight=False,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        statuses = list(pool.map(lambda arm: _run_arm(args, arm, console), ARMS))
    done = [args.out / arm for arm in ARMS if (args.out / arm / "ledger.jsonl").exists()]
    if done:
        console.print(table([summarise(folder) for folder in done]))
        page = report.write(done, args.out / "report.html")
        console.print(f"report: {page.absolute()}", highlight=False)
    if any(statuses):
        failed = ", ".join(arm for arm, status in zip(ARMS, statuses, strict=True) if status)
        raise AutoresearchError(f"demo: {failed} failed; its last line above says why")
    console.print(f"done in {time.monotonic() - began:.0f} s", highlight=False)
    return 0


def _fetch(console: Console) -> None:
    """Model and text once, before the workers, so that none of them waits for another."""
    console.print(f"fetching the model {BRAIN} and the text (once)", highlight=False)
    cached(BRAIN)
    set_up(load(BUILT_IN, "cpu"), BUILT_IN)


def _run_arm(args: DemoArgs, arm: str, console: Console) -> int:
    """One run as a process of its own, its lines shown under the arm's name."""
    command = [sys.executable, "-m", "loop", "--out", str(args.out / arm), "--strategy", arm]
    command += ["--brain", f"llamacpp:{BRAIN}", "--threads", "1", "--profile", "cpu"]
    command += ["--trials", str(ARMS[arm]), "--seed", str(args.seed), "--sandbox", args.sandbox]
    # Confirming a gain costs ten runs or more: a demo shows the turns, not what to believe.
    command += ["--judge", "naive", "--final-seeds", "0"]
    command += ["--budget", args.budget] if args.budget else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=_environment(),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            with _PRINTING:
                console.print(Text(f"{arm:12s}", "cyan") + Text.from_ansi(line.rstrip()))
        return process.wait()
    finally:
        process.terminate()
        process.wait()


_PRINTING = threading.Lock()


def _environment() -> dict[str, str]:
    import os

    width = str(Console().width - 13)
    return {**os.environ, "COLUMNS": width, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))
