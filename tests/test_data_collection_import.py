"""Somebody else's run -> a run of ours: real git, twenty rows by another route, bad input."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data_collection.importer import run
from data_collection.runs import Run
from eval.summary import summarise
from loop import edit, ledger
from loop.errors import AutoresearchError, UsageError
from loop.trial import Crashed, Measurement, Scored, Trial
from tests.conftest import git

HEAD = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
KNOBS = "DEPTH = 8\nLR = 0.04\nWIDTH = 64\n"
BODY = "\n\ndef norm(x):\n    return x\n\n\ndef loss(x):\n    return norm(x) * LR\n"


def new_repository(folder: Path) -> str:
    """A repository in Karpathy's style; returns the baseline's commit."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "autoresearch/mar8")
    (folder / "train.py").write_text(KNOBS + BODY)
    (folder / "prepare.py").write_text("fixed = 1\n")
    (folder / "program.md").write_text("Lower val_bpb.\n")
    (folder / "LICENSE").write_text(
        "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a "
        "copy ... without restriction, including\n"
    )
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "baseline")
    return git(folder, "rev-parse", "HEAD").strip()


def try_edit(folder: Path, old: str, new: str, keep: bool, message: str = "try") -> str:
    """Edit, commit, and reset hard unless it is kept; returns the candidate's commit."""
    path = folder / "train.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    git(folder, "commit", "--quiet", "--all", "--message", message)
    sha = git(folder, "rev-parse", "HEAD").strip()
    if not keep:
        git(folder, "reset", "--quiet", "--hard", "HEAD~1")
    return sha


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """Twenty trials after a baseline: kept, discarded (reset away), crashed."""
    folder = tmp_path / "autoresearch"
    base = new_repository(folder)
    lines = [f"{base[:7]}\t1.000000\t44.0\tkeep\tbaseline"]
    value, lr, depth = 1.0, 0.04, 8
    for step in range(1, 21):
        keep = step % 3 == 0
        score = value - 0.01 if keep else value + 0.002
        if step % 2:
            new = round(lr + 0.001 * step, 4)
            sha = try_edit(folder, f"LR = {lr}", f"LR = {new}", keep, f"LR {lr} to {new}")
            lr = new if keep else lr
        elif step == 10:
            sha = try_edit(folder, "    return x\n", "    return x(\n", keep, "broken syntax")
        elif step % 4 == 0:
            sha = try_edit(
                folder, f"DEPTH = {depth}", f"DEPTH = {depth + 1}", keep, f"deeper {step}"
            )
            depth = depth + 1 if keep else depth
        else:
            sha = try_edit(folder, "x\n\n\ndef", f"x + {step} * 0\n\n\ndef", False, "norm")
            keep, score = False, value + 0.002
        value = score if keep else value
        if step == 10:
            lines.append(f"{sha[:7]}\t0.000000\t0.0\tcrash\tbroken syntax")
        else:
            status = "keep" if keep else "discard"
            lines.append(f"{sha[:7]}\t{score:.6f}\t44.0\t{status}\tstep {step}")
    (folder / "results.tsv").write_text(HEAD.removesuffix("\n") + "\n" + "\n".join(lines) + "\n")
    return folder


def trials(folder: Path) -> list[Trial]:
    return ledger.trials(folder)


