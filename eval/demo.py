"""`demo`: the whole story on this machine, with the embedded 135M brain and the built-in target.

1. Harvest a few measured moves on a variant of the target, beside the small corpus that ships here.
2. Three arms on a variant that the corpus has not seen: a control that edits by chance, the brain
   choosing from a menu, the brain editing freely.
3. Corpus -> rows -> an adapter of the brain -> merged, past its gates.
4. The arm with the adapter on the same unseen variant, and one report over all four. It is asked
   about one move at a time (`pointwise`): of what was tried that is what an adapter helps
   (docs/pointwise.md).

Every step is the command that a user would type, run as a process of its own.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval import report
from eval.summary import Summary, summarise
from eval.table import table
from eval.words import measure
from loop import flags
from loop.brains.models import cached
from loop.errors import AutoresearchError, UsageError
from loop.flags import flag
from loop.rate import wilson
from loop.sandbox import LACKS, SANDBOXES, open_box
from loop.start import set_up
from loop.target import BUILT_IN, load

BRAIN = "smollm2-135m"
SEEN, UNSEEN = "kjv", "kjv-short"
SHIPPED = Path(__file__).parent.parent / "data_collection" / "surveys"
"""A corpus of single moves, measured on other variants than UNSEEN (docs/pointwise.md)."""
REPLY = 96
"""Tokens of a menu's reply: short ones are what a CPU has time for."""


@dataclass(frozen=True)
class Arm:
    """One run of the demo. `adapted`: its brain is the merged model."""

    name: str
    strategy: str
    trials: int
    variant: str = UNSEEN
    adapted: bool = False


HARVEST = Arm("harvest", "random_edit", 4, SEEN)
ARMS = (Arm("bare", "bare", 3), Arm("menu", "menu", 6), Arm("random_edit", "random_edit", 6))
ADAPTER = Arm("adapter", "pointwise", 6, adapted=True)
"""The slowest first, so that no worker idles at the end; the adapter's when it is trained."""


@dataclass(frozen=True)
class DemoArgs:
    """Run arms with the embedded brain, train an adapter for it, run that too, and report."""

    out: Path = flag(Path("demo"), "folder of runs, corpus, adapter and report")
    seed: int = flag(0, "of the proposals and of the training")
    budget: str = flag("", "of one experiment; the cpu profile's if left out")
    steps: int = flag(24, "of the adapter's training, four rows each; 0: no adapter")
    sandbox: str = flag("auto", "around experiments", choices=SANDBOXES)
    workers: int = flag(0, "runs at once; 0: one a core, three at most")

    def __post_init__(self) -> None:
        if self.steps < 0 or self.workers < 0:
            raise UsageError("--steps and --workers are 0 or more")


def run(argv: Sequence[str]) -> int:
    """The verb `demo`. Raises AutoresearchError when a step fails."""
    args = flags.parse("demo", DemoArgs, argv)
    if args.out.exists() and any(args.out.iterdir()):
        raise UsageError(f"{args.out} is not empty; remove it, or name another --out")
    console, began = Console(), time.monotonic()
    if not open_box(args.sandbox).bwrap:
        console.print(LACKS, style="yellow")
    said = "ten to fifteen minutes" if args.steps else "five to ten minutes"
    console.print(f"fetching the model {BRAIN} and the text (once); then {said} on two cores",
                  highlight=False)  # fmt: skip
    cached(BRAIN)
    set_up(load(BUILT_IN, "cpu"), BUILT_IN)
    args.out.mkdir(parents=True, exist_ok=True)
    first = [*ARMS, *([HARVEST] if args.steps else [])]
    failed = _side_by_side(args, first, console)
    if args.steps and not failed:
        failed = _specialise(args, console) or _side_by_side(args, [ADAPTER], console)
    _show(args, console)
    if failed:
        raise AutoresearchError(f"demo: {failed} failed; its last line above says why")
    console.print(f"done in {time.monotonic() - began:.0f} s", highlight=False)
    return 0


