"""Caps: a run that has spent enough stops cleanly, and can go on."""

import json
from pathlib import Path

import pytest

from loop import ledger
from loop.caps import Caps
from loop.trial import Event, Trial
from tests.conftest import Cli, a_trial


def test_nothing_is_capped_by_default() -> None:
    assert Caps().reached([a_trial(1)] * 3, 1e9) == ""


def test_hours_count_from_the_start_of_the_process() -> None:
    assert Caps(hours=1).reached([], 3599) == ""
    assert "1.00 hours gone of --max-hours 1" in Caps(hours=1).reached([], 3600)


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--max-dollars", "0.5", "$0.50 spent of --max-dollars 0.5"),
        ("--max-tokens", "250", "300 tokens used of --max-tokens 250"),
    ],
)
def test_a_run_stops_at_its_cap_and_goes_on_above_it(
    toy: Path, tmp_path: Path, run_loop: Cli, flag: str, value: str, says: str
) -> None:
    script, out = tmp_path / "s.jsonl", tmp_path / "out"
    spent = {"prompt_tokens": 90, "completion_tokens": 10, "dollars": 0.1666667}
    script.write_text(
        "".join(json.dumps({"text": f"LR = 0.{i}"} | spent) + "\n" for i in range(2, 9))
    )
    done = run_loop(
        *("--target", toy, "--brain", f"scripted:{script}", "--trials", 6, "--out", out),
        *("--judge", "naive", flag, value),
    )
    assert done.returncode == 0, done.stderr
    records = list(ledger.read(out))
    assert [r.id for r in records if isinstance(r, Trial)] == [0, 1, 2, 3]
    caps = [r for r in records if isinstance(r, Event) and r.name == "cap"]
    assert len(caps) == 1 and says in caps[0].data["reason"]
    assert says in done.stdout
    again = run_loop("--resume", "--out", out, flag, "10000", "--trials", 4)
    assert again.returncode == 0, again.stderr
    assert len(ledger.trials(out)) == 5


def test_a_cap_below_zero_is_wrong_usage(toy: Path, tmp_path: Path, run_loop: Cli) -> None:
    done = run_loop("--target", toy, "--out", tmp_path / "o", "--max-hours", "-1")
    assert done.returncode == 2 and "--max-hours is -1.0, below 0" in done.stderr
