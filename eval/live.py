"""What a running loop or plan is doing now, read from its folder and from nothing else.

The loop is not asked and not touched: a finished trial is in the ledger, the one in flight has its
commit under refs/trials, a scratch folder while it trains, and a log that grows.
"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.headtohead import is_plan
from eval.plan import RECORD, fixed
from eval.results import RUNS
from eval.summary import Summary, summarise
from eval.words import diff_class
from loop.errors import AutoresearchError, TargetError
from loop.files import read_plain
from loop.git import git
from loop.ledger import LEDGER

TAIL_CHARS, DIFF_CHARS, REPLY_CHARS = 1_500, 8_000, 4_000
LOCKS = Path("/proc/locks")
FRESH_S = 2.0
"""How long what nvidia-smi said is believed."""


@dataclass(frozen=True)
class Gpu:
    """One GPU by nvidia-smi: use in percent, memory in MB."""

    name: str
    use: int
    used_mb: int
    total_mb: int


@dataclass(frozen=True)
class Row:
    """One run of a plan: finished trials of those wanted."""

    arm: str
    seed: int
    done: int
    wanted: int
    running: bool


@dataclass(frozen=True)
class Live:
    """A run (or the newest of a plan's) as it stands. `tag` changes when its ledger does.

    `trial`: the one in flight; `doing`: what is done with it, for `since` seconds; `diff`: its edit
    as (class, line), empty while the brain is asked. `reply`: the last on the disk, of trial
    `replied`. `log`: the end of what its experiment printed. `rows`: of a plan, every run.
    """

    tag: str
    running: bool
    where: str
    trial: int
    wanted: int
    doing: str
    since: float
    summary: Summary | None
    diff: tuple[tuple[str, str], ...]
    reply: str
    replied: int | None
    log: str
    gpus: tuple[Gpu, ...]
    rows: tuple[Row, ...] = ()
    waiting: str = ""

    @property
    def done(self) -> int:
        """Runs of a plan with all their trials."""
        return sum(row.done >= row.wanted for row in self.rows)


def tag(folder: Path) -> str:
    """What changes whenever a ledger in `folder` does."""
    stats = [(path, path.stat()) for path in _ledgers(folder) if path.exists()]
    return "-".join(f"{stat.st_size:x}.{stat.st_mtime_ns:x}" for _, stat in stats) or "empty"


def _ledgers(folder: Path) -> list[Path]:
    """The files that a page of `folder` is made from."""
    if is_plan(folder):
        return [folder / RECORD, *sorted((folder / RUNS).glob(f"*/*/{LEDGER}"))]
    return [folder / LEDGER]


def look(folder: Path) -> Live:
    """The run or plan in `folder` now. Raises nothing: what cannot be read yet is `waiting`."""
    rows = tuple(_rows(folder)) if is_plan(folder) else ()
    run = _newest(folder) if rows else folder
    state = tag(folder)
    try:
        summary = summarise(run) if run else None
        waiting = "" if run else "No run has begun yet."
    except AutoresearchError as error:
        summary, waiting = None, str(error).replace(f"{folder}/", "")
    running = run is not None and _is_written(run)
    trial = summary.trials[-1].id + 1 if summary and summary.trials else 0
    reply, replied = _reply(summary)
    info = summary.info if summary else {}
    wanted = info.get("args", {}).get("trials", info.get("trials"))
    editable = str(info.get("target", {}).get("editable", ""))
    doing, since, log = _doing(run, trial, editable) if run and running else ("stopped", 0.0, "")
    return Live(
        tag=state,
        running=running,
        where="/".join(run.parts[-2:]) if rows and run else folder.resolve().name,
        trial=trial,
        wanted=wanted if isinstance(wanted, int) and wanted >= trial - 1 else 0,
        doing=doing,
        since=since,
        summary=summary,
        diff=tuple(_diff(run, trial)) if run and running else (),
        reply=reply,
        replied=replied,
        log=log,
        gpus=tuple(gpus()),
        rows=rows,
        waiting=waiting,
    )


def _rows(folder: Path) -> Iterator[Row]:
    """Every run of the plan, by a count of its ledger's lines: nothing is parsed."""
    plan = fixed(folder).plan
    for seed in (*plan.pilot_seeds, *plan.seeds):
        for arm in plan.arms:
            run = folder / RUNS / arm.name / str(seed)
            try:
                body = (run / LEDGER).read_bytes()
            except OSError:
                body = b""
            done = max(0, body.count(b'{"kind": "trial"') - 1)
            yield Row(arm.name, seed, done, plan.trials, _is_written(run))


def _newest(folder: Path) -> Path | None:
    """The run of the plan that trains now, else the one whose ledger was written last."""
    runs = [path.parent for path in (folder / RUNS).glob(f"*/*/{LEDGER}")]

    def at(run: Path) -> tuple[bool, int]:
        scratch = run / "scratch"
        training = scratch.is_dir() and any(scratch.iterdir()) and _is_written(run)
        return training, (scratch if training else run / LEDGER).stat().st_mtime_ns

    return max(runs, key=at, default=None)


def _is_written(run: Path) -> bool:
    """Does a process hold the run's ledger? Asked of the kernel: to try the lock would be to take
    it, and could make a run that starts in that moment fail."""
    try:
        held = (run / LEDGER).stat().st_ino
        locks = LOCKS.read_text().splitlines()
    except OSError:
        return False
    return any("FLOCK" in line and line.split()[-3].endswith(f":{held}") for line in locks)


def _doing(run: Path, trial: int, editable: str) -> tuple[str, float, str]:
    """(what, for how many seconds, the end of its log) of the experiment in flight."""
    try:
        newest = max((run / "scratch").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        began = (newest / editable).stat().st_mtime
    except (OSError, ValueError):  # none, or gone while we looked
        ledger = run / LEDGER
        waited = time.time() - ledger.stat().st_mtime if ledger.exists() else 0.0
        return "deciding" if _commit(run, trial) else "proposing", max(0.0, waited), ""
    number, _, purpose = newest.name.partition("-")
    what = f"{purpose.rpartition('-')[0]} of trial {number}" if purpose else "training"
    try:
        log = read_plain(run / "logs" / f"{newest.name}.log", 1 << 20)
    except OSError:
        log = b""
    tail = log.decode("utf-8", "replace")[-TAIL_CHARS:]
    return what, max(0.0, time.time() - began), tail


def _commit(run: Path, trial: int) -> str:
    """The ref of a trial's code, which is there before it runs; "": there is none."""
    ref = f"refs/trials/{trial}"
    return ref if trial and (run / "work" / ".git" / ref).is_file() else ""


def _diff(run: Path, trial: int) -> Iterator[tuple[str, str]]:
    """The edit of the trial in flight."""
    commit = _commit(run, trial)
    if not commit:
        return
    try:
        text = git(["diff", "--no-color", "--no-ext-diff", "--no-textconv", f"{commit}^", commit],
                   run / "work")  # fmt: skip
    except TargetError:
        return
    for line in text[:DIFF_CHARS].splitlines():
        yield diff_class(line), line


def _reply(summary: Summary | None) -> tuple[str, int | None]:
    """The last reply that is on the disk, and whose it is."""
    for trial in reversed(summary.trials if summary else ()):
        replies = [reply.text for call in trial.proposal.calls for reply in call.replies]
        if replies:
            return replies[-1].strip()[:REPLY_CHARS], trial.id
    return "", None


_seen: list[tuple[float, tuple[Gpu, ...]]] = [(float("-inf"), ())]


def gpus() -> tuple[Gpu, ...]:
    """The GPUs and how busy they are; none without nvidia-smi."""
    at, found = _seen[0]
    if time.monotonic() - at > FRESH_S:
        found = tuple(_ask())
        _seen[0] = (time.monotonic(), found)
    return found


def _ask() -> Iterator[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    query = "--query-gpu=name,utilization.gpu,memory.used,memory.total"
    try:
        said = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in said.splitlines():
        name, *figures = (part.strip() for part in line.rsplit(",", 3))
        if len(figures) == 3 and all(figure.isdigit() for figure in figures):
            yield Gpu(name, *map(int, figures))
