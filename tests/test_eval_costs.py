"""The table of what an experiment costs."""

import json
import re
from pathlib import Path

import pytest

from eval.costs import CostsArgs, costs
from eval.summary import of_records
from loop.errors import UsageError
from loop.prices import price_of
from loop.trial import Call, Json, Message, Metric, Reply, Scored, Trial
from tests.conftest import Cli, a_trial

RATES: Json = {"api": "openai:gpt-5", "watts": 500.0, "kwh": 0.4, "rent": 2.0}


def trial(number: int, dollars: float | None, verdict: str = "") -> Trial:
    from dataclasses import replace

    reply = Reply("x", prompt_tokens=1000, cached_tokens=400, completion_tokens=100, seconds=6)
    call = Call((Message("user", ("q",)),), (replace(reply, dollars=dollars),), 0.7, 512, 0)
    made = a_trial(number, Scored(Metric("val_bpb", 1.5 - number / 100)), verdict)
    proposal = replace(made.proposal, calls=(call,) if number else ())
    return replace(made, proposal=proposal, seconds=36.0)


def row(trials: list[Trial]) -> object:
    return costs([of_records(trials, {"strategy": "bare"}, "r")], CostsArgs((), **RATES))[0]


def test_a_local_run_is_priced_as_if_at_an_api() -> None:
    made = row([trial(0, None), trial(1, None, "keep"), trial(2, None)])
    price = price_of("openai:gpt-5")
    assert price is not None
    assert made.n == 2 and made.tokens == 1100 and not made.paid  # type: ignore[attr-defined]
    assert made.api == pytest.approx(price.dollars(1000, 400, 100))  # type: ignore[attr-defined]
    hours = 3 * 36 / 3600  # the baseline is part of the bill
    assert made.own == pytest.approx(hours * 0.5 * 0.4 / 2)  # type: ignore[attr-defined]
    assert made.rented == pytest.approx(hours * 2 / 2)  # type: ignore[attr-defined]
    assert made.per_kept == pytest.approx(36 + 30 + 30)  # type: ignore[attr-defined]


def test_what_was_paid_is_told_as_paid() -> None:
    made = row([trial(0, None), trial(1, 0.25), trial(2, 0.75)])
    assert made.paid and made.api == 0.5 and made.per_kept is None  # type: ignore[attr-defined]


def test_a_price_that_nobody_knows_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no price is known for --api openai:gpt-0"):
        costs([], CostsArgs((), api="openai:gpt-0"))


def test_the_table_comes_out_of_ledgers(
    toy: Path, tmp_path: Path, run_loop: Cli, run_cli: Cli
) -> None:
    script, out = tmp_path / "s.jsonl", tmp_path / "out"
    script.write_text(json.dumps({"text": "LR = 0.3", "dollars": 0.0125}) + "\n")
    done = run_loop(
        "--target",
        toy,
        "--brain",
        f"scripted:{script}",
        "--trials",
        1,
        "--judge",
        "naive",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    told = run_cli("costs", out, "--watts", 300)
    assert told.returncode == 0, told.stderr
    assert re.search(r"0\.0125 +1\.25\b", told.stdout) and "300 W" in told.stdout
    lacking = run_cli("costs", tmp_path / "nothing")
    assert lacking.returncode == 1 and "is not a run" in lacking.stderr
