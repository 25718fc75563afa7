"""`make bench`: where the time goes, against what one would run instead, as a table and as JSON."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import page
from benchmarks.harness import Bench
from benchmarks.measure import Figure
from loop import flags
from loop.errors import AutoresearchError, UsageError, choose, ending
from loop.files import write_atomic
from loop.flags import flag
from loop.trial import Json

NAMES = ("cli", "overhead", "trial", "stream", "cache", "brain", "reading", "collect", "trainee")
"""Each is a module beside this one."""


@dataclass(frozen=True)
class BenchArgs:
    """Measure what the loop costs; every figure is a ratio taken in alternation."""

    only: str = flag("", f"of {', '.join(NAMES)}, by commas; all if left out")
    rounds: int = flag(5, "times that each side is measured")
    full: bool = flag(False, "also the large sizes: a hundred thousand trials, a million rows")
    out: Path = flag(Path("bench.json"), "the figures as JSON")
    doc: Path | None = flag(None, "a page with the marks <!-- bench --> (--full: bench-full)")

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise UsageError(f"--rounds is {self.rounds}: a spread needs 2")


def run(argv: Sequence[str]) -> int:
    """Measure, show and write. What a machine cannot do is said, and does not stop the rest."""
    args = flags.parse("bench", BenchArgs, argv)
    names = [n.strip() for n in args.only.split(",") if n.strip()] or list(NAMES)
    for name in names:
        choose("benchmark", name, list(NAMES))
    console, about, found = Console(), machine(), dict[str, list[Figure]]()
    lacks: dict[str, str] = {}
    for name in names:
        console.print(f"{name} ...", style="dim")
        found[name] = []
        try:
            with TemporaryDirectory(prefix="bench-") as place:
                module = import_module(f"benchmarks.{name}")
                for figure in module.run(Bench(Path(place), args.rounds, args.full)):
                    found[name].append(figure)
                    _write(args.out, about, found, lacks)
        except AutoresearchError as error:
            lacks[name] = str(error)
        about["load_after"] = round(os.getloadavg()[0], 2)
        _write(args.out, about, found, lacks)
    console.print(table(found))
    for name, why in lacks.items():
        console.print(f"not measured: {name}: {why}", style="yellow", markup=False)
    console.print(f"written: {args.out}", markup=False)
    if args.doc:
        name = "bench-full" if args.full else "bench"
        page.insert(args.doc, name, page.markdown(about, found, lacks, cells))
    return 0


def table(found: dict[str, list[Figure]]) -> Table:
    """A line a figure."""
    shown = Table(box=box.SIMPLE_HEAD, caption="median and quartiles of n rounds in alternation")
    shown.add_column("what", overflow="fold", min_width=34)
    for title in ("median", "quartiles", "cpu", "n", "goal"):
        shown.add_column(title, overflow="fold")
    for name, figures in found.items():
        for figure in figures:
            what = Text.assemble(f"{name}: {figure.what}", (f"\n{figure.note}", "dim"))
            style = "yellow" if figure.met is False else None
            shown.add_row(what, *cells(figure), style=style)
    return shown


def cells(figure: Figure) -> tuple[str, ...]:
    """The columns of a figure beside its name, as text."""
    unit = "" if figure.unit == "x" else f" {figure.unit}"
    goal = "" if figure.goal is None else f"{figure.goal[0]} {figure.goal[1]:g}"
    return (
        f"{figure.median:.3g}{unit}",
        f"{figure.low:.3g} to {figure.high:.3g}" if figure.n > 1 else "one",
        "" if figure.processor is None else f"{figure.processor:.3g}",
        str(figure.n),
        goal + {True: ", met", False: ", missed", None: ""}[figure.met],
    )


def machine() -> Json:
    """Where and when: what a reader needs to compare."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    versions = {name: metadata.version(name) for name in ("torch", "xllamacpp", "numpy")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": ", ".join(sorted(names)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **versions,
        "load_before": round(os.getloadavg()[0], 2),
    }


def _write(out: Path, about: Json, found: dict[str, list[Figure]], lacks: dict[str, str]) -> None:
    figures = {
        name: [asdict(figure) | {"met": figure.met} for figure in group]
        for name, group in found.items()
    }
    body = {"machine": about, "figures": figures, "not_measured": lacks}
    try:
        write_atomic(out, json.dumps(body, indent=1).encode())
    except OSError as error:
        raise AutoresearchError(f"cannot write {out}: {error.strerror}; name another") from None


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
