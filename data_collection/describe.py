"""Looking at a corpus: tables in the terminal, and a page with a few trials side by side."""

import base64
import hashlib
import heapq
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from data_collection import hashes
from data_collection.corpus import read_meta, rows
from data_collection.features import trial as trial_of
from loop.errors import AutoresearchError
from loop.files import write_atomic
from loop.trial import Json

TEMPLATES = Path(__file__).parent / "templates"
SAMPLE = 6
IDEAS = 10
MOST_IDEAS = 50_000
"""Different ideas that are counted; rarer ones of a huge corpus are forgotten."""
CHARS = 6000
EDGES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069]")


def describe(folder: Path, page: Path, seed: int) -> None:
    """Print the tables of the corpus in `folder` and write the page. Raises UsageError."""
    meta = read_meta(folder)
    tables, ideas, sample = _survey(folder, seed)
    total = sum(meta["splits"].values())
    print(f"{folder}: {total:,} rows of {len(meta['runs'])} runs")
    for title, counts in tables.items():
        _print(title, counts, total)
    print("\nmost repeated ideas")
    for idea, count in ideas:
        print(f"  {count:6,}  {idea or '(no words)'}")
    try:
        write_atomic(page, _page(folder.name, meta, tables, ideas, sample).encode())
    except OSError as error:
        raise AutoresearchError(
            f"cannot write {page}: {error.strerror}; name another page with --out"
        ) from None
    print(f"\npage: {page}")


def _survey(
    folder: Path, seed: int
) -> tuple[dict[str, dict[str, int]], list[tuple[str, int]], list[Json]]:
    """Counts by title, the most repeated ideas, and a few rows drawn by a hash of their key."""
    by: dict[str, Counter[str]] = {
        name: Counter() for name in ("arm", "split", "outcome", "reason", "label", "left out",
                                     "target", "tokens of file and prompt, estimated")
    }  # fmt: skip
    ideas: Counter[str] = Counter()
    drawn: list[tuple[int, str, Json]] = []
    for row in rows(folder):
        by["arm"][row["arm"]] += 1
        by["split"][row["split"]] += 1
        by["target"][row["target"]] += 1
        by["outcome"][row["outcome"]["type"]] += 1
        by["label"][row["label"]] += 1
        if row["reason"]:
            by["reason"][row["reason"]] += 1
        by["left out"][row["left_out"] or "(to train on)"] += 1
        by["tokens of file and prompt, estimated"][_length(row)] += 1
        if row["left_out"] != "baseline":
            ideas[hashes.idea(trial_of(row))] += 1
            if len(ideas) > MOST_IDEAS:
                ideas = Counter(dict(ideas.most_common(MOST_IDEAS // 2)))
            lot = int(
                hashlib.sha256(f"{seed}/{row['run_id']}/{row['key']}".encode()).hexdigest(), 16
            )
            heapq.heappush(drawn, (-lot, f"{row['run_id']}/{row['key']}", row))
            if len(drawn) > SAMPLE:
                heapq.heappop(drawn)
    tables = {title: dict(counts.most_common(20)) for title, counts in by.items()}
    lengths = by["tokens of file and prompt, estimated"]
    tables["tokens of file and prompt, estimated"] = {
        name: lengths[name] for name in (*(f"up to {e:,}" for e in EDGES), "more") if lengths[name]
    }
    return tables, ideas.most_common(IDEAS), [row for _, _, row in sorted(drawn, reverse=True)]


def _length(row: Json) -> str:
    prompts = [
        sum(len(part) for message in call["messages"] for part in message["parts"])
        for call in row["proposal"]["calls"]
    ]
    tokens = max([len(row["source"] or ""), *prompts]) // 4
    return next((f"up to {edge:,}" for edge in EDGES if tokens <= edge), "more")


def _print(title: str, counts: dict[str, int], total: int) -> None:
    print(f"\n{title}")
    for name, count in counts.items():
        bar = "▇" * round(24 * count / max(1, total))
        print(f"  {count:8,}  {name[:60]:60s} {bar}")


def _page(
    name: str,
    meta: Json,
    tables: dict[str, dict[str, int]],
    ideas: list[tuple[str, int]],
    sample: list[Json],
) -> str:
    """One self-contained page without a script. What models wrote is escaped and made visible."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value

    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, finalize=shown,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = (TEMPLATES / "describe.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return env.get_template("describe.html.j2").render(
        style=Markup(style),  # our own file, unescaped, so that its hash is the policy's
        digest=digest, name=name, meta=meta, tables=tables, ideas=ideas,
        cards=[_card(row) for row in sample],
    )  # fmt: skip


def _card(row: Json) -> Json:
    """What the page shows of one row."""
    edit, outcome = row["proposal"]["edit"], row["outcome"]
    metric = outcome["metric"]
    replies = [reply["text"] for call in row["proposal"]["calls"] for reply in call["replies"]]
    facts = {
        "arm": row["arm"], "target": row["target"], "split": row["split"],
        "outcome": outcome["type"] + (f" ({outcome['reason']})" if outcome["reason"] else ""),
        "score": "—" if metric is None else f"{metric['name']} {metric['value']:.6g}",
        "raw gain": _number(row["raw_gain"]), "P(real)": _number(row["p_real"]),
        "gain": f"{_number(row['gain'])} ± {_number(row['gain_sd'])}",
        "label": row["label"], "decision": row["decision"]["verdict"],
        "left out": row["left_out"] or "no", "licence": row["licence"],
        "notes": json.dumps(json.loads(row["proposal"]["notes"]), ensure_ascii=False)[:600],
    }  # fmt: skip
    return {
        "key": row["key"],
        "description": row["proposal"]["description"][:600] or "no description",
        "facts": facts,
        "diff": (edit["diff"] if edit else "")[:CHARS],
        "reply": "\n\n".join(replies)[:CHARS],
    }


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:+.4g}"
