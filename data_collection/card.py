"""The dataset card: what is in a corpus, how it was labelled, and what it must not be used for."""

from collections.abc import Mapping
from typing import Any

from data_collection.corpus import CANARY
from loop.trial import Json

HEAD = """\
---
pretty_name: Autoresearch trials
license: {license}
task_categories:
- text-generation
tags:
- autoresearch
configs:
- config_name: default
  data_files:
{files}
---
"""
BODY = """\
# Autoresearch trials

One row a trial: the state it was made from, what was proposed, what came out, what was decided.
{rows:,} rows of {runs} runs; {used:,} of them to train on (`left_out` is empty).

{splits}

| left out because | rows |
|---|---|
{left}

| label | rows |
|---|---|
{labels}

| run | licence | target | split | trials | noise (sigma) | from |
|---|---|---|---|---|---|---|
{table}

## Labels
`raw_gain` is how much better the score is than the incumbent's, in the metric's unit. `p_real` is
the probability that the trial's true value is better than its incumbent's true value, `gain` and
`gain_sd` the mean and spread of that difference: a posterior under the run's noise `sigma`, which
`sigma_method` explains (replicates, or the run's own scores where there are none). Win: `p_real`
of 0.9 and more, loss: 0.1 and less without a better score, else unclear; unknown where the run's
data does not tell its noise. Failures have a `reason` from a closed list. A trial that was cut
early is `censored`, which is no loss. `multi_knob` rows move several knobs at once and teach a
single edit little.

## Splits
Divided by {by}, never by row. `autoresearch collect --check` verifies it by content.

## Canary
Every row carries this text, so that a model trained on it can be recognised. Do not train on it
for evaluation purposes, do not remove it.

`{canary}`
"""


def card(meta: Json) -> str:
    """The card of the corpus that `meta` (corpus.json) describes."""
    licences = sorted({str(run["licence"]) for run in meta["runs"]})
    single = licences[0].lower() if len(licences) == 1 else "other"
    files = "\n".join(
        f"  - split: {split}\n    path: data/{split}-*.parquet"
        for split, count in meta["splits"].items()
        if count
    )
    known = single if single in ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0") else "other"
    rows = sum(meta["splits"].values())
    return HEAD.format(license=known, files=files) + BODY.format(
        rows=rows,
        runs=len(meta["runs"]),
        used=meta["left_out"].get("", 0),
        splits=", ".join(f"{split}: {count:,}" for split, count in meta["splits"].items()),
        left=_table({k.replace("_", " "): v for k, v in meta["left_out"].items() if k}),
        labels=_table(meta["labels"]),
        table="\n".join(_run(run) for run in meta["runs"][:200]),
        by=meta["split_by"],
        canary=CANARY,
    )


def _table(counts: Mapping[str, int]) -> str:
    return "\n".join(f"| {name} | {count:,} |" for name, count in counts.items()) or "| none | 0 |"


def _run(run: Json) -> str:
    sigma = "not known" if run["sigma"] is None else f"{run['sigma']:.3g}"
    cells: list[Any] = [run["run"], run["licence"], run["target"], run["split"], run["trials"]]
    text = [str(cell).replace("|", "/").replace("\n", " ") for cell in cells]
    return "| " + " | ".join([*text, sigma, run["sigma_method"] or "-"]) + " |"
