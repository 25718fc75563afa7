"""The report of runs: one self-contained page with no script in it.

What models wrote is foreign text. It is escaped by the template engine, characters that hide are
made visible (`eval.words.visible`), and a content security policy allows nothing but the page's own
style sheet. The chart is inline SVG, so nothing is embedded as JSON either.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval import pages, words
from eval.curve import charts
from eval.summary import Summary, improvement, kind, reason, score, summarise, trainer_seconds
from eval.table import failures, table
from loop import flags
from loop.errors import UsageError
from loop.flags import flag
from loop.trial import Call, Crashed, Invalid, Measurement, Rejected, Stopped, TimedOut, Trial

if TYPE_CHECKING:
    from eval.live import Live

__all__ = ["ReportArgs", "Summary", "page", "run", "summarise", "table", "write"]

DETAILED = 1000
"""Trials shown with all they said; a page of more runs shares them out evenly."""
EXAMPLES = 3
"""Failures of each kind that keep their details where not all trials can."""
DIFF_CHARS, TEXT_CHARS, TAIL_CHARS = 12_000, 8_000, 4_000
REPEATED_CHARS = 300
"""A message part of this length is shown once."""
COMPARED = ("profile", "variant", "budget", "judge", "sandbox")
"""Entries of run.toml that must agree for scores of two runs to be compared."""


@dataclass(frozen=True)
class ReportArgs:
    """Runs, or the folder of an executed plan -> one self-contained HTML page, and tables."""

    dirs: tuple[Path, ...] = flag(help="folders of runs, or of one plan", positional=True)
    out: Path = flag(Path("report.html"), "the page; of a plan also the same as .md beside it")
    table: Path | None = flag(None, "also every trial as a row: a .parquet or .csv file")
    inspect: Path | None = flag(None, "also the brain's conversations: a folder for Inspect's logs")


def run(argv: Sequence[str]) -> int:
    """The verb `report`: write the page and say where it is. Raises as `write` does, UsageError."""
    from rich.console import Console

    from eval import export, headtohead

    args = flags.parse("report", ReportArgs, argv)
    console = Console()
    if plans := [folder for folder in args.dirs if headtohead.is_plan(folder)]:
        if len(args.dirs) > 1:
            raise UsageError(f"{plans[0]} is a plan's folder: name it alone, or runs within it")
        compared = headtohead.write(plans[0], args.out)
        for line in headtohead.said(compared):
            console.print(line, highlight=False, markup=False)
        runs = [run for of_arm in compared.runs.values() for run in of_arm]
        print(f"report of {words.count(len(runs), 'run')}: {args.out}, {args.out.stem}.md")
    else:
        runs = [summarise(folder) for folder in args.dirs]
        pages.write(args.out, page(runs))
        console.print(table(runs))
        print(f"report of {words.count(len(runs), 'run')}: {args.out}")
    if args.table:
        print(f"{words.count(export.table(runs, args.table), 'row')}: {args.table}")
    if args.inspect:
        print(f"{words.count(export.inspect_logs(runs, args.inspect), 'log')}: {args.inspect}")
    return 0


def write(folders: list[Path], out: Path) -> Path:
    """Write the report of the runs in `folders` to `out`, whole or not at all; returns `out`.

    Raises LedgerError: a folder is not a run. AutoresearchError: `out` cannot be written.
    """
    pages.write(out, page([summarise(folder) for folder in folders]))
    return out


def page(summaries: Sequence[Summary], live: "Live | None" = None) -> str:
    """The report as HTML, with `live` one that follows. The same summaries give the same bytes."""
    sections = _sections(summaries)
    runs = [(section.index, section.summary, section.detailed) for section in sections]
    return pages.html(
        "report.html.j2",
        ("report.css",),
        words.visible,
        live,
        sections=sections,
        views=[("trial", charts(runs, "trial")), ("seconds", charts(runs, "seconds"))],
        differences=_differences(summaries),
        priced=any(s.dollars is not None for s in summaries),
        naive=any(s.kept and s.info.get("judge") == "naive" for s in summaries),
        failures=failures,
        several=len(summaries) > 1,
    )


@dataclass(frozen=True)
class Text:
    """A text cut to a size: `more` characters are not shown. `same`: where it was shown before."""

    text: str
    more: int = 0
    same: tuple[str, str] | None = None


@dataclass(frozen=True)
class Row:
    """One trial in the list; `detail` is false where only this line of it is shown."""

    trial: Trial
    kind: str
    why: str
    delta: float | None
    detail: bool


@dataclass(frozen=True)
class Section:
    """One run of the page; `index` names it in links."""

    index: int
    summary: Summary
    detailed: set[int]
    shown: dict[str, str]

    @property
    def left_out(self) -> int:
        """Trials without details."""
        return len(self.summary.trials) - len(self.detailed)

    @property
    def headline(self) -> str:
        """What came of the run, in a sentence."""
        return " ".join(part for part in (final(self.summary), _headline(self.summary)) if part)

    def rows(self) -> Iterator[Row]:
        """Every trial, in order."""
        for trial in self.summary.trials:
            metric, before = score(trial), trial.context.incumbent_metric
            comparable = metric and before and metric.name == before.name
            yield Row(
                trial=trial,
                kind=kind(trial),
                why=_why(trial),
                delta=improvement(before, metric) if comparable and before and metric else None,
                detail=trial.id in self.detailed,
            )

    def diff(self, trial: Trial) -> Iterator[tuple[str, str]]:
        """The lines of the edit, each with the class that colours it."""
        edit = trial.proposal.edit
        text = cut(edit.diff if edit else "", DIFF_CHARS)
        for line in text.text.removesuffix("\n").split("\n"):
            yield words.diff_class(line), line
        if text.more:
            yield "more", f"… {text.more:,} more characters"

    def parts(self, trial: Trial, call: Call) -> Iterator[tuple[str, list[Text]]]:
        """Each message's role and parts; a long part shown before is a link to where."""
        for message in call.messages:
            yield message.role, [self._part(trial, part) for part in message.parts]

    def _part(self, trial: Trial, part: str) -> Text:
        here = f"r{self.index}t{trial.id}"
        if len(part) >= REPEATED_CHARS and self.shown.setdefault(part, here) != here:
            where = self.shown[part]
            return Text("", len(part), (where, where.partition("t")[2]))
        return cut(part, TEXT_CHARS)

    def reply(self, text: str) -> Text:
        """A reply, cut to size."""
        return cut(text, TEXT_CHARS)

    def evidence(self, trial: Trial) -> Text:
        """The judge's evidence as JSON, empty where there is none."""
        evidence = trial.decision.evidence
        return cut(
            json.dumps(evidence, indent=1, ensure_ascii=False) if evidence else "", TAIL_CHARS
        )

    def ending(self, trial: Trial) -> Text:
        """What a failed trial left: the end of its log, or the detail of its rejection."""
        match trial.outcome:
            case Crashed(tail=text):
                return Text(text[-TAIL_CHARS:], max(0, len(text) - TAIL_CHARS))
            case Rejected(detail=text) | Invalid(detail=text):
                return cut(text, TAIL_CHARS)
        return Text("")

    def replicates(self, trial: Trial) -> list[Measurement]:
        """Further measurements of the trial's code."""
        return [m for m in self.summary.measurements if m.trial == trial.id]

    def info(self) -> str:
        """run.toml as JSON, to be read by people."""
        return json.dumps(self.summary.info, indent=1, ensure_ascii=False, default=str)

    def trainer_seconds(self, trial: Trial) -> float:
        """Seconds of the trial that were not the brain's."""
        return trainer_seconds(trial)


