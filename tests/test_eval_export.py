"""Exports: each is read back by the tool that it is for."""

import math
from pathlib import Path

import pytest

from eval import export
from eval.summary import Summary, of_records, summarise
from loop.errors import UsageError
from loop.trial import Crashed, Metric, Reason, Rejected, Scored
from tests import plan_folder
from tests.conftest import Cli, a_trial

HOSTILE = "</script>\ud800\x00,\"'\n=1+1"


def runs() -> list[Summary]:
    crash = Crashed("train", Reason.OUT_OF_MEMORY, "tail")
    kept = a_trial(1, Scored(Metric("val_bpb", 1.2)), "keep", HOSTILE)
    info = {"name": "menu-0", "strategy": "menu", "brain": "scripted:a", "seed": 7}
    return [of_records([a_trial(), kept, a_trial(2, crash)], info, "r"),
            of_records([a_trial(), a_trial(1, Rejected(Reason.NO_EDIT))], {}, "other")]  # fmt: skip


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_pandas_reads_a_row_a_trial(tmp_path: Path, ending: str) -> None:
    import pandas as pd

    path = tmp_path / "deep" / f"trials.{ending}"
    assert export.table(runs(), path) == 5
    found = pd.read_parquet(path) if ending == "parquet" else pd.read_csv(path)
    assert list(found.columns) == list(export.COLUMNS)
    assert found["trial"].tolist() == [0, 1, 2, 0, 1]
    assert found["kind"].tolist() == ["baseline", "keep", "failed", "baseline", "failed"]
    assert found["reason"].fillna("").tolist() == ["", "", "out_of_memory", "", "no_edit"]
    assert found["value"][1] == 1.2 and math.isnan(found["value"][2])
    assert found["best_so_far"].tolist() == [1.5, 1.2, 1.2, 1.5, 1.5]
    assert found["n_trials"].tolist() == [2, 2, 2, 1, 1]
    assert found["seed"][0] == 7 and pd.isna(found["seed"][3])
    assert "=1+1" in found["description"][1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_every_column_is_a_scalar_and_named_in_one_place() -> None:
    for row in export.rows(runs()):
        assert set(row) == set(export.COLUMNS)
        assert all(value is None or isinstance(value, str | int | float) for value in row.values())


def test_a_table_of_no_runs_has_its_columns(tmp_path: Path) -> None:
    import pandas as pd

    assert export.table([], tmp_path / "none.parquet") == 0
    assert list(pd.read_parquet(tmp_path / "none.parquet").columns) == list(export.COLUMNS)


def test_an_ending_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.parquet or \.csv"):
        export.table(runs(), tmp_path / "trials.xlsx")


def test_the_verb_writes_the_table_of_a_plan(tmp_path: Path, run_cli: Cli) -> None:
    import pandas as pd

    out = plan_folder.write(tmp_path, 2, 3)
    table = tmp_path / "trials.parquet"
    done = run_cli("report", out, "--out", tmp_path / "r.html", "--table", table)
    assert done.returncode == 0, done.stderr
    assert "24 rows" in done.stdout  # 3 arms, 2 seeds, a baseline and 3 trials each
    assert pd.read_parquet(table).groupby("strategy")["trial"].count().to_dict() == {
        "menu": 16, "random_edit": 8
    }  # fmt: skip


def test_inspect_reads_its_log_with_every_reply(tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="the extra `inspect` is not installed")
    out = plan_folder.write(tmp_path, 1, 3, text=HOSTILE)
    found = [summarise(out / "runs" / arm / "0") for arm in ("menu", "random_edit")]
    logs = tmp_path / "logs"
    assert export.inspect_logs(found, logs) == 1, "a control asks nobody"
    (info,) = log.list_eval_logs(str(logs))
    read = log.read_eval_log(info, resolve_attachments="full")
    assert (read.status, read.eval.task, read.eval.metadata["arm"]) == (
        "success", "menu-0", "menu · llamacpp:smollm2-135m"
    )  # fmt: skip
    assert [sample.id for sample in read.samples] == [1, 2, 3]
    first = read.samples[0]
    assert [m.role for m in first.messages] == ["user", "assistant"]
    assert first.messages[0].text.startswith("Improve the file.")
    assert first.output.completion == HOSTILE.replace("\ud800", "?")
    (request,) = first.events  # what the viewer's transcript shows
    assert request.input[0].text == first.messages[0].text and request.config.seed == 1
    assert request.output.usage.input_tokens == 400 and request.output.time == 0.5
    assert first.scores["verdict"].answer == first.metadata["description"]
    (total,) = read.stats.model_usage.values()
    assert total.total_tokens == 3 * 420
    assert first.scores["val_bpb"].value == pytest.approx(found[0].trials[1].outcome.metric.value)  # type: ignore[union-attr]
    assert read.samples[1].scores["verdict"].value == "failed"
    assert read.results.scores[0].metrics["kept"].value == pytest.approx(found[0].kept / 3)


def test_without_the_package_inspect_is_one_line(tmp_path: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("inspect_ai"):
        pytest.skip("inspect_ai is installed")
    with pytest.raises(UsageError, match=r"pip install 'local-autoresearch\[inspect\]'"):
        export.inspect_logs(runs(), tmp_path)
