"""`autoresearch import SOURCE --out RUN`: somebody else's run -> a run folder like our own.

The dialect is found out, what was inferred is said, and every line that is not understood is listed
with its number. The run folder appears whole or not at all.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from data_collection import delimited, jsonlines, licence, runlog, study
from data_collection.adopt import STRATEGY, Adopted, adopt
from data_collection.history import History, git_folder, open_history, origin
from data_collection.rows import Log, Reading, Unread, understand
from data_collection.trace import Tracer, find_editable, unread_commits
from loop import edit, flags, knobs, target
from loop.errors import AutoresearchError, UsageError
from loop.files import write_atomic
from loop.flags import flag
from loop.ledger import Ledger
from loop.target import Target
from loop.trial import Json, Scored, Trial

LOGS = ("results.tsv", "autoresearch.jsonl", ".autoresearch/autoresearch.jsonl", "results.csv")
LOGS_OF_LAST_RESORT = ("run.log",)
MOST_BYTES = 64 * 2**20
SHOWN = 20


@dataclass(frozen=True)
class ImportArgs:
    """Somebody else's run -> a run folder that `report` and `collect` read."""

    source: Path = flag(help="a repository or folder, a log, or an Optuna study", positional=True)
    out: Path = flag(help="folder of the run")
    metric: str = flag("", "column of the metric; found out if left out")
    direction: str = flag("", "which way is better; found out if left out", choices=("min", "max"))
    editable: str = flag("", "path of the edited file in the repository; found out if left out")
    study: str = flag("", "which study, where a database holds several")
    by: str = flag("", "who or what made the run, e.g. claude-opus; recorded as the brain")
    licence: str = flag("", "SPDX name, where the source has no licence file")


@dataclass(frozen=True)
class Source:
    """What is imported: the log's text, where it lay, and the git folder beside it."""

    name: str
    where: str
    data: bytes
    repository: Path | None


