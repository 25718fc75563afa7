"""Which experiment is this? Reads the environment and a profile file; standard library only.

Environment, all optional:
    AUTORESEARCH_PROFILE   a file of profiles/ without its suffix (default cpu)
    AUTORESEARCH_VARIANT   one of the profile's variants (default its first)
    AUTORESEARCH_BUDGET    "300s" or "2e11flops" (default the profile's)
    AUTORESEARCH_SEED      an integer (default 0)
    AUTORESEARCH_CACHE     where prepared texts lie (default ~/.cache/autoresearch)
    AUTORESEARCH_OUT       where results are written (default the current folder)
    AUTORESEARCH_SMOKE     1: two steps and a small evaluation, to see that it runs at all
    AUTORESEARCH_AUDITED   1: a second box decides, so that a short evaluation of its own will do
    AUTORESEARCH_THREADS   CPU threads (default the profile's; 0 leaves torch's own choice)
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SCREENED = 4  # one row in so many, where what an experiment finds itself is only a claim
PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Budget:
    """How much training an experiment may do, e.g. Budget(2e11, "flops") or Budget(300, "s")."""

    amount: float
    unit: Literal["s", "flops"]

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


@dataclass(frozen=True)
class Settings:
    """One experiment. `seq_len` and `eval_tokens` are in tokens, `peak_flops` in FLOP/s. `every`:
    of the rows of `eval_tokens` one in so many is evaluated."""

    profile: str
    variant: str
    text: str
    seq_len: int
    eval_tokens: int
    audit_tokens: int
    budget: Budget
    warmup_steps: int
    peak_flops: float | None
    train_shards: int
    threads: int
    seed: int
    smoke: bool
    every: int
    cache: Path
    out: Path

    @property
    def folder(self) -> Path:
        """The prepared text: train.bin, val.bin, audit.bin, test.bin, manifest.json."""
        return self.cache / "texts" / self.text


def parse_budget(text: str) -> Budget:
    """Read "300s" or "2e11flops"; anything else ends the program with one line."""
    match = re.fullmatch(r"([0-9.]+(?:e\+?[0-9]+)?)(s|flops)", text.strip().lower())
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    if match is None or not 0 < amount < float("inf"):
        raise SystemExit(f"budget {text!r} is not understood; write 300s or 2e11flops")
    return Budget(amount, "s" if match[2] == "s" else "flops")


def load_profile(name: str) -> dict[str, Any]:
    """The parsed profiles/<name>.toml; an unknown name ends the program and lists those known."""
    path = PROFILES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.toml")))
        raise SystemExit(f"profile {name!r} does not exist; choose one of: {known}")
    return tomllib.loads(path.read_text())


def read_settings(
    environ: Mapping[str, str] = os.environ, profile: str | None = None, variant: str | None = None
) -> Settings:
    """Combine the environment, the profile and its variant; arguments win over the environment."""
    profile = profile or environ.get("AUTORESEARCH_PROFILE") or "cpu"
    table = load_profile(profile)
    variants = table["variants"]
    variant = variant or environ.get("AUTORESEARCH_VARIANT") or next(iter(variants))
    if variant not in variants:
        raise SystemExit(
            f"variant {variant!r} is not in profile {profile}; choose one of: {', '.join(variants)}"
        )
    table = _overlay(table, variants[variant])
    data = table["data"]
    smoke = environ.get("AUTORESEARCH_SMOKE") == "1"
    eval_tokens = 4 * data["seq_len"] if smoke else data["eval_tokens"]
    cache = environ.get("AUTORESEARCH_CACHE") or "~/.cache/autoresearch"
    return Settings(
        profile=profile,
        variant=variant,
        text=table["text"],
        seq_len=data["seq_len"],
        eval_tokens=eval_tokens,
        audit_tokens=data.get("audit_tokens", eval_tokens),
        budget=parse_budget(environ.get("AUTORESEARCH_BUDGET") or table["budget"]),
        warmup_steps=data["warmup_steps"],
        peak_flops=data.get("peak_flops"),
        train_shards=data.get("train_shards", 0),
        threads=_integer(environ, "AUTORESEARCH_THREADS", table["threads"]),
        seed=_integer(environ, "AUTORESEARCH_SEED", 0),
        smoke=smoke,
        every=SCREENED if environ.get("AUTORESEARCH_AUDITED") == "1" else 1,
        cache=Path(cache).expanduser(),
        out=Path(environ.get("AUTORESEARCH_OUT") or "."),
    )


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, tables merged one level deep."""
    tables = {
        key: {**under[key], **value}
        for key, value in over.items()
        if isinstance(value, dict) and key in under
    }
    return {**under, **over, **tables}


def _integer(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise SystemExit(f"{name}={text!r} is not an integer") from None
