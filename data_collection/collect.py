"""`autoresearch collect`: runs -> a corpus; and what one does with it: describe, check, render."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_collection import card, corpus, leakage, splits
from data_collection.corpus import CANARY, Writer
from data_collection.features import Row
from data_collection.index import Entry, Index
from data_collection.licence import PERMISSIVE
from data_collection.noise import Noise
from data_collection.runs import Run
from data_collection.scrub import scrub, scrub_all
from loop import flags
from loop.context import proposal_seed
from loop.errors import AutoresearchError, UsageError
from loop.files import write_atomic
from loop.flags import flag
from loop.trial import Context, Decision, Json, Outcome, Proposal, Trial, from_json, to_json


@dataclass(frozen=True)
class CollectArgs:
    """Runs -> a corpus that `datasets` opens; --describe, --check or --render look at one."""

    paths: tuple[Path, ...] = flag(
        help="run folders, or the corpus to look at; --render takes several", positional=True
    )
    out: Path | None = flag(None, "the corpus; with --render a folder, with --describe a page")
    cap: int = flag(2, "most rows to train on for one state and label; 0: any number")
    licences: str = flag("", "also take runs under these, comma-separated; 'any': all")
    split_by: str = flag("target", "what no two splits may share", choices=("target", "run"))
    validation: float = flag(0.1, "share of the groups")
    test: float = flag(0.1, "share of the groups")
    seed: int = flag(0, "of the division, and of what --render samples")
    push: str = flag("", "also to this dataset of a hub, OWNER/NAME (needs HF_TOKEN)")
    describe: bool = flag(False, "tables of a corpus, and a page of some trials")
    check: bool = flag(False, "does anything of a corpus stand in two splits?")
    render: str = flag("", "a corpus -> what trl reads", choices=("sft", "kto", "dpo"))
    strategy: str = flag("bare", "--render: whose prompt", choices=("bare", "menu", "pointwise"))
    window: int = flag(8192, "--render: the brain's window, in tokens")
    max_tokens: int = flag(512, "--render: of the window, kept for the reply")
    tokenizer: str = flag("", "--render: tokenizer.json or GGUF that counts; else an estimate")
    max_length: int = flag(0, "--render: longest row in tokens, longer ones are left out; 0: any")
    least: float = flag(0.2, "--render sft: least probability of being real")
    orders: int = flag(1, "--render sft for menu: so many rows of each win, shuffled differently")
    negatives: float = flag(2.0, "--render for pointwise: rows that say No, to each that says Yes")
    shuffle_labels: bool = flag(False, "--render: a control, labels dealt anew within each state")

    def __post_init__(self) -> None:
        if sum(map(bool, (self.describe, self.check, self.render))) > 1:
            raise UsageError("--describe, --check and --render are three different things")
        if not 0 <= self.validation + self.test < 1 or min(self.validation, self.test) < 0:
            raise UsageError("--validation and --test are shares, together below 1")
        if self.orders < 1 or (self.orders > 1 and (self.render, self.strategy) != ("sft", "menu")):
            raise UsageError("--orders is 1 or more, and for --render sft --strategy menu alone")
        if self.strategy == "pointwise" and self.render not in ("", "sft"):
            raise UsageError(f"pointwise has no rows for {self.render}: --render sft")
        if self.negatives <= 0:
            raise UsageError("--negatives is above 0")
        if self.cap < 0 or self.window <= self.max_tokens:
            raise UsageError("--cap is 0 or more, --window more than --max-tokens")


def run(argv: Sequence[str]) -> int:
    """The verb `collect`. Raises UsageError, LedgerError and AutoresearchError."""
    args = flags.parse("collect", CollectArgs, argv)
    if args.describe or args.check or args.render:
        if len(args.paths) != 1 and not args.render:
            raise UsageError(f"one corpus at a time, not {len(args.paths)}")
        return _look(args, args.paths[0])
    if args.out is None:
        raise UsageError("collect RUN... --out CORPUS")
    meta = build(args.paths, args.out, args)
    _tell(meta, args.out)
    if args.push:
        _push(args.out, args.push)
    return 0


def build(folders: Sequence[Path], out: Path, args: CollectArgs) -> Json:
    """Write the corpus `out` of the runs in `folders`; returns what corpus.json says.

    Raises AutoresearchError: no run may be used, or the result leaks.
    """
    runs, refused = _usable(folders, args.licences)
    with corpus.new_folder(out) as folder, TemporaryDirectory(prefix="autoresearch-") as place:
        index = Index(Path(place) / "index")
        noises = [index.add(number, item) for number, item in enumerate(runs)]
        index.settle(args.cap)
        group_of = splits.groups([r.target_hash for r in runs], index.shared(), args.split_by)
        split_of = splits.assign(
            group_of, [r.id for r in runs], args.validation, args.test, args.seed
        )
        (folder / "data").mkdir()
        writers = {split: Writer(folder / "data", split) for split in splits.SPLITS}
        redacted = 0
        for number, item in enumerate(runs):
            writer = writers[split_of[group_of[number]]]
            for row in _rows(item, index, number, noises[number]):
                writer.add(row)
                redacted += row.redacted
        for writer in writers.values():
            writer.close()
        meta = {
            "version": 1,
            "canary": CANARY,
            "split_by": args.split_by,
            "cap": args.cap,
            "seed": args.seed,
            "splits": {split: writer.count for split, writer in writers.items()},
            "labels": index.counts("label"),
            "left_out": index.counts("left_out"),
            "reasons": {k: v for k, v in index.counts("reason").items() if k},
            "redacted": redacted,
            "groups": len(set(group_of)),
            "runs": [
                _about(item, noises[number], split_of[group_of[number]], index, number)
                for number, item in enumerate(runs)
            ],
            "refused": refused,
        }
        index.close()
        corpus.write_meta(folder, meta)
        write_atomic(folder / corpus.CARD, card.card(meta).encode("utf-8", "replace"))
        if problems := leakage.check(folder):
            raise AutoresearchError(
                f"the splits leak, no corpus was written: {problems[0]} "
                f"({len(problems)} in all); report this, or use --split-by target"
            )
    return meta


def _usable(folders: Sequence[Path], licences: str) -> tuple[list[Run], list[Json]]:
    """The runs that may be used, each once, and the others with why not."""
    allowed = {*PERMISSIVE, *(part.strip() for part in licences.split(",") if part.strip())}
    found: dict[str, Run] = {}
    refused: list[Json] = []
    for folder in folders:
        item = Run(folder)
        if item.id in found:
            refused.append({"run": item.name, "why": "given twice"})
        elif item.licence not in allowed and "any" not in allowed:
            refused.append({"run": item.name, "why": f"licence {item.licence}"})
        else:
            found[item.id] = item
    if not found:
        raise AutoresearchError(
            f"no run may be used: {refused[0]['run']} has {refused[0]['why']}; "
            "allow it with --licences, if you may"
        )
    return list(found.values()), refused


def _rows(item: Run, index: Index, number: int, noise: Noise | None) -> Iterator[Row]:
    """The rows of one run, streamed: its ledger and its lines in the index side by side."""
    entries = index.entries(number)
    commits: dict[int, str] = {}  # of what was kept: only that can be an incumbent
    last = -1
    for trial in item.trials():
        if trial.id <= last:
            continue  # a repaired ledger may name a trial twice; the index has the last
        last = trial.id
        entry = next(entries)
        if trial.decision.verdict != "discard" and trial.commit:
            commits[trial.id] = trial.commit
        base = str(item.info.get("base_commit") or "") if trial.parent is None else None
        parent = base if base is not None else commits.get(trial.parent or 0)
        source = item.source(trial.context.file_sha256, parent)
        yield _row(item, trial, entry, noise, source)


def _row(item: Run, trial: Trial, entry: Entry, noise: Noise | None, source: str | None) -> Row:
    knobs = len(trial.proposal.edit.knobs) if trial.proposal.edit else 0
    clean, cleaned = _cleaned(trial)
    text, secrets = scrub(source) if source is not None else (None, 0)
    spec, in_spec = scrub_all(item.target_spec)
    return Row(
        key=f"{item.name}/{trial.id}",
        run=item.name,
        run_id=item.id,
        trial=trial.id,
        parent=trial.parent,
        commit=trial.commit,
        started=trial.started,
        seconds=trial.seconds,
        arm=item.arm,
        brain=item.brain,
        strategy=trial.context.strategy,
        target=item.target_name,
        target_hash=item.target_hash,
        licence=item.licence,
        provenance=item.provenance,
        seed=proposal_seed(item.seed, trial.id),
        target_spec=spec,
        source=text,
        context=clean.context,
        proposal=clean.proposal,
        outcome=clean.outcome,
        decision=clean.decision,
        label=entry.label,
        reason=entry.reason,
        raw_gain=entry.raw_gain,
        sigma=None if noise is None else noise.sigma,
        sigma_method="" if noise is None else noise.method,
        p_real=entry.p_real,
        gain=entry.gain,
        gain_sd=entry.gain_sd,
        measurements=entry.n,
        knobs_moved=knobs,
        multi_knob=knobs > 1,
        state=entry.state.hex(),
        edit=entry.edit.hex(),
        near=entry.near.hex(),
        left_out=entry.left_out,
        redacted=cleaned + secrets + in_spec,
        canary=CANARY,
        schema=trial.schema,
    )


def _cleaned(trial: Trial) -> tuple[Trial, int]:
    """The trial without secrets, and how many there were."""
    parts: list[tuple[str, Any]] = [
        ("context", Context), ("proposal", Proposal), ("outcome", Outcome), ("decision", Decision)
    ]  # fmt: skip
    total, found = 0, {}
    for name, hint in parts:
        clean, count = scrub_all(to_json(getattr(trial, name)))
        total += count
        if count:
            found[name] = from_json(hint, clean, name)
    return (dataclasses.replace(trial, **found) if found else trial), total


def _about(item: Run, noise: Noise | None, split: str, index: Index, number: int) -> Json:
    """A run's line in corpus.json and on the card."""
    return {
        "run": item.name,
        "id": item.id,
        "arm": item.arm,
        "licence": item.licence,
        "target": item.target_name,
        "target_hash": item.target_hash,
        "split": split,
        "trials": index.size(number),
        "sigma": None if noise is None else noise.sigma,
        "sigma_method": "" if noise is None else noise.method,
        "provenance": item.provenance,
    }


