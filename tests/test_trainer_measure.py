"""The measuring script: edits a copy of train.py, runs it, keeps every row."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parent.parent / "trainer"


@pytest.mark.slow
def test_a_knob_is_set_in_a_copy_and_failures_are_rows(tmp_path: Path) -> None:
    before = (TRAINER / "train.py").read_bytes()
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "measure.py", "knob", "SHORT_WINDOW", "32", "100", "--out", str(out)]
    environ = {**os.environ, "AUTORESEARCH_BUDGET": "2e9flops"}
    done = subprocess.run(command, cwd=TRAINER, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    good, bad = (json.loads(line) for line in out.read_text().splitlines())
    assert good["knobs"] == {"SHORT_WINDOW": 32}
    assert good["val_bpb"] > 0
    assert bad["failed"] == "AssertionError: SHORT_WINDOW must divide 256"
    assert (TRAINER / "train.py").read_bytes() == before


LITERALS = """
from measure import with_knobs
source = 'A = 1  # one\\nB = "SL"  # two\\nC = 0.5\\n'
print(with_knobs(source, {"A": 2, "B": "L", "C": 1.5}), end="")
"""


def test_every_kind_of_literal_is_replaced() -> None:
    command = [sys.executable, "-c", LITERALS]
    done = subprocess.run(command, cwd=TRAINER, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["A = 2  # one", 'B = "L"  # two', "C = 1.5"]
