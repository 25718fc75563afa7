"""Runs -> a corpus: its rows, its labels, what it leaves out, its splits, its memory."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from data_collection import corpus, features, hashes, leakage, scrub, splits
from data_collection.collect import run
from data_collection.corpus import CANARY
from data_collection.importer import run as import_
from data_collection.licence import recognise
from loop import edit
from loop.errors import AutoresearchError, LedgerError, UsageError
from loop.ledger import Ledger
from loop.trial import (
    Context,
    Crashed,
    Decision,
    Edit,
    Event,
    Invalid,
    Json,
    KnobChange,
    Measurement,
    Metric,
    Proposal,
    Reason,
    Record,
    Rejected,
    Scored,
    Stopped,
    TimedOut,
    Trial,
)
from tests.conftest import Cli, a_trial

SOURCE = "LR = 0.1\nWIDTH = 8\n"


def knob_trial(number: int, lr: str, score: float, *, start: str = SOURCE, parent: int = 0,
               keep: bool = False, best: float = 1.0) -> Trial:  # fmt: skip
    """A trial that set LR in the file `start`."""
    new = start.replace("LR = 0.1", f"LR = {lr}")
    edited = edit.compare(start, new)
    change = edited.edit if isinstance(edited, edit.Edited) else None
    bpb = Metric("val_bpb", score)
    return Trial(
        number, "r", parent, "c" * 40, "2026-01-01T00:00:00+00:00", 1.0,
        Context(edit.sha256(start), parent, Metric("val_bpb", best), "bare", "h"),
        Proposal(f"LR to {lr}", edit=change), Scored(bpb),
        Decision("keep" if keep else "discard", "naive", "because"),
    )  # fmt: skip


def baseline(start: str = SOURCE, score: float = 1.0) -> Trial:
    digest = edit.code_hash(start)
    assert isinstance(digest, str)
    return Trial(
        0, "r", None, "b" * 40, "2026-01-01T00:00:00+00:00", 1.0,
        Context(edit.sha256(start), None, None, "baseline", ""),
        Proposal("baseline", edit=Edit("", (), edit.sha256(start), digest)),
        Scored(Metric("val_bpb", score)), Decision("baseline", "naive", "as found"),
    )  # fmt: skip


def write_run(folder: Path, records: list[Record], start: str = SOURCE, **info: Json | str) -> Path:
    """A run folder as import makes it: a ledger, run.toml, the files that trials started from."""
    with Ledger(folder) as ledger:
        for record in records:
            ledger.append(record)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "blobs" / edit.sha256(start)).write_text(start)
    spec = {"name": "toy", "folder": ".", "editable": "train.py", "command": ["x"],
            "metric": "val_bpb", "knobs": {"LR": {"low": 0.01, "high": 1.0}}}  # fmt: skip
    body = {"name": folder.name, "brain": "scripted:x", "strategy": "bare", "seed": 0,
            "target": spec, **info}  # fmt: skip
    (folder / "run.toml").write_text(tomli_w.dumps(body))
    return folder


@pytest.fixture
def toy_run(tmp_path: Path) -> Path:
    records: list[Record] = [baseline()]
    for number in range(1, 13):
        records.append(knob_trial(number, f"0.{10 + number}", 1.0 + 0.001 * (number % 5)))
    return write_run(tmp_path / "run", records)


def rows(folder: Path) -> list[Json]:
    return list(corpus.rows(folder))


def test_a_corpus_opens_with_datasets_and_gives_back_the_trials(
    toy_run: Path, tmp_path: Path
) -> None:
    import datasets

    out = tmp_path / "corpus"
    assert run([str(toy_run), "--out", str(out)]) == 0
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert found["train"].num_rows == 13
    assert found["train"].features["raw_gain"].dtype == "float64"
    from loop import ledger

    expected = [replace(trial, run="run") for trial in ledger.trials(toy_run)]
    assert [features.trial(row) for row in found["train"]] == expected
    row = found["train"][1]
    assert row["source"] == SOURCE
    assert row["raw_gain"] == pytest.approx(-0.001)
    assert row["canary"] == CANARY
    assert 0 <= row["p_real"] < 0.5
    assert CANARY in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "outcome",
    [
        Scored(Metric("val_bpb", 1.0), {"a": 1, "b": {"c": [1, None]}}),
        Crashed("train", Reason.OUT_OF_MEMORY, "tail\n"),
        TimedOut(3.5),
        Stopped(0.25, Metric("val_bpb", 2.0)),
        Stopped(0.25),
        Invalid(Metric("acc", 0.5, "max"), Reason.NOT_CAUSAL, "x"),
        Rejected(Reason.NO_EDIT, "why"),
    ],
)
def test_every_outcome_survives_the_way_to_parquet_and_back(
    outcome: Scored | Crashed, tmp_path: Path
) -> None:
    trial = replace(a_trial(3, outcome), run="run")
    out = tmp_path / "c"
    write_run(tmp_path / "run", [a_trial(0), trial])
    run([str(tmp_path / "run"), "--out", str(out)])
    assert features.trial(rows(out)[1]) == trial


def test_labels(tmp_path: Path) -> None:
    records: list[Record] = [baseline()]
    records += [knob_trial(n, f"0.{20 + n}", 1.0 + 0.0005 * (n % 4 - 1)) for n in range(1, 20)]
    records.append(knob_trial(20, "0.5", 0.9, keep=True))
    records.append(knob_trial(21, "0.6", 1.2))
    records.append(replace(knob_trial(22, "0.7", 1.0), outcome=Stopped(0.5)))
    records.append(replace(knob_trial(23, "0.8", 1.0), outcome=Crashed("train", Reason.EXCEPTION)))
    write_run(tmp_path / "run", records)
    run([str(tmp_path / "run"), "--out", str(tmp_path / "c"), "--cap", "0"])
    found = {row["trial"]: row for row in rows(tmp_path / "c")}
    assert [found[n]["label"] for n in (0, 20, 21, 22, 23)] == [
        "baseline", "win", "loss", "censored", "failure"
    ]  # fmt: skip
    assert found[23]["reason"] == "exception"
    assert found[20]["p_real"] > 0.99
    assert found[22]["p_real"] is None
    assert found[1]["label"] in ("unclear", "loss")
    assert 0.0001 < found[1]["sigma"] < 0.002


def test_own_replicates_set_the_noise(tmp_path: Path) -> None:
    records: list[Record] = [baseline()]
    for seed, value in enumerate((1.01, 0.99, 1.012, 0.992), 1):
        outcome = Scored(Metric("val_bpb", value))
        records.append(Measurement(0, "replicate", seed, "", 1.0, outcome))
    records.append(Event("x", ""))
    write_run(tmp_path / "run", records)
    run([str(tmp_path / "run"), "--out", str(tmp_path / "c")])
    row = rows(tmp_path / "c")[0]
    assert row["sigma"] == pytest.approx(0.0099, abs=0.0005)
    assert row["sigma_method"] == "4 df of replicates"


def test_duplicates_near_duplicates_and_the_cap(tmp_path: Path) -> None:
    records: list[Record] = [
        baseline(),
        knob_trial(1, "0.2", 1.1),
        knob_trial(2, "0.2", 1.1),
        knob_trial(3, "0.2001", 1.1),
        *(knob_trial(n, f"0.{n}", 1.1) for n in range(4, 9)),
    ]
    write_run(tmp_path / "run", records)
    run([str(tmp_path / "run"), "--out", str(tmp_path / "c"), "--cap", "0"])
    left = [row["left_out"] for row in rows(tmp_path / "c")]
    assert left[:4] == ["baseline", "", "duplicate", "near_duplicate"]
    run([str(tmp_path / "run"), "--out", str(tmp_path / "d")])
    assert sum(row["left_out"] == "" for row in rows(tmp_path / "d")) <= 2 * 3
    assert any(row["left_out"] == "over_cap" for row in rows(tmp_path / "d"))


def test_near_is_blind_to_layout_comments_and_order_only() -> None:
    def diff(*lines: str) -> Trial:
        body = "--- a/t\n+++ b/t\n@@ -1 +1 @@\n" + "".join(f"{line}\n" for line in lines)
        return replace(a_trial(1), proposal=Proposal("x", edit=Edit(body, (), "", "h")))

    one = hashes.near(diff("-a = 1", "+a = 2  # two"))
    assert one == hashes.near(diff("-a  =  1", "+a=2"))
    assert one != hashes.near(diff("-a = 1", "+a = 3"))
    assert one != hashes.near(diff("+a = 1", "-a = 2"))


def test_multi_knob_trials_are_marked(tmp_path: Path) -> None:
    change = Edit("x", (KnobChange("A", "1", "2"), KnobChange("B", "1", "2")), "f", "g")
    trial = replace(knob_trial(1, "0.2", 1.1), proposal=Proposal("two", edit=change))
    write_run(tmp_path / "run", [baseline(), trial])
    run([str(tmp_path / "run"), "--out", str(tmp_path / "c")])
    assert rows(tmp_path / "c")[1]["multi_knob"] is True


def test_the_licence_filter(toy_run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "gpl", [baseline()], licence="GPL-3.0")
    run([str(toy_run), str(other), "--out", str(tmp_path / "c")])
    meta = corpus.read_meta(tmp_path / "c")
    assert [r["run"] for r in meta["runs"]] == ["run"]
    assert meta["refused"] == [{"run": "gpl", "why": "licence GPL-3.0"}]
    with pytest.raises(AutoresearchError, match="--licences"):
        run([str(other), "--out", str(tmp_path / "d")])
    assert not (tmp_path / "d").exists()
    run([str(other), "--out", str(tmp_path / "d"), "--licences", "GPL-3.0"])


def test_licences_are_recognised_by_their_text() -> None:
    assert recognise("Apache License\nVersion 2.0, January 2004") == "Apache-2.0"
    assert recognise("All rights reserved.") == "unknown"


@pytest.mark.parametrize(
    "secret",
    [
        "ghp_" + "a1B2" * 10,
        "hf_" + "abcDEF" * 6,
        "AKIA" + "ABCDEFGH12345678",
        "sk-ant-" + "x9Y8" * 8,
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
        'api_key = "' + "q1W2" * 8 + '"',
        "https://user:hunter22@example.org/x",
    ],
)
def test_secrets_do_not_reach_the_corpus(secret: str, tmp_path: Path) -> None:
    start = SOURCE + "".join(f"# {line}\n" for line in secret.split("\n"))
    trial = replace(
        knob_trial(1, "0.2", 1.1, start=start), proposal=Proposal(f"use {secret}", answer=secret)
    )
    write_run(tmp_path / "run", [baseline(start), trial], start)
    run([str(tmp_path / "run"), "--out", str(tmp_path / "c")])
    row = rows(tmp_path / "c")[1]
    text = json.dumps(row)
    core = max(secret.replace("\n", " ").split(), key=len).strip('"')
    assert core not in text or core.startswith(("https", "-----BEGIN"))
    assert "[redacted:" in row["source"]
    assert row["redacted"] >= 3
    assert scrub.scrub("task-specific hf_hub sk-learn tokens = 5")[1] == 0


def two_targets(tmp_path: Path, count: int = 4) -> list[Path]:
    found = []
    for index in range(count):
        start = f"LR = 0.1\nWIDTH = {8 + index}\n"
        records: list[Record] = [baseline(start)]
        records += [knob_trial(n, f"0.{10 + n}", 1.1, start=start) for n in range(1, 5)]
        found.append(write_run(tmp_path / f"run{index}", records, start))
    return found


def test_splits_are_by_target_and_do_not_leak(tmp_path: Path) -> None:
    runs = two_targets(tmp_path)
    again = tmp_path / "run0-again"
    shutil.copytree(runs[0], again)
    (again / "run.toml").write_text((runs[0] / "run.toml").read_text() + "\n[more]\nx = 1\n")
    out = tmp_path / "c"
    run([*map(str, runs), str(again), "--out", str(out)])
    meta = corpus.read_meta(out)
    assert {r["split"] for r in meta["runs"]} == {"train", "validation", "test"}
    of = {r["run"]: r["split"] for r in meta["runs"]}
    assert (
        len(
            {r["split"] for r in meta["runs"] if r["target_hash"] == meta["runs"][0]["target_hash"]}
        )
        == 1
    )
    assert set(of.values()) == {"train", "validation", "test"}
    assert leakage.check(out) == []
    assert run(["--check", str(out)]) == 0


def plant(out: Path, change: Callable[[Json], Json]) -> None:
    """Copy a row of one split into another, changed by `change`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = [row for row in rows(out) if row["left_out"] == ""]
    row = kept[0]
    other = next(r["split"] for r in kept if r["split"] != row["split"])
    planted = change({k: v for k, v in row.items() if k != "split"})
    pq.write_table(
        pa.Table.from_pylist([planted], schema=features.schema()),
        out / "data" / f"{other}-00099.parquet",
    )


