"""Measure the trainee: seed noise, random configurations, variants, single knobs.

    python measure.py seeds   [--variant V] [--count 6]
    python measure.py random  [--variant V] [--count 30]
    python measure.py variants [--count 3]
    python measure.py knob NAME VALUE... [--seeds 1]

Not part of an experiment. Each line of --out (default measured.jsonl) is one experiment.
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Knobs = dict[str, Any]


def with_knobs(source: str, values: Knobs) -> str:
    """train.py with the literals of its knobs replaced; comments stay."""
    for name, value in values.items():
        literal = json.dumps(value)
        source, count = re.subn(
            rf'^{name} = ("[^"]*"|\S+)', f"{name} = {literal}", source, flags=re.M
        )
        if count != 1:
            raise SystemExit(f"train.py has {count} lines `{name} = literal`, not one")
    return source


def experiment(profile: str, variant: str, values: Knobs, seed: int) -> dict[str, Any]:
    """Run a copy of train.py from the variant's start with `values` on top; never raises."""
    table = tomllib.loads((HERE / "profiles" / f"{profile}.toml").read_text())
    start = {**table["start"], **table["variants"][variant].get("start", {})}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "trainer"
        shutil.copytree(HERE, work, ignore=shutil.ignore_patterns("__pycache__", "*.jsonl"))
        script = work / "train.py"
        script.write_text(with_knobs(script.read_text(), {**start, **values}))
        environ = {
            **os.environ,
            "AUTORESEARCH_PROFILE": profile,
            "AUTORESEARCH_VARIANT": variant,
            "AUTORESEARCH_SEED": str(seed),
            "AUTORESEARCH_OUT": folder,
        }
        timeout = table["timeout_s"]
        row: dict[str, Any] = {"variant": variant, "seed": seed, "knobs": values}
        try:
            done = subprocess.run(
                [sys.executable, "train.py"],
                cwd=work,
                env=environ,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            return {**row, "failed": f"no end after {timeout} s"}
        if done.returncode:
            return {**row, "failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
        measured = json.loads((Path(folder) / "result.json").read_text())["measurements"]
        del measured["curve"]
        return {**row, **measured}


def draw(knobs: dict[str, Any], rng: random.Random) -> Knobs:
    """One configuration, every knob independent and uniform over its ladder or range."""
    values: Knobs = {}
    for name, knob in knobs.items():
        if "choices" in knob:
            values[name] = rng.choice(knob["choices"])
        elif knob["scale"] == "log":
            values[name] = float(
                f"{knob['low'] * (knob['high'] / knob['low']) ** rng.random():.3g}"
            )
        else:
            values[name] = round(rng.uniform(knob["low"], knob["high"]), 3)
    return values


def plan(options: argparse.Namespace) -> list[tuple[str, Knobs, int]]:
    """(variant, knobs, seed) of every experiment."""
    if options.verb == "variants":
        profile = tomllib.loads((HERE / "profiles" / f"{options.profile}.toml").read_text())
        return [(name, {}, seed) for name in profile["variants"] for seed in range(options.count)]
    if options.verb == "random":
        knobs = tomllib.loads((HERE / "target.toml").read_text())["knobs"]
        rng = random.Random(options.first)
        return [(options.variant, draw(knobs, rng), 0) for _ in range(options.count)]
    if options.verb == "knob":
        name, *values = options.knob
        settings = [{name: json.loads(value)} for value in values]
        return [
            (options.variant, knobs, seed) for knobs in settings for seed in range(options.count)
        ]
    return [(options.variant, {}, seed) for seed in range(options.count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=("seeds", "random", "variants", "knob"))
    parser.add_argument("knob", nargs="*", help="a knob's name and the values to try, as JSON")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--variant", default="kjv")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="seed of the random configurations")
    parser.add_argument("--out", type=Path, default=Path("measured.jsonl"))
    options = parser.parse_args()
    groups: dict[str, list[float]] = {}
    for variant, knobs, seed in plan(options):
        row = experiment(options.profile, variant, knobs, seed)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        score = row.get("failed") or f"{row['val_bpb']:.4f} {row['total_seconds']:.1f}s"
        print(variant, seed, score, knobs or "", flush=True)
        if "val_bpb" in row:
            groups.setdefault(f"{variant} {knobs or ''}", []).append(row["val_bpb"])
    for name, values in groups.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name}: mean {statistics.mean(values):.4f} SD {spread:.4f} n {len(values)}")


if __name__ == "__main__":
    main()
