"""The final check: fresh seeds for both, the test text where there is one, once and resumable."""

import json
from pathlib import Path

import pytest

from loop.final import result
from loop.ledger import read
from loop.sandbox import working_bwrap
from loop.trial import Measurement, Metric, Scored
from tests import hostile_target
from tests.conftest import Cli

boxed = pytest.mark.skipif(not working_bwrap(), reason="no bubblewrap here")


def run(trial: int, seed: int, value: float, channel: str = "test") -> Measurement:
    scored = Scored(Metric("loss", value), {"metric_channel": channel})
    return Measurement(trial, "final", seed, "t", 1.0, scored)


def test_the_gain_is_that_of_pairs_with_an_interval() -> None:
    runs = [run(0, s, 2.0 + s) for s in range(3)] + [run(7, s, 1.9 + s) for s in range(3)]
    found = result(runs)
    assert found is not None and found.untouched
    assert (found.trial, found.n) == (7, 3)
    assert found.gain == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


def test_the_interval_is_students() -> None:
    runs = [run(0, s, 2.0) for s in range(3)]
    runs += [run(7, s, 2.0 - gain) for s, gain in enumerate((0.1, 0.2, 0.3))]
    found = result(runs)
    assert found is not None and found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * 4.303 * 0.1 / 3**0.5)


def test_half_a_pair_is_no_check() -> None:
    assert result([run(0, 1, 2.0), run(0, 2, 2.0)]) is None
    found = result([run(0, 1, 2.0), run(7, 1, 1.0, "printed")])
    assert found is not None and found.low is None and not found.untouched


@boxed
def test_a_run_ends_with_it_and_a_resumed_one_does_not_repeat_it(
    tmp_path: Path, run_cli: Cli
) -> None:
    hostile_target.write(tmp_path / "target", tmp_path / "cache")
    script = tmp_path / "script.jsonl"
    script.write_text(json.dumps({"text": "RATE = 0.3"}) + "\n")
    place = {"AUTORESEARCH_CACHE": str(tmp_path / "cache")}
    flags = ["run", "--brain", f"scripted:{script}", "--target", tmp_path / "target"]
    flags += ["--judge", "naive", "--trials", 1, "--final-seeds", 2, "--out", tmp_path / "r"]
    done = run_cli(*flags, **place)
    assert done.returncode == 0, done.stderr
    assert "Final check of trial 1 on fresh seeds and the untouched test text" in done.stdout
    finals = [r for r in read(tmp_path / "r") if isinstance(r, Measurement)]
    assert [m.trial for m in finals] == [0, 1, 0, 1]
    channels = {
        m.outcome.measurements["metric_channel"] for m in finals if isinstance(m.outcome, Scored)
    }
    assert channels == {"test"}
    assert run_cli("run", "--resume", "--out", tmp_path / "r", **place).returncode == 0
    assert len([r for r in read(tmp_path / "r") if isinstance(r, Measurement)]) == 4
    assert "untouched test text" in (tmp_path / "r" / "report.html").read_text()