def test_a_planted_leak_is_caught(tmp_path: Path) -> None:
    runs = two_targets(tmp_path)
    for name, change in {
        "as it is": lambda row: row,
        "under another run": lambda row: row | {"run_id": "x", "run": "x", "key": "x/1"},
        "under another target": lambda row: row | {
            "run_id": "x", "key": "x/1", "target_hash": "y", "target": "y"
        },
        "with forged hashes": lambda row: row | {
            "run_id": "x", "key": "x/1", "target_hash": "y", "state": "00", "edit": "11",
            "near": "22",
        },
    }.items():  # fmt: skip
        out = tmp_path / name
        run([*map(str, runs), "--out", str(out)])
        plant(out, change)
        assert leakage.check(out), name
        with pytest.raises(AutoresearchError, match="leaks"):
            run(["--check", str(out)])


def test_a_log_imported_twice_is_one_group(tmp_path: Path) -> None:
    text = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n" + "".join(
        f"{n:07x}\t{1 - n / 100}\t1\tkeep\tidea {n}\n" for n in range(6)
    )
    for name in ("a", "b", "c"):
        path = tmp_path / name / "results.tsv"
        path.parent.mkdir()
        path.write_text(text if name != "c" else text.replace("idea", "thought"))
        import_([str(path.parent), "--out", str(tmp_path / f"run-{name}"), "--licence", "MIT"])
    out = tmp_path / "corpus"
    run([*(str(tmp_path / f"run-{n}") for n in "abc"), "--out", str(out)])
    of = {r["run"]: r["split"] for r in corpus.read_meta(out)["runs"]}
    assert of["run-a"] == of["run-b"]
    used = [r for r in rows(out) if r["left_out"] == "" and r["run"] in ("run-a", "run-b")]
    assert len({r["edit"] for r in used}) == len(used)