def _tell(meta: Json, out: Path) -> None:
    rows = sum(meta["splits"].values())
    print(f"corpus: {out}: {rows:,} rows of {len(meta['runs'])} runs, "
          f"{meta['left_out'].get('', 0):,} to train on")  # fmt: skip
    left_out = {k: v for k, v in meta["left_out"].items() if k}
    tables = (("splits", meta["splits"]), ("labels", meta["labels"]), ("left out", left_out))
    for title, counts in tables:
        print(f"{title}: " + (", ".join(f"{n:,} {k}" for k, n in counts.items()) or "none"))
    for item in meta["refused"]:
        print(f"! run {item['run']} is not in it: {item['why']}")
    unknown = [item["run"] for item in meta["runs"] if item["sigma"] is None]
    if unknown:
        print(f"! too few scores to tell the noise of: {', '.join(unknown[:10])}")
    if meta["groups"] == 1 and meta["split_by"] == "target":
        print("! all runs belong to one target: there is nothing to validate on (--split-by run "
              "divides them, and shows less)")  # fmt: skip
    if meta["redacted"]:
        print(f"! {meta['redacted']} secrets were replaced by [redacted:...]")


def _look(args: CollectArgs, folder: Path) -> int:
    if args.check:
        problems = leakage.check(folder)
        for problem in problems[: leakage.SHOWN]:
            print(f"! {problem}")
        if problems:
            raise AutoresearchError(f"{folder} leaks in {len(problems)} ways; collect it anew")
        print(f"{folder}: nothing stands in two splits")
        return 0
    if args.describe:
        from data_collection.describe import describe

        describe(folder, args.out or folder.with_name(f"{folder.name}.html"), args.seed)
        return 0
    from data_collection.render import render

    if args.out is None:
        raise UsageError("collect --render KIND CORPUS --out FOLDER")
    render(args.paths, args.out, args)
    return 0


def _push(folder: Path, name: str) -> None:
    """The folder as it is, to a dataset repository of the hub. The token is the environment's."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AutoresearchError(
            f"the corpus is in {folder}, but could not be pushed to {name}: {reason}; "
            "set HF_TOKEN and try again"
        ) from None
    print(f"pushed to {name} (private)")
