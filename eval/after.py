"""`run`: the loop, then the table and the report of what it did."""

from collections.abc import Sequence

from rich.console import Console

from eval import false_keeps, report
from eval.summary import summarise
from eval.table import table
from loop import flags
from loop.__main__ import run as run_loop
from loop.errors import AutoresearchError, LedgerError
from loop.ledger import LEDGER
from loop.start import RunArgs


def run(argv: Sequence[str]) -> int:
    """The verb `run`. Whatever ends the loop, what it did until then is shown."""
    args = flags.parse("run", RunArgs, argv)
    console = Console()
    try:
        status = run_loop(argv, console)
    except LedgerError:
        raise
    except AutoresearchError:
        if (args.out / LEDGER).exists():
            _show(args, console)
        raise
    _show(args, console)
    return status


def _show(args: RunArgs, console: Console) -> None:
    summary = summarise(args.out)
    if not summary.trials:
        return
    console.print(table([summary]))
    if said := false_keeps.said(summary):
        console.print(said, highlight=False)
    if check := report.final(summary):
        console.print(check, highlight=False)
    page = report.write([args.out], args.out / "report.html")
    console.print(f"report: {page}", highlight=False)