def test_twenty_rows_agree_with_git_by_another_route(karpathy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run([str(karpathy), "--out", str(out)]) == 0
    found = trials(out)
    assert len(found) == 21
    item = Run(out)
    checked = 0
    for trial in found[1:]:
        assert trial.commit is not None and trial.proposal.edit is not None
        # the independent route: git itself makes and applies the patch
        before = git(karpathy, "show", f"{trial.commit}^:train.py")
        after = git(karpathy, "show", f"{trial.commit}:train.py")
        patch = git(karpathy, "diff", "--no-color", f"{trial.commit}^", trial.commit, "train.py")
        theirs = [x for x in patch.splitlines() if re.match(r"[+-](?![+-]{2})", x)]
        ours = [x for x in trial.proposal.edit.diff.splitlines() if re.match(r"[+-](?![+-]{2})", x)]
        assert ours == theirs
        assert trial.context.file_sha256 == edit.sha256(before)
        assert trial.proposal.edit.file_sha256 == edit.sha256(after)
        assert item.source(trial.context.file_sha256, None) == before
        parent = found[trial.parent or 0]
        assert git(karpathy, "rev-parse", f"{trial.commit}^").strip() == parent.commit
        line = (karpathy / "results.tsv").read_text().splitlines()[trial.id + 1].split("\t")
        assert trial.commit.startswith(line[0])
        assert {"keep": "keep", "discard": "discard", "crash": "discard"}[line[3]] == (
            trial.decision.verdict
        )
        if isinstance(trial.outcome, Scored):
            assert f"{trial.outcome.metric.value:.6f}" == line[1]
        else:
            assert isinstance(trial.outcome, Crashed) and line[3] == "crash"
        checked += 1
    assert checked == 20


def test_an_import_reads_like_a_run_of_our_own(karpathy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run([str(karpathy), "--out", str(out), "--by", "claude"])
    summary = summarise(out)
    assert (summary.kept, summary.failed, len(summary.trials)) == (4, 1, 21)
    item = Run(out)
    assert (item.licence, item.brain) == ("MIT", "imported:claude")
    assert item.provenance["rows"] == 21
    assert item.provenance["commit"] == git(karpathy, "rev-parse", "HEAD").strip()
    assert item.target is not None and item.target.instructions == "Lower val_bpb.\n"
    assert set(item.target.knobs) == {"DEPTH", "LR", "WIDTH"}
    changed = trials(out)[1].proposal.edit
    assert changed is not None and changed.knobs[0].knob == "LR"
    assert trials(out)[1].context.knobs["LR"] == 0.04
    assert (out / "results.tsv").read_text().startswith(HEAD)
    assert not (out / "lock").exists()


def traps(folder: Path, rows: list[str]) -> list[Trial]:
    (folder / "results.tsv").write_text(HEAD + "\n".join(rows) + "\n")
    out = folder.parent / "run"
    run([str(folder), "--out", str(out)])
    return trials(out)


def said(trial: Trial) -> str:
    return " ".join(trial.proposal.notes.get("said", []))


def test_hashes_that_are_invented_repeated_or_the_parents(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    base = new_repository(folder)
    kept = try_edit(folder, "LR = 0.04", "LR = 0.05", True)
    lost = try_edit(folder, "WIDTH = 64", "WIDTH = 96", False)
    last = try_edit(folder, "WIDTH = 64", "WIDTH = 32", True)
    found = traps(
        folder,
        [
            "baseline\t1.0\t44\tkeep\tbaseline",
            f"{kept[:7]}\t0.99\t44\tkeep\tfaster",
            "abcdef0\t1.2\t44\tdiscard\tinvented",
            f"{kept[:7]}\t1.1\t44\tdiscard\tthe parent's",
            f"{lost[:7]}\t1.1\t44\tdiscard\twider",
            f"{lost[:7]}\t1.1\t44\tdiscard\tthe same again",
            f"{last[:7]}\t0.98\t44\tkeep\tnarrower",
        ],
    )
    assert found[0].commit == base
    assert "inferred" in said(found[0])
    assert [t.proposal.edit is not None for t in found[1:]] == [
        True, False, False, True, False, True
    ]  # fmt: skip
    assert "not in the repository" in said(found[2])
    assert "incumbent's own" in said(found[3])
    assert "earlier row" in said(found[5])
    edits = [t.proposal.edit.knobs[0].new for t in found[1:] if t.proposal.edit]
    assert edits == ["0.05", "96", "32"]
    assert found[2].proposal.notes["row_alone"] is True
    assert found[2].context.file_sha256 == found[4].context.file_sha256, "the state is known"


def test_a_discard_that_bears_the_hash_it_started_from(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    base = new_repository(folder)
    a = try_edit(folder, "LR = 0.04", "LR = 0.05", True)
    b = try_edit(folder, "LR = 0.05", "LR = 0.06", True)
    found = traps(
        folder,
        [
            f"{base[:7]}\t1.0\t44\tkeep\tbaseline",
            f"{a[:7]}\t1.1\t44\tdiscard\tlogged as discarded, yet it stayed",
            f"{b[:7]}\t0.98\t44\tkeep\tfaster",
        ],
    )
    assert found[1].proposal.edit is None
    assert "stayed in the history" in said(found[1])
    assert "commits since the incumbent" in said(found[2])


def test_a_discard_undone_by_a_revert_commit_is_traced(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    base = new_repository(folder)
    bad = try_edit(folder, "LR = 0.04", "LR = 0.5", True)
    git(folder, "revert", "--no-edit", "HEAD")
    good = try_edit(folder, "WIDTH = 64", "WIDTH = 32", True)
    found = traps(
        folder,
        [
            f"{base[:7]}\t1.0\t44\tkeep\tbaseline",
            f"{bad[:7]}\t1.1\t44\tdiscard\thotter",
            f"{good[:7]}\t0.98\t44\tkeep\tnarrower",
        ],
    )
    assert [t.proposal.edit.knobs[0].knob for t in found[1:] if t.proposal.edit] == ["LR", "WIDTH"]


def test_a_train_py_that_moved(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    base = new_repository(folder)
    (folder / "src").mkdir()
    git(folder, "mv", "train.py", "src/train.py")
    git(folder, "commit", "--quiet", "--message", "move")
    path = folder / "src" / "train.py"
    rows = [f"{base[:7]}\t1.0\t44\tkeep\tbaseline"]
    for value in ("0.05", "0.06"):
        path.write_text(re.sub(r"LR = \S+", f"LR = {value}", path.read_text()))
        git(folder, "commit", "--quiet", "--all", "--message", value)
        sha = git(folder, "rev-parse", "HEAD").strip()
        rows.append(f"{sha[:7]}\t0.9{9 - len(rows)}\t44\tkeep\t{value}")
    found = traps(folder, rows)
    assert [t.proposal.edit.knobs[0].new for t in found[1:] if t.proposal.edit] == ["0.05", "0.06"]


def test_a_repeated_baseline_is_a_measurement(tmp_path: Path) -> None:
    log = tmp_path / "results.tsv"
    log.write_text(
        HEAD + "base\t1.00\t1\tbaseline\tb\nbase\t1.02\t1\tbaseline\tb\nx\t0.9\t1\tkeep\tc\n"
    )
    run([str(log), "--out", str(tmp_path / "run")])
    records = list(ledger.read(tmp_path / "run"))
    assert [type(r).__name__ for r in records] == ["Trial", "Measurement", "Trial"]
    assert isinstance(records[1], Measurement) and isinstance(records[1].outcome, Scored)


def test_a_shallow_and_a_bare_repository(karpathy: Path, tmp_path: Path) -> None:
    shallow, bare = tmp_path / "shallow", tmp_path / "bare.git"
    git(tmp_path, "clone", "--quiet", "--depth", "2", f"file://{karpathy}", str(shallow))
    (shallow / "results.tsv").write_text((karpathy / "results.tsv").read_text())
    run([str(shallow), "--out", str(tmp_path / "a")])
    found = trials(tmp_path / "a")
    assert len(found) == 21
    assert 0 < sum(t.proposal.edit is not None for t in found) < 5
    git(karpathy, "add", "--force", "results.tsv")
    git(karpathy, "commit", "--quiet", "--message", "log")
    git(tmp_path, "clone", "--quiet", "--bare", str(karpathy), str(bare))
    run([str(bare), "--out", str(tmp_path / "b")])
    assert len(trials(tmp_path / "b")) == 21


def test_missing_objects_cost_the_diff_and_not_the_row(karpathy: Path, tmp_path: Path) -> None:
    victim = trials_of(karpathy, tmp_path)[5].commit
    assert victim is not None
    blob = git(karpathy, "rev-parse", f"{victim}:train.py").strip()
    path = karpathy / ".git" / "objects" / blob[:2] / blob[2:]
    path.chmod(0o644)
    path.unlink()
    run([str(karpathy), "--out", str(tmp_path / "again")])
    found = trials(tmp_path / "again")
    assert len(found) == 21
    assert found[5].proposal.edit is None


def trials_of(folder: Path, tmp_path: Path) -> list[Trial]:
    run([str(folder), "--out", str(tmp_path / "first")])
    return trials(tmp_path / "first")


def test_nothing_of_a_foreign_repository_runs(karpathy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    evil.chmod(0o755)
    for name in ("post-checkout", "post-commit", "reference-transaction", "post-index-change"):
        hook = karpathy / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(evil.read_text())
        hook.chmod(0o755)
    keys = "core.fsmonitor filter.x.smudge filter.x.clean diff.x.textconv core.sshCommand "
    for key in (keys + "diff.external core.pager uploadpack.packObjectsHook").split():
        git(karpathy, "config", key, str(evil))
    (karpathy / ".gitattributes").write_text("* filter=x diff=x\n")
    mark.unlink(missing_ok=True)
    run([str(karpathy), "--out", str(tmp_path / "run")])
    assert not mark.exists()
    assert len(trials(tmp_path / "run")) == 21


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.tsv").write_text(HEAD + "a\t1.0\t1\tkeep\tx\n")
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "results.tsv").symlink_to(tmp_path / "secret.tsv")
    with pytest.raises(AutoresearchError, match="link out of"):
        run([str(folder), "--out", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x00\x01\x02" * 50, "binary"),
        (b"", "empty"),
        (b"only prose\n", "metric"),
        (b"SQLite format 3\x00" + b"junk" * 100, "cannot be read as an Optuna study"),
    ],
)
def test_unreadable_files_leave_nothing_behind(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "results.tsv"
    path.write_bytes(data)
    with pytest.raises(AutoresearchError, match=match) as error:
        run([str(path), "--out", str(tmp_path / "run")])
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.tsv"]


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(AutoresearchError, match="1,024 MB"):
        run([str(path), "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "results.tsv"
    text = HEAD + "a\t1.0\t1\tkeep\tbase\nb\t1.1\t1\tdiscard\tgrößer\n"
    path.write_bytes(text.encode(encoding))
    run([str(path), "--out", str(tmp_path / "run")])
    assert trials(tmp_path / "run")[1].proposal.description == "größer"


def test_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="git clone"):
        run(["https://example.org/x.git", "--out", str(tmp_path / "run")])
    with pytest.raises(UsageError, match="no "):
        run([str(tmp_path / "nothing"), "--out", str(tmp_path / "run")])
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        run([str(full), "--out", str(full)])


def test_listed_lines_are_in_the_run_folder(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(HEAD + "a\t1.0\t1\tkeep\tbase\nb\t1.1\t1\tperhaps\tx\n")
    run([str(path), "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "unread.tsv").read_text().splitlines()[1].startswith("3\tstatus")


def test_an_optuna_study_becomes_trials_over_a_file_of_knobs(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = tmp_path / "study.db"
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name="s", sampler=optuna.samplers.RandomSampler(seed=1)
    )

    def objective(trial: Any) -> float:
        lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
        depth = trial.suggest_int("depth", 1, 4)
        if trial.number == 3:
            raise ValueError("boom")
        if trial.number == 4:
            trial.report(9.0, 5)
            raise optuna.TrialPruned
        return float(abs(lr - 0.1) + depth)

    study.optimize(objective, n_trials=8, catch=(ValueError,))
    before = path.read_bytes()
    run([str(path), "--out", str(tmp_path / "run")])
    assert path.read_bytes() == before
    found = trials(tmp_path / "run")
    kinds = [type(t.outcome).__name__ for t in found]
    assert kinds == [
        {"COMPLETE": "Scored", "FAIL": "Crashed", "PRUNED": "Stopped"}[t.state.name]
        for t in study.trials
    ]
    values = [t.outcome.metric.value for t in found if isinstance(t.outcome, Scored)]
    assert values == [t.value for t in study.trials if t.state.name == "COMPLETE"]
    assert Run(tmp_path / "run").target is not None
    assert set(Run(tmp_path / "run").target.knobs) == {"LR", "DEPTH"}  # type: ignore[union-attr]


def test_a_jsonl_log_by_name(tmp_path: Path) -> None:
    rows = [
        {"type": "config", "metricName": "ms", "bestDirection": "lower"},
        {"run": 1, "commit": "abc1234", "metric": 10, "status": "keep", "description": "baseline"},
        {"run": 2, "commit": "abc1234", "metric": 9, "status": "keep", "description": "faster"},
        {"type": "config", "metricName": "ms", "bestDirection": "lower"},
        {"run": 3, "commit": "abc1234", "metric": 20, "status": "keep", "description": "baseline"},
    ]
    (tmp_path / "autoresearch.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run([str(tmp_path), "--out", str(tmp_path / "run")])
    assert [t.decision.verdict for t in trials(tmp_path / "run")] == [
        "baseline",
        "keep",
        "baseline",
    ]


def test_the_command_says_one_line_and_exits_with_1(tmp_path: Path) -> None:
    import sys

    code = "import sys; from data_collection.importer import run; run(sys.argv[1:])"
    path = tmp_path / "results.tsv"
    path.write_bytes(b"\0" * 100)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), "--out", str(tmp_path / "r")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 1
    assert "binary" in done.stderr