def final(summary: Summary) -> str:
    """The figure that a reader may believe, in a sentence; empty where it was not measured."""
    check = summary.final
    if check is None:
        return ""
    text = "the untouched test text" if check.untouched else "the target's own text"
    pairs = words.count(check.n, "pair")
    interval = "no interval from one pair"
    if check.low is not None and check.high is not None:
        low, high = words.signed(check.low), words.signed(check.high)
        interval = f"95 % interval {low} to {high}"
    return (
        f"Final check of trial {check.trial} on fresh seeds and {text}: {check.metric} "
        f"{words.number(check.baseline)} to {words.number(check.best)}, better by "
        f"{words.signed(check.gain)} ({interval}; n = {pairs}). What follows was seen on the way."
    )


def cut(text: str, size: int) -> Text:
    """The first `size` characters, and how many more there are."""
    return Text(text[:size], max(0, len(text) - size))


def _sections(summaries: Sequence[Summary]) -> list[Section]:
    share = max(1, DETAILED // max(1, len(summaries)))
    shown: dict[str, str] = {}
    return [Section(i, s, _detailed(s, share), shown) for i, s in enumerate(summaries)]


def _detailed(summary: Summary, share: int) -> set[int]:
    """Which trials keep their details: kept ones, examples of each failure, then the latest."""
    trials = summary.trials
    if len(trials) <= share:
        return {trial.id for trial in trials}
    seen: dict[str | None, int] = {}
    chosen: list[int] = []
    for trial in trials:
        why = reason(trial)
        seen[why] = seen.get(why, 0) + 1
        if kind(trial) in ("keep", "baseline") or (why and seen[why] <= EXAMPLES):
            chosen.append(trial.id)
    latest = [trial.id for trial in reversed(trials)]
    return set(list(dict.fromkeys([*reversed(chosen), *latest]))[:share])


def _why(trial: Trial) -> str:
    """A failure's type and reason; empty for a trial with a usable score."""
    why = words.plain(reason(trial) or "")
    match trial.outcome:
        case TimedOut(after=after):
            return f"timed out after {words.duration(after)}"
        case Stopped(at=at):
            return f"stopped at {at:.0%}, {why}"
        case Crashed(stage=stage):
            return f"crashed in {stage}: {why}"
        case Rejected():
            return f"rejected: {why}"
        case Invalid():
            return f"invalid: {why}"
    return why


def _headline(summary: Summary) -> str:
    for event in summary.events:
        if event.name == "baseline_failed" and not summary.trials:
            why = words.plain(words.short(str(event.data.get("reason", "unknown"))))
            return f"The baseline gave no score ({why}), so no trial was run."
    if not summary.trials:
        return "This run has no trial yet, not even its baseline."
    if summary.best is None:
        return "The baseline has no score, so no trial could be compared with it."
    name, base = summary.best.name, words.measure(summary.baseline)
    if summary.proposed == 0:
        return f"Only the baseline was measured: {name} {base} (n = 1). No trial has run yet."
    tried = words.count(summary.proposed, "trial")
    if not summary.kept:
        return f"None of {tried} was kept: the baseline's {name} {base} (n = 1) stands."
    if not summary.gain:
        return f"{tried}, {summary.kept:,} kept; the best {name} is still {base} (n = 1)."
    verb = "fell" if summary.best.direction == "min" else "rose"
    share = _share(summary)
    return (
        f"{name} {verb} from {base} to {words.measure(summary.best)} in {tried}{share}; "
        f"{summary.kept:,} kept. One measurement each (n = 1)."
    )


def _share(summary: Summary) -> str:
    if summary.baseline is None or not summary.gain or not summary.baseline.value:
        return ""
    return f" ({abs(summary.gain / summary.baseline.value):.2%} better)"


def _differences(summaries: Sequence[Summary]) -> list[str]:
    """What the runs do not share and scores depend on, a phrase each."""
    found = []
    for key in COMPARED:
        values = list(dict.fromkeys(str(s.info.get(key, "not recorded")) for s in summaries))
        if len(values) > 1:
            found.append(f"{key} ({', '.join(words.short(v, 40) or 'none' for v in values)})")
    targets = [s.target for s in summaries if s.target is not None]
    return ["target", *found] if any(t != targets[0] for t in targets) else found