def test_groups_and_shares() -> None:
    assert splits.groups(["a", "b", "a", "c"], [(1, 3)], "target") == [0, 1, 0, 1]
    assert splits.groups(["a", "b", "a"], [(0, 1)], "run") == [0, 1, 2]
    names = [str(n) for n in range(20)]
    shares = list(splits.assign(range(20), names, 0.1, 0.2, 0).values())
    assert [shares.count(s) for s in splits.SPLITS] == [14, 2, 4]
    assert list(splits.assign([0], ["a"], 0.1, 0.1, 0).values()) == ["train"]


def test_nothing_half_written(toy_run: Path, tmp_path: Path) -> None:
    ledger = toy_run / "ledger.jsonl"
    ledger.write_bytes(
        ledger.read_bytes().replace(b'"keep"', b'"kep"').replace(b"scored", b"scord", 1)
    )
    with pytest.raises(LedgerError, match="line 1"):
        run([str(toy_run), "--out", str(tmp_path / "c")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    with pytest.raises(LedgerError, match="not a run"):
        run([str(tmp_path), "--out", str(tmp_path / "c")])
    with pytest.raises(UsageError, match="not a corpus"):
        run(["--describe", str(tmp_path)])


def test_a_damaged_corpus_is_said_to_be(toy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    run([str(toy_run), "--out", str(out)])
    path = out / "data" / "train-00000.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(AutoresearchError, match="damaged"):
        run(["--check", str(out)])


def test_describe(toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "</style><script>alert(1)</script>\x07"
    with Ledger(toy_run) as ledger:
        ledger.append(replace(knob_trial(13, "0.9", 1.3), proposal=Proposal(evil, answer=evil)))
    out = tmp_path / "c"
    run([str(toy_run), "--out", str(out)])
    capsys.readouterr()
    run(["--describe", str(out), "--seed", "3"])
    said = capsys.readouterr().out
    assert "LR up" in said and "loss" in said
    for seed in range(4):
        run(["--describe", str(out), "--seed", str(seed), "--out", str(tmp_path / "p.html")])
        page = (tmp_path / "p.html").read_text()
        assert "<script" not in page and "\x07" not in page
        assert "default-src 'none'" in page
    assert page.count("<article>") == 6


def test_a_run_of_our_own_becomes_a_corpus(
    run_loop: Cli, toy: Path, scripted: Callable[..., Path], tmp_path: Path
) -> None:
    script = scripted("LR = 0.2", "WIDTH = 16", "nonsense", "LR = 0.3")
    done = run_loop("--target", toy, "--brain", f"scripted:{script}", "--strategy", "bare",
                    "--trials", 4, "--judge", "naive", "--out", tmp_path / "r")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run([str(tmp_path / "r"), "--out", str(tmp_path / "c")])
    found = rows(tmp_path / "c")
    assert len(found) == 5
    assert all(row["source"] is not None for row in found)
    assert all(edit.sha256(row["source"]) == row["context"]["file_sha256"] for row in found)
    assert leakage.check(tmp_path / "c") == []


PEAK = """
import resource, sys
sys.path.insert(0, ".")
from data_collection.collect import run
run([sys.argv[1], "--out", sys.argv[2]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def long_run(folder: Path, trials: int) -> Path:
    """A run of so many trials, its ledger written straight away: an fsync a line takes hours."""
    from loop.trial import to_json

    write_run(folder, [baseline()])
    model = knob_trial(987654321, "0.7654321", 1.0123456)
    assert model.proposal.edit is not None
    line, code = json.dumps(to_json(model)), model.proposal.edit.code_hash
    with (folder / "ledger.jsonl").open("a") as file:
        for number in range(1, trials):
            text = line.replace("987654321", str(number)).replace("7654321", f"{number:07d}")
            text = text.replace(code, f"{number:064x}")
            file.write(text.replace("1.0123456", f"1.{number * 7919 % 99991:05d}") + "\n")
    return folder


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 20_000):
        folder = long_run(tmp_path / str(count), count)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder), str(tmp_path / f"c{count}")],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] * 1.2 + 20