def _side_by_side(args: DemoArgs, arms: Sequence[Arm], console: Console) -> str:
    """Run `arms`, a few at once; the names of those that failed."""
    with ThreadPoolExecutor(args.workers or min(3, _cores())) as pool:
        statuses = list(pool.map(lambda arm: _step(arm.name, _run(args, arm), console), arms))
    return ", ".join(arm.name for arm, status in zip(arms, statuses, strict=True) if status)


def _specialise(args: DemoArgs, console: Console) -> str:
    """Corpus, rows, adapter, merged model; the name of the step that failed, "" if none did."""
    out, (gguf, _) = args.out, cached(BRAIN)
    render = ["--render", "sft", "--strategy", "pointwise", "--negatives", 1.5, "--tokenizer", gguf]
    train = ["--preset", "smollm2-cpu", "--held-out", "none", "--max-steps", args.steps]
    train += ["--learning-rate", 5e-4]
    steps: dict[str, list[object]] = {
        "collect": ["collect", out / HARVEST.name, "--cap", 0, "--out", out / "corpus"],
        "render": ["collect", *render, SHIPPED, out / "corpus", "--out", out / "rows"],
        "finetune": ["finetune", out / "rows", *train, "--out", out / "trained"],
        "export": ["adapters", "export", out / "trained", "--to", "merged-gguf"],
    }
    for name, command in steps.items():
        if _step(name, ["autoresearch", *map(str, command)], console, threads=_cores()):
            return name
    return ""


def _run(args: DemoArgs, arm: Arm) -> list[str]:
    """The command of one run."""
    model = args.out / "trained" / "merged.gguf" if arm.adapted else BRAIN
    command = ["loop", "--out", args.out / arm.name, "--strategy", arm.strategy]
    command += ["--brain", f"llamacpp:{model}", "--threads", 1, "--profile", "cpu"]
    command += ["--variant", arm.variant, "--trials", arm.trials, "--seed", args.seed]
    command += [
        "--sandbox",
        args.sandbox,
        "--reply-tokens",
        512 if arm.strategy == "bare" else REPLY,
    ]
    # Confirming a gain costs ten runs or more: a demo shows the turns, not what to believe.
    command += ["--judge", "naive", "--final-seeds", 0]
    return [*map(str, command), *(["--budget", args.budget] if args.budget else [])]


def _step(name: str, command: Sequence[str], console: Console, threads: int = 1) -> int:
    """A command as a process of its own, its lines shown under its name; its status."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=_environment(threads),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            with _PRINTING:
                console.print(Text(f"{name:12s}", "cyan") + Text.from_ansi(line.rstrip()))
        return process.wait()
    finally:
        process.terminate()
        process.wait()


def _show(args: DemoArgs, console: Console) -> None:
    """Table, rates and page of the arms that left something."""
    folders = [args.out / arm.name for arm in (*ARMS, ADAPTER)]
    done = [folder for folder in folders if (folder / "ledger.jsonl").exists()]
    if not done:
        return
    found = [summarise(folder) for folder in done]
    console.print(table(found))
    console.print(rates(found))
    page = report.write(done, args.out / "report.html")
    console.print(f"report: {page.absolute()}", highlight=False)


def rates(found: Sequence[Summary]) -> Table:
    """Of each run: the share of proposals that were valid edits and of those that improved, each
    with Wilson's 95 % interval and its n."""
    made = Table(title="rates", caption="too few to tell the arms apart: see docs/pointwise.md")
    for name in ("run", "n", "valid edits", "improved", "best"):
        made.add_column(name, justify="left" if name == "run" else "right")
    for one in found:
        valid = one.proposed - sum(one.rejected.values())
        shares = [_share(good, one.proposed) for good in (valid, one.kept)]
        made.add_row(one.name, f"{one.proposed}", *shares, measure(one.best))
    return made


def _share(good: int, n: int) -> str:
    if not n:
        return "not measured"
    low, high = wilson(good, n)
    return f"{good / n:.0%} ({low:.0%} to {high:.0%})"


_PRINTING = threading.Lock()


def _environment(threads: int) -> dict[str, str]:
    width, torch = str(Console().width - 13), {"OMP_NUM_THREADS": str(threads)}
    return {**os.environ, "COLUMNS": width, "PYTHONUNBUFFERED": "1", **torch}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
