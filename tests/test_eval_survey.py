"""A survey: every move of a state, paired on further seeds, in an ordinary run folder."""

import random
from pathlib import Path

import pytest

from eval.survey import run, walk
from loop import ledger, target
from loop.errors import UsageError
from loop.target import BUILT_IN
from loop.trial import Measurement, Trial


def test_a_walk_is_a_few_moves_of_its_seed() -> None:
    found = target.load(BUILT_IN, "cpu", "kjv")
    source = (BUILT_IN / "train.py").read_text(encoding="utf-8")
    assert walk(found, source, random.Random(1), 0) == {}
    walks = [walk(found, source, random.Random(seed), 3) for seed in range(20)]
    assert walks[1] == walk(found, source, random.Random(1), 3)
    assert {len(w) for w in walks} <= {0, 1, 2, 3} and max(map(len, walks)) == 3
    assert len({tuple(sorted(w.items())) for w in walks}) > 15


@pytest.mark.slow
def test_every_move_is_tried_once_and_paired(tmp_path: Path) -> None:
    out = tmp_path / "s"
    arguments = ["--out", str(out), "--budget", "4e8flops", "--states", "1", "--seeds", "2"]
    assert run(arguments) == 0
    records = list(ledger.read(out / "kjv-0"))
    trials = [r for r in records if isinstance(r, Trial)]
    paired = {(m.trial, m.seed) for m in records if isinstance(m, Measurement)}
    found = target.load(BUILT_IN, "cpu", "kjv")
    moves = sum(
        len(found.knobs[name].moves(value)) for name, value in found.values(
            (BUILT_IN / "train.py").read_text(encoding="utf-8")).items()
    )  # fmt: skip
    assert len(trials) == moves + 2, "the baseline, every move, and that nothing is left"
    assert {t.parent for t in trials[1:]} == {0}
    scored = {t.id for t in trials if t.outcome.__class__.__name__ == "Scored"}
    assert paired == {(trial, 1) for trial in scored}

    before = (out / "kjv-0" / "ledger.jsonl").read_bytes()
    assert run(arguments) == 0, "a second call finds nothing to do"
    assert (out / "kjv-0" / "ledger.jsonl").read_bytes() == before


def test_wrong_usage_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        run(["--out", str(tmp_path), "--seeds", "0"])