def run(argv: Sequence[str]) -> int:
    """The verb `import`. Raises UsageError and AutoresearchError; then there is no --out."""
    args = flags.parse("import", ImportArgs, argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UsageError(f"{args.out} exists and is not empty; name another --out")
    beside = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        _import(args, beside)
        if args.out.exists():
            args.out.rmdir()
        beside.replace(args.out)
    except OSError as error:
        raise AutoresearchError(
            f"cannot write {args.out}: {error.strerror}; make room or name another --out"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    print(f"run: {args.out}  (next: autoresearch collect {args.out} --out CORPUS)")
    return 0


def _import(args: ImportArgs, folder: Path) -> None:
    if re.match(r"[a-z+]+:/|git@", str(args.source)):  # Path() makes one slash of two
        raise UsageError("import reads a folder; first: git clone --no-checkout ADDRESS FOLDER")
    if not args.source.exists():
        raise UsageError(f"no {args.source}; name a folder, a log or a study")
    if args.source.is_file() and _readable(args.source) and study.is_study(args.source):
        _import_study(args, folder)
        return
    with ExitStack() as stack:
        repository = git_folder(args.source if args.source.is_dir() else args.source.parent)
        history = stack.enter_context(open_history(repository)) if repository else None
        source = _find(args.source, history, repository)
        reading = _read(source)
        log = understand(reading, args.metric, args.direction)
        _import_log(args, folder, source, reading, log, history)


def _find(path: Path, history: History | None, repository: Path | None) -> Source:
    """The log at `path`: the file itself, one of the usual names in the folder, or in git."""
    if path.is_file():
        return Source(path.stem.removesuffix(".results"), path.name, _bytes(path), repository)
    name = path.resolve().name.removesuffix(".git")
    for log in (*LOGS, *LOGS_OF_LAST_RESORT):
        if not (path / log).is_file():
            continue
        if not (path / log).resolve().is_relative_to(path.resolve()):
            raise AutoresearchError(f"{path / log} is a link out of {path}; it is not followed")
        return Source(name, log, _bytes(path / log), repository)
    for reference, tip in (history.tips if history else {}).items():
        for log in LOGS:
            if history and (text := history.text(tip, log)):
                return Source(name, f"{log} of {reference}", text.encode(), repository)
    raise AutoresearchError(
        f"{path} has no {', '.join(LOGS)} or run.log, neither in the folder nor on a branch; "
        "name the log itself"
    )


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError as error:
        raise AutoresearchError(f"cannot read {path}: {error.strerror}") from None


def _bytes(path: Path) -> bytes:
    _readable(path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise AutoresearchError(
            f"{path} has {size / 2**20:,.0f} MB, a log at most {MOST_BYTES // 2**20}; "
            "is it the right file?"
        )
    return path.read_bytes()


def _read(source: Source) -> Reading:
    text, encoding = _decode(source.data, source.where)
    if source.where.endswith((".jsonl", ".json")) or text.lstrip().startswith("{"):
        reading = jsonlines.read(text)
    elif source.where.endswith(".log"):
        reading = runlog.read(text)
    else:
        reading = delimited.read(text)
    if encoding != "utf-8":
        reading.said.append(f"read as {encoding}")
    if not reading.cells and not reading.unread:
        raise AutoresearchError(f"{source.where} is empty; there is nothing to import")
    return reading


def _decode(data: bytes, where: str) -> tuple[str, str]:
    """Text of a file in UTF-8, in UTF-16 with a mark, or else in Windows-1252."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace"), "utf-16"
    if b"\0" in data[:65536]:
        raise AutoresearchError(f"{where} is binary, not a log")
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":  # a file cut in mid-character
            return data.decode("utf-8-sig", "replace"), "utf-8, cut off in its last character"
        return data.decode("cp1252", "replace"), "Windows-1252, for it is not UTF-8"


def _import_log(
    args: ImportArgs,
    folder: Path,
    source: Source,
    reading: Reading,
    log: Log,
    history: History | None,
) -> None:
    said = list(log.said)
    editable = args.editable or (find_editable(history, log.rows) if history else "")
    tracer = Tracer(history, editable, log.rows) if history and editable else None
    if tracer:
        said.append(f"the edited file is {editable}")
    elif history:
        said.append("no commit of the log is in the repository: every row stands alone")
    brain = f"imported:{args.by or _who(source)}"
    name = args.out.resolve().name.replace(" ", "-")
    adopted = list(adopt(log, name, brain, tracer))
    trials = [item.record for item in adopted if isinstance(item.record, Trial)]
    if tracer and history:
        said.extend(f"in {sha} it lies at {path}" for path, sha in tracer.moved.items())
        used = {trial.commit or "" for trial in trials}
        last = next((t.commit for t in reversed(trials) if t.commit), None)
        extra = sum(1 for _ in unread_commits(history, last, used)) if last else 0
        if extra:
            said.append(f"{extra} commits before the last traced one are named by no row")
    space = _target(args, source, log, adopted, editable, history, trials)
    body = _run_toml(args, source, log, reading, name, brain, space, trials, said, history)
    _write(folder, [_with_knobs(item, space) for item in adopted], body, log.unread)
    _tell(source.where, reading, trials, adopted, log.unread, said)


def _target(
    args: ImportArgs,
    source: Source,
    log: Log,
    adopted: Sequence[Adopted],
    editable: str,
    history: History | None,
    trials: Sequence[Trial],
) -> Target:
    """The target as far as the source tells: its knobs are those of the first file known."""
    base = next((item.base for item in adopted if item.base is not None), None)
    spaces: dict[str, knobs.Knob] = {}
    if base is not None and editable.endswith(".py"):
        try:
            spaces = knobs.infer(knobs.read(base))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            spaces = {}
    commit = next((trial.commit for trial in trials if trial.commit), None)
    folder = editable.rsplit("/", 1)[0] + "/" if "/" in editable else ""
    program = history.text(commit, f"{folder}program.md") if history and commit else None
    file = editable or "train.py"
    return Target(
        name=source.name, folder=Path(), editable=file, command=("{python}", file),
        metric=log.metric, direction=log.direction, instructions=program or "", knobs=spaces,
    )  # fmt: skip


def _with_knobs(item: Adopted, space: Target) -> Adopted:
    """The record with the values that its incumbent's knobs have, as the loop records them."""
    trial = item.record
    if not isinstance(trial, Trial) or item.base is None:
        return item
    try:
        values = space.values(item.base)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return item
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return replace(item, record=replace(trial, context=replace(trial.context, knobs=plain)))


def _who(source: Source) -> str:
    address = origin(source.repository) if source.repository else ""
    return "/".join(address.removesuffix(".git").split("/")[-2:]) if address else source.name


def _licence(args: ImportArgs, history: History | None, trials: Sequence[Trial]) -> str:
    if args.licence:
        return args.licence
    folder = args.source if args.source.is_dir() else args.source.parent
    commit = next((trial.commit for trial in trials if trial.commit), None)
    for name in licence.FILES:
        path = folder / name
        if path.is_file() and not path.is_symlink() and args.source.is_dir():
            return licence.recognise(path.read_text(encoding="utf-8", errors="replace")[:50_000])
        if history and commit and (text := history.text(commit, name)):
            return licence.recognise(text)
    return licence.UNKNOWN


def _run_toml(
    args: ImportArgs,
    source: Source,
    log: Log,
    reading: Reading,
    name: str,
    brain: str,
    space: Target,
    trials: Sequence[Trial],
    said: Sequence[str],
    history: History | None,
) -> Json:
    return {
        "name": name, "brain": brain, "strategy": STRATEGY, "seed": 0, "trials": len(trials) - 1,
        "profile": "", "variant": "", "budget": "", "judge": "log", "sandbox": "none",
        "started": next((t.started for t in trials if t.started), ""),
        "base_commit": next((t.commit for t in trials if t.commit), ""),
        "licence": _licence(args, history, trials),
        "provenance": {
            "source": source.name,
            "address": origin(source.repository) if source.repository else "",
            "commit": history.tips.get("HEAD", "") if history else "",
            "log": source.where,
            "log_sha256": hashlib.sha256(source.data).hexdigest(),
            "dialect": log.dialect,
            "lines": reading.lines,
            "headers": reading.headers,
            "continued": reading.continued,
            "rows": len(log.rows),
            "listed": len(log.unread),
            "inferred": list(said),
        },
        "args": {k: str(v) for k, v in vars(args).items() if k not in ("source", "out")},
        "target": target.to_toml(space),
    }  # fmt: skip


def _import_study(args: ImportArgs, folder: Path) -> None:
    found, said = study.read(args.source, args.study)
    way, points = found
    metric = args.metric or "value"
    name = args.out.resolve().name.replace(" ", "-")
    listed: list[tuple[int, str]] = []
    adopted = list(study.adopt(way, points, name, metric, listed))
    trials = [item.record for item in adopted if isinstance(item.record, Trial)]
    if not any(isinstance(trial.outcome, Scored) for trial in trials):
        raise AutoresearchError(f"{args.source} has no finished trial; there is nothing to import")
    space = study.target_of(args.source.stem, metric, way, points)
    body = {
        "name": name, "brain": f"imported:{args.by or 'optuna'}", "strategy": "optuna", "seed": 0,
        "trials": len(trials) - 1, "profile": "", "variant": "", "budget": "", "judge": "log",
        "sandbox": "none", "started": trials[0].started, "base_commit": "",
        "licence": args.licence or licence.UNKNOWN,
        "provenance": {"source": args.source.stem, "log": args.source.name, "dialect": "optuna",
                       "rows": len(trials), "listed": len(listed), "inferred": said},
        "args": {k: str(v) for k, v in vars(args).items() if k not in ("source", "out")},
        "target": target.to_toml(space),
    }  # fmt: skip
    unread = tuple(Unread(number, "", why) for number, why in listed)
    _write(folder, adopted, body, unread)
    reading = Reading("optuna", lines=len(points))
    _tell(args.source.name, reading, trials, adopted, unread, said)


def _write(folder: Path, adopted: Iterable[Adopted], body: Json, unread: Sequence[Unread]) -> None:
    """The run folder: the files that trials started from under blobs/, then the ledger."""
    (folder / "blobs").mkdir()
    with Ledger(folder) as ledger:
        for item in adopted:
            if item.base is not None:
                path = folder / "blobs" / edit.sha256(item.base)
                if not path.exists():
                    write_atomic(path, item.base.encode("utf-8", "surrogatepass"))
            ledger.append(item.record)
    (folder / "lock").unlink(missing_ok=True)
    listing = "".join(f"{u.line}\t{u.why}\t{' '.join(u.text.split())}\n" for u in unread)
    write_atomic(folder / "unread.tsv", ("line\twhy\ttext\n" + listing).encode("utf-8", "replace"))
    write_atomic(folder / "run.toml", tomli_w.dumps(body).encode("utf-8", "replace"))


def _tell(
    where: str,
    reading: Reading,
    trials: Sequence[Trial],
    adopted: Sequence[Adopted],
    unread: Sequence[Unread],
    said: Sequence[str],
) -> None:
    """What was read, what was inferred, and every line that was not understood."""
    again = len(adopted) - len(trials)
    diffs = sum(trial.proposal.edit is not None for trial in trials)
    kept = sum(trial.decision.verdict == "keep" for trial in trials)
    scored = sum(isinstance(trial.outcome, Scored) for trial in trials)
    parts = [f"{reading.headers} header", f"{len(adopted)} rows", f"{reading.continued} continued"]
    parts.append(f"{len(unread)} not understood")
    print(f"{where}: {reading.lines} lines that are not blank = {', '.join(parts)}")
    more = f"; {again} more runs of the baseline" if again else ""
    print(
        f"{len(trials)} trials: {kept} kept, {scored} with a score, {diffs} with their diff{more}"
    )
    for phrase in said:
        print(f"· {phrase}")
    for item in unread[:SHOWN]:
        print(f"! line {item.line}: {item.why}: {' '.join(item.text.split())[:100]}")
    if len(unread) > SHOWN:
        print(f"! and {len(unread) - SHOWN} more, in unread.tsv")
