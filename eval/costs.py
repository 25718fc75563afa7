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
from eval.words import duration
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
    arm: str
    n: int
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
    Console().print(table(rows, args))
    return 0


def costs(summaries: Sequence[Summary], args: CostsArgs) -> list[Cost]:
    """One row a run, in their order; a run without a proposal has none."""
    if price_of(args.api) is None:
        raise UsageError(f"no price is known for --api {args.api}; see loop/prices.toml")
    return [_cost(summary, args) for summary in summaries if summary.proposed]


def table(rows: Sequence[Cost], args: CostsArgs) -> "Table":
    """The rows for people: dollars for one experiment and for a hundred."""
    from rich.table import Table

    result = Table(
        caption=f"means over n experiments; dollars for 1 / 100. API: ≈ is the price of the same "
        f"tokens at {args.api} ({source_of(args.api)}). Own GPU: {args.watts:g} W at "
        f"${args.kwh:g}/kWh. Rented: ${args.rent:g}/h. --api --watts --kwh --rent change them."
    )
    for name in ("run", "arm"):
        result.add_column(name)
    for name in (
        *("n", "tokens", "brain at an API", "own GPU", "rented GPU"),
        *("brain", "trainer", "trainer / kept"),
    ):
        result.add_column(name, justify="right")
    for row in rows:
        api = "—" if not row.tokens else f"{'' if row.paid else '≈ '}{_dollars(row.api)}"
        kept = "none kept" if row.per_kept is None else duration(row.per_kept)
        result.add_row(
            *(row.name, row.arm, f"{row.n:,}", f"{row.tokens:,.0f}", api),
            *(_dollars(row.own), _dollars(row.rented)),
            *(duration(row.brain_seconds), duration(row.trainer_seconds), kept),
        )
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
        arm=summary.arm,
        n=n,
        tokens=(read + written) / n,
        api=dollars / n,
        paid=summary.dollars is not None,
        own=hours * args.watts / 1000 * args.kwh / n,
        rented=hours * args.rent / n,
        brain_seconds=summary.brain_seconds / n,
        trainer_seconds=summary.trainer_seconds / n,
        per_kept=summary.trainer_seconds / summary.kept if summary.kept else None,
    )


def _dollars(one: float) -> str:
    """Dollars for one and for a hundred, three digits of each."""
    return " / ".join(
        f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in (one, 100 * one)
    )
