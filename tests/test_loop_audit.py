"""What a target says of its audit and its smoke run, and what the loop makes of it."""

from pathlib import Path

import pytest

from loop.errors import TargetError
from loop.experiment import Limits, Runner
from loop.sandbox import Box
from loop.start import _audit
from loop.target import BUILT_IN, Target, from_toml, load, to_toml
from loop.trial import Crashed, Outcome, Reason, Scored
from tests import hostile_target


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))
    hostile_target.write(tmp_path / "target", tmp_path / "cache")
    return tmp_path / "target"


def run(target: Target, tmp_path: Path) -> Outcome:
    runner = Runner(target, Box(), Limits(20))
    return runner.run(target.folder, target.environment(None, 0), tmp_path / "log")[0]


def test_the_score_is_the_audits_and_the_claim_stays_beside_it(
    folder: Path, tmp_path: Path
) -> None:
    """Without a box too: less is shut, but the two processes are the same."""
    outcome = run(load(folder), tmp_path)
    assert isinstance(outcome, Scored), outcome
    assert outcome.measurements["metric_channel"] == "audit"
    assert outcome.measurements["claimed"] != outcome.metric.value
    assert not list(tmp_path.glob("*.audit")), "the fixed files set aside are gone"


def test_two_ends_or_none(folder: Path) -> None:
    text = (folder / "target.toml").read_text()
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("model")]
    (folder / "target.toml").write_text("".join(lines))
    with pytest.raises(TargetError, match="write both or neither"):
        load(folder)


def test_run_toml_keeps_it(folder: Path) -> None:
    target = load(folder)
    assert from_toml(to_toml(target)) == target
    assert target.audit and target.model and target.imports == ("math", "fixed")


def test_a_text_that_the_box_can_read_is_said_to_be_weak() -> None:
    assert "weak" in "".join(_audit(load(BUILT_IN, "cpu", "stdlib")))
    assert _audit(load(BUILT_IN, "cpu", "kjv")) == ()
    assert "no audit" in "".join(_audit(Target("t", BUILT_IN, "train.py", ("true",), "m")))


SMOKED = """\
import json, os
smoke = os.environ.get("AUTORESEARCH_SMOKE") == "1"
assert not (BREAKS and smoke), "the shapes do not fit"
if smoke or not SILENT:
    result = {"metric": {"loss": 1.0 if smoke else 2.0}, "measurements": {}}
    json.dump(result, open("result.json", "w"))
"""


def smoked(tmp_path: Path, **how: bool) -> Outcome:
    source = SMOKED.replace("BREAKS", str(how.get("breaks", False)))
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "train.py").write_text(source.replace("SILENT", str(how.get("silent", False))))
    command = ("{python}", "train.py")
    target = Target("t", folder, "train.py", command, "loss", metric_from="result.json", smoke_s=10)
    return run(target, tmp_path)


def test_a_smoke_run_finds_what_breaks_before_the_budget_is_spent(tmp_path: Path) -> None:
    outcome = smoked(tmp_path, breaks=True)
    assert isinstance(outcome, Crashed)
    assert (outcome.stage, outcome.reason) == ("smoke", Reason.EXCEPTION)


def test_after_a_smoke_run_the_whole_one_counts(tmp_path: Path) -> None:
    outcome = smoked(tmp_path)
    assert isinstance(outcome, Scored) and outcome.metric.value == 2.0


def test_the_score_of_a_smoke_run_is_never_taken(tmp_path: Path) -> None:
    outcome = smoked(tmp_path, silent=True)
    assert isinstance(outcome, Crashed) and outcome.reason is Reason.METRIC_MISSING
