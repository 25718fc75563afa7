"""`costs`: what an experiment costs, by what the ledgers say was used.

Three ways to pay for it: the brain's tokens at an API (what was paid where that is recorded, else
the price of the same tokens at `--api`), electricity for one's own GPU, or a rented GPU. The last
two are for the whole time of the experiment, brain and training; with an API the training still
needs one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.summary import Summary, summarise
from eval.words import duration, listed
from loop import flags
from loop.errors import UsageError
from loop.flags import flag
from loop.prices import price_of, source_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class CostsArgs:
    """What an experiment costs: at an API, on your own GPU, on a rented one."""

    runs: tuple[Path, ...] = flag(help="folders of runs", positional=True)
    api: str = flag("anthropic:claude-opus-5-5", "whose price local tokens are compared with")
    watts: float = flag(450.0, "drawn by the machine while it works")
    kwh: float = flag(0.30, "dollars for a kilowatt-hour")
    rent: float = flag(0.50, "dollars for an hour of a rented GPU")


@dataclass(frozen=True)
class Cost:
    """Means over the `n` proposals of a run: dollars and seconds for one experiment.

    `paid`: `api` was really paid, not computed. `per_kept`: trainer-seconds of the whole run for
    each improvement that it kept; None: it kept none.
    """

    name: str
    n: int
    kept: int
    rejected: str
    tokens: float
    api: float
    paid: bool
    own: float
    rented: float
    brain_seconds: float
    trainer_seconds: float
    per_kept: float | None


def run(argv: Sequence[str]) -> int:
    """The verb `costs`. Raises LedgerError for a folder that is no run, UsageError."""
    from rich.console import Console

    args = flags.parse("costs", CostsArgs, argv)
    rows = costs([summarise(folder) for folder in args.runs], args)
    console = Console()
    console.print(work(rows))
    console.print(table(rows, args))
    return 0


def costs(summaries: Sequence[Summary], args: CostsArgs) -> list[Cost]:
    """One row a run, in their order; a run without a proposal has none."""
    if price_of(args.api) is None:
        raise UsageError(f"no price is known for --api {args.api}; see loop/prices.toml")
    return [_cost(summary, args) for summary in summaries if summary.proposed]


def work(rows: Sequence[Cost]) -> "Table":
    """What was done for it: proposals, what came of them, tokens and seconds for one."""
    result = _table("means over n proposals; trainer / kept is for the whole run")
    for name in ("n", "kept", "tokens", "brain", "trainer", "trainer / kept"):
        result.add_column(name, justify="right")
    result.add_column("rejected")
    for row in rows:
        kept = "none kept" if row.per_kept is None else duration(row.per_kept)
        result.add_row(
            *(row.name, f"{row.n:,}", f"{row.kept:,}", f"{row.tokens:,.0f}"),
            *(duration(row.brain_seconds), duration(row.trainer_seconds), kept, row.rejected),
        )
    return result


def table(rows: Sequence[Cost], args: CostsArgs) -> "Table":
    """Dollars for one experiment and for a hundred, by who is paid."""
    result = _table(
        f"dollars for 1 and for 100 experiments. API: ≈ is the price of the same tokens at "
        f"{args.api} ({source_of(args.api)}). Own GPU: {args.watts:g} W at ${args.kwh:g}/kWh. "
        f"Rented: ${args.rent:g}/h. --api --watts --kwh --rent change them."
    )
    for name in ("brain at an API", "100", "own GPU", "100", "rented GPU", "100"):
        result.add_column(name, justify="right")
    for row in rows:
        api = _dollars(row.api, "" if row.paid else "≈ ") if row.tokens else ("—", "—")
        result.add_row(row.name, *api, *_dollars(row.own), *_dollars(row.rented))
    return result


def _table(caption: str) -> "Table":
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption)
    result.add_column("run", overflow="fold")
    return result


def _cost(summary: Summary, args: CostsArgs) -> Cost:
    n, price = summary.proposed, price_of(args.api)
    assert price is not None, "checked by costs"
    read, written = summary.tokens_read, summary.tokens_written
    dollars = summary.dollars
    if dollars is None:
        dollars = price.dollars(read, summary.tokens_cached, written)
    hours = (summary.brain_seconds + summary.trainer_seconds) / 3600
    return Cost(
        name=summary.name,
        n=n,
        kept=summary.kept,
        rejected=listed(summary.rejected),
        tokens=(read + written) / n,
        api=dollars / n,
        paid=summary.dollars is not None,
        own=hours * args.watts / 1000 * args.kwh / n,
        rented=hours * args.rent / n,
        brain_seconds=summary.brain_seconds / n,
        trainer_seconds=summary.trainer_seconds / n,
        per_kept=summary.trainer_seconds / summary.kept if summary.kept else None,
    )


def _dollars(one: float, mark: str = "") -> tuple[str, str]:
    """Dollars for one and for a hundred, three digits of each."""
    one_, hundred = (f"{v:.3g}" if v < 100 else f"{v:,.0f}" for v in (one, 100 * one))
    return f"{mark}{one_}", hundred
