"""A corpus -> what trl reads: prompt and completion (sft), with a label (kto), or pairs (dpo).

The prompt is the loop's own for that state. What becomes of every row is counted, and how long the
results are is said before anybody trains.
"""

import hashlib
import json
import math
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from data_collection import corpus, prompts
from data_collection.completions import completion
from data_collection.index import SURE
from data_collection.prompts import Count, Prompt, Standing
from data_collection.splits import SPLITS
from loop.context import proposal_seed
from loop.errors import AutoresearchError
from loop.files import write_atomic
from loop.strategies.pointwise import NO, YES
from loop.trial import Json

PAIRS_PER_STATE = 4
UNKNOWN = 0.5
"""Stands for P(real) of a kept trial in a run whose noise is not known."""
BATCH = 200
LABEL = ("label", "p_real", "gain", "gain_sd", "raw_gain")
"""What a row says of its move's worth."""


class Options(Protocol):
    """What of the command line matters here."""

    @property
    def render(self) -> str: ...
    @property
    def strategy(self) -> str: ...
    @property
    def window(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def max_length(self) -> int: ...
    @property
    def least(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def shuffle_labels(self) -> bool: ...
    @property
    def orders(self) -> int: ...
    @property
    def negatives(self) -> float: ...


@dataclass(frozen=True)
class Example:
    """A row for trl. `rank`: the smaller, the earlier it stands; `texts`: by column."""

    split: str
    rank: float
    tokens: int
    body: Json


def render(folders: Sequence[Path], out: Path, options: Options) -> Json:
    """The corpora `folders` -> `out`, one folder that `datasets` opens; returns and prints the
    report. What stands in two corpora is rendered twice.

    Raises UsageError and AutoresearchError: no row of the corpus can be rendered so.
    """
    for folder in folders:
        corpus.read_meta(folder)
    named = ", ".join(folder.name for folder in folders)
    count, how = prompts.counter(options.tokenizer)
    fates: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    with corpus.new_folder(out) as new, TemporaryDirectory(prefix="autoresearch-") as place:
        base = sqlite3.connect(Path(place) / "examples")
        base.execute("PRAGMA synchronous=OFF")
        base.execute("CREATE TABLE examples (split TEXT, rank REAL, body TEXT)")
        made = 0
        for example in _examples(folders, options, count, fates):
            lengths[example.tokens] += 1
            if options.max_length and example.tokens > options.max_length:
                fates[f"longer than {options.max_length:,} tokens"] += 1
                continue
            base.execute("INSERT INTO examples VALUES (?,?,?)",
                         (example.split, example.rank, json.dumps(example.body)))  # fmt: skip
            made += 1
        if not made:
            why = ", ".join(f"{n:,} {fate}" for fate, n in fates.most_common(4))
            raise AutoresearchError(
                f"no row of {named} can be rendered as {options.render} for {options.strategy}: "
                f"{why or 'it has no rows'}"
            )
        weights = _weights(base) if options.render == "kto" else {}
        counts = _write(base, new, options.render, weights)
        base.close()
        report = _report(options, how, counts, fates, lengths, weights)
        write_atomic(new / "report.json", json.dumps(report, indent=1).encode())
        write_atomic(new / corpus.CARD, _card(options, counts, named).encode())
    _tell(report, out)
    return report


def _examples(
    folders: Sequence[Path], options: Options, count: Count, fates: Counter[str]
) -> Iterator[Example]:
    make = {"sft": _sft, "kto": _kto, "dpo": _dpo}[options.render]
    standings = prompts.standings(_rows(folders))
    labels = _shuffled(_rows(folders), options.seed) if options.shuffle_labels else {}
    usable = _usable(standings, fates, labels)
    if options.strategy == "pointwise":
        yield from _verdicts(usable, _share(_rows(folders), options), options, count, fates)
    else:
        yield from make(usable, options, count, fates)


def _rows(folders: Sequence[Path]) -> Iterator[Json]:
    return (row for folder in folders for row in corpus.rows(folder))


def _shuffled(rows: Iterator[Json], seed: int) -> dict[str, Json]:
    """Key -> the label of another row of its state: the control that has nothing to learn from."""
    places: dict[tuple[str, str], list[Json]] = {}
    for row in rows:
        if row["p_real"] is not None and not row["left_out"]:
            places.setdefault((row["run_id"], row["state"]), []).append(
                {name: row[name] for name in ("key", *LABEL)}
            )
    swapped: dict[str, Json] = {}
    for place, found in sorted(places.items()):
        others = random.Random(f"{seed}/{place}").sample(found, len(found))
        for row, other in zip(found, others, strict=True):
            swapped[row["key"]] = {name: other[name] for name in LABEL}
    return swapped


def _usable(
    standings: Iterator[tuple[Json, Standing | str]], fates: Counter[str], labels: dict[str, Json]
) -> Iterator[Standing]:
    for row, standing in standings:
        if not isinstance(standing, str) and row["key"] in labels:
            row = row | labels[row["key"]]
            standing = replace(standing, row=row)
        if isinstance(standing, str):
            fates[standing] += 1
        elif row["label"] == "censored":
            fates["cut early, so neither good nor bad"] += 1
        elif row["multi_knob"]:
            fates["moves several knobs"] += 1
        else:
            yield standing


def _sft(
    standings: Iterator[Standing], options: Options, count: Count, fates: Counter[str]
) -> Iterator[Example]:
    """Certain wins, all of them, first; others with the probability of being real."""
    for standing in standings:
        row = standing.row
        p = _probability(row)
        if p < SURE and (p < options.least or _draw(options.seed, row["key"]) >= p):
            fates["not drawn: probably no real gain"] += 1
            continue
        for order in _orders(standing, options.orders):
            answer = _answer(order, options, count)
            if isinstance(answer, str):
                fates[answer] += 1
                break
            prompt, text = answer
            fates["rendered"] += 1
            yield _example(order, prompt, {"completion": text}, -p, count, {"weight": p})


def _share(rows: Iterator[Json], options: Options) -> float:
    """Of the rows that say No, how many to take, so that there are `negatives` to each Yes."""
    said = Counter(_helps(row) for row in rows if row["p_real"] is not None)
    return min(1.0, options.negatives * said[True] / max(1, said[False]))


def _helps(row: Json) -> bool | None:
    """Is the move a certain win? None: too close to say."""
    p = _probability(row)
    return True if p >= SURE else False if p <= UNKNOWN else None


def _verdicts(
    standings: Iterator[Standing], share: float, options: Options, count: Count,
    fates: Counter[str],
) -> Iterator[Example]:  # fmt: skip
    """Each move with Yes or No: what did not help teaches as much as what did."""
    for standing in standings:
        row, helps = standing.row, _helps(standing.row)
        if helps is None:
            fates["too close to say Yes or No"] += 1
        elif not helps and _draw(options.seed, row["key"]) >= share:
            fates["says No, and not drawn"] += 1
        else:
            window = options.window - options.max_tokens
            prompt = prompts.prompt("pointwise", standing.state, (standing.trial,), window, count)
            if isinstance(prompt, str):
                fates[prompt] += 1
                continue
            fates["rendered"] += 1
            text = {"completion": YES if helps else NO}
            yield _example(standing, prompt, text, 0.0, count, {"weight": 1.0})


def _orders(standing: Standing, most: int) -> Iterator[Standing]:
    """The row as it is, then with its menu in other orders: small models prefer a place."""
    yield standing
    # A list keeps the order that an earlier proposal noted: without the notes it is dealt anew.
    unordered = tuple(
        replace(trial, proposal=replace(trial.proposal, notes={}))
        for trial in standing.state.trials
    )
    for number in range(1, most):
        state = replace(
            standing.state, seed=proposal_seed(standing.state.seed, number), trials=unordered
        )
        row = standing.row | {"key": f"{standing.row['key']}#{number}"}
        yield replace(standing, state=state, row=row)


def _kto(
    standings: Iterator[Standing], options: Options, count: Count, fates: Counter[str]
) -> Iterator[Example]:
    """Certain wins are desirable; certain losses and failures are not; the rest says nothing."""
    for standing in standings:
        row = standing.row
        if row["label"] not in ("win", "loss", "failure"):
            fates["neither a win nor a loss for certain"] += 1
            continue
        answer = _answer(standing, options, count)
        if isinstance(answer, str):
            fates[answer] += 1
            continue
        prompt, text = answer
        fates["rendered"] += 1
        label = row["label"] == "win"
        yield _example(standing, prompt, {"completion": text}, 0.0, count, {"label": label})


def _dpo(
    standings: Iterator[Standing], options: Options, count: Count, fates: Counter[str]
) -> Iterator[Example]:
    """Pairs of one state whose order is certain. The prompt is the earlier trial's: it shows the
    outcome of neither."""
    run: list[Standing] = []
    for standing in standings:
        if run and run[0].row["run_id"] != standing.row["run_id"]:
            yield from _all_pairs(run, options, count, fates)
            run = []
        run.append(standing)
    yield from _all_pairs(run, options, count, fates)


def _all_pairs(
    run: list[Standing], options: Options, count: Count, fates: Counter[str]
) -> Iterator[Example]:
    """The pairs of one run, state by state."""
    states: dict[tuple[str, str], list[Standing]] = {}
    for standing in run:
        states.setdefault(_place(standing), []).append(standing)
    for group in states.values():
        made = 0
        best_first = sorted(group, key=lambda s: -(s.row["gain"] or 0.0))
        for chosen in best_first:
            for rejected in reversed(best_first):
                if made < PAIRS_PER_STATE and (sure := _order(chosen.row, rejected.row)) >= SURE:
                    pair = _pair(chosen, rejected, options, count)
                    if isinstance(pair, str):
                        fates[f"pair: {pair}"] += 1
                        continue
                    made += 1
                    fates["pairs rendered"] += 1
                    prompt, texts = pair
                    first = min(chosen, rejected, key=lambda s: s.trial.id)
                    extra = {"weight": sure}
                    yield _example(first, prompt, texts, -sure, count, extra)
        if not made:
            fates["no certain pair in its state"] += len(group)


def _pair(
    chosen: Standing, rejected: Standing, options: Options, count: Count
) -> tuple[Prompt, dict[str, str]] | str:
    first = min(chosen, rejected, key=lambda s: s.trial.id)
    both = (chosen.trial, rejected.trial)
    window = options.window - options.max_tokens
    prompt = prompts.prompt(options.strategy, first.state, both, window, count)
    if isinstance(prompt, str):
        return prompt
    good = completion(options.strategy, chosen, prompt)
    bad = completion(options.strategy, rejected, prompt)
    if not good or not bad or good == bad:
        return "no answer that the strategy could have given"
    return prompt, {"chosen": good, "rejected": bad}


def _order(a: Json, b: Json) -> float:
    """The probability that `a` is truly better than `b`: 1 for a gain over a failure."""
    if a["key"] == b["key"] or a["gain"] is None or a["gain_sd"] is None:
        return 0.0
    if b["label"] == "failure":
        return 1.0 if a["p_real"] >= 0.5 else 0.0
    if b["gain"] is None or b["gain_sd"] is None:
        return 0.0
    spread = math.hypot(a["gain_sd"], b["gain_sd"])
    difference = a["gain"] - b["gain"]
    return 0.5 * (1 + math.erf(difference / spread / math.sqrt(2))) if spread else 0.0


def _place(standing: Standing) -> tuple[str, str]:
    return standing.row["run_id"], standing.row["state"]


def _probability(row: Json) -> float:
    """P(real); for a run of unknown noise UNKNOWN if it was kept; 0 for what has no score."""
    if row["p_real"] is not None:
        return float(row["p_real"])
    kept = row["label"] == "unknown" and row["decision"]["verdict"] == "keep"
    return UNKNOWN if kept else 0.0


def _draw(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on the seed and the row alone."""
    return int(hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()[:13], 16) / 16**13


def _answer(standing: Standing, options: Options, count: Count) -> tuple[Prompt, str] | str:
    window = options.window - options.max_tokens
    tried = (standing.trial,)
    prompt = prompts.prompt(options.strategy, standing.state, tried, window, count)
    if isinstance(prompt, str):
        return prompt
    text = completion(options.strategy, standing, prompt)
    return "no answer that the strategy could have given" if text is None else (prompt, text)


def _example(
    standing: Standing,
    prompt: Prompt,
    texts: dict[str, str],
    rank: float,
    count: Count,
    extra: Json,
) -> Example:
    row = standing.row
    asked = [{"role": m.role, "content": m.content} for m in prompt.messages]
    answers = {name: [{"role": "assistant", "content": text}] for name, text in texts.items()}
    prompt_tokens = sum(count(m["content"]) for m in asked)
    completion_tokens = max(count(text) for text in texts.values())
    body: Json = {
        "prompt": asked, **answers, **extra, "key": row["key"], "p_real": row["p_real"],
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
        "widened": prompt.widened,
    }  # fmt: skip
    return Example(row["split"], rank, prompt_tokens + completion_tokens, body)


def _weights(base: sqlite3.Connection) -> dict[str, float]:
    """Weights of the classes: desirable to undesirable between 1:1 and 4:3, as KTO wants it.

    Source: Ethayarajh et al. 2024 (arXiv 2402.01306), and trl's KTOConfig.
    """
    label = "json_extract(body, '$.label')"
    query = f"SELECT {label}, COUNT(*) FROM examples WHERE split = 'train' GROUP BY 1"
    counts = dict(base.execute(query).fetchall())
    good, bad = counts.get(1, 0), counts.get(0, 0)
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    if good and bad and good < bad:
        weights["desirable_weight"] = bad / good
    elif good and bad and good > bad * 4 / 3:
        weights["undesirable_weight"] = 0.75 * good / bad
    return weights


def _schema(kind: str) -> Any:
    import pyarrow as pa

    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    texts = {"sft": ["completion"], "kto": ["completion"], "dpo": ["chosen", "rejected"]}[kind]
    label = [("label", pa.bool_())] if kind == "kto" else []
    return pa.schema([
        ("prompt", chat), *((name, chat) for name in texts), *label, ("weight", pa.float64()),
        ("key", pa.string()), ("p_real", pa.float64()), ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()), ("widened", pa.bool_()),
    ])  # fmt: skip


def _write(
    base: sqlite3.Connection, new: Path, kind: str, weights: dict[str, float]
) -> dict[str, int]:
    """The parquet file of each split that has rows; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (new / "data").mkdir()
    schema = _schema(kind)
    counts: dict[str, int] = {}
    for split in SPLITS:
        cursor = base.execute(
            "SELECT body FROM examples WHERE split = ? ORDER BY rank, rowid", (split,)
        )
        writer: Any = None
        while batch := cursor.fetchmany(BATCH):
            bodies = [json.loads(body) for (body,) in batch]
            for body in bodies:
                if kind == "kto":
                    which = "desirable_weight" if body["label"] else "undesirable_weight"
                    body["weight"] = weights[which]
            if writer is None:
                path = new / "data" / f"{split}-00000.parquet"
                writer = pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False)
            writer.write_table(pa.Table.from_pylist(bodies, schema=schema))
            counts[split] = counts.get(split, 0) + len(bodies)
        if writer is not None:
            writer.close()
    return counts


def _report(
    options: Options,
    how: str,
    counts: dict[str, int],
    fates: Counter[str],
    lengths: Counter[int],
    weights: dict[str, float],
) -> Json:
    ordered = sorted(lengths.elements())
    at = {f"p{q}": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 90, 99)}
    return {
        "render": options.render, "strategy": options.strategy, "rows": counts,
        "tokens_counted_by": how, "tokens": {**at, "max": ordered[-1]} if ordered else {},
        "window": options.window, "max_tokens": options.max_tokens,
        "max_length": options.max_length,
        "longer_than": {str(n): sum(v for k, v in lengths.items() if k > n)
                        for n in (512, 1024, 2048, 4096, 8192, 16384, 32768)},
        "fates": dict(fates.most_common()), "kto_weights": weights,
        "shuffled_labels": options.shuffle_labels,
    }  # fmt: skip


def _card(options: Options, counts: dict[str, int], named: str) -> str:
    files = "\n".join(f"  - split: {s}\n    path: data/{s}-*.parquet" for s in counts)
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n"
        f"# {options.render} rows for {options.strategy}\n\n"
        f"Rendered from {named}; report.json says how.\n\n`{corpus.CANARY}`\n"
    )


def _tell(report: Json, out: Path) -> None:
    rows = ", ".join(f"{n:,} {split}" for split, n in report["rows"].items())
    print(f"{report['render']} for {report['strategy']}: {out}: {rows}")
    if tokens := report["tokens"]:
        print(f"tokens a row (by {report['tokens_counted_by']}): half {tokens['p50']:,}, "
              f"9 of 10 {tokens['p90']:,}, longest {tokens['max']:,}")  # fmt: skip
        over = ", ".join(f"{n:,} over {k}" for k, n in report["longer_than"].items() if n)
        print(f"a trainer that cuts at a length would cut: {over or 'none at 512'}")
    for fate, n in report["fates"].items():
        print(f"· {n:,} {fate}")
    if weights := report["kto_weights"]:
        print(f"desirable_weight {weights['desirable_weight']:.2f}, "
              f"undesirable_weight {weights['undesirable_weight']:.2f}")  # fmt: skip
