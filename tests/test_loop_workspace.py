"""Git for a run: every commit is kept, the source stays as it was, what it brings stays data."""

import hashlib
import os
from pathlib import Path

import pytest

from loop.errors import TargetError
from loop.workspace import Workspace
from tests.conftest import git


def create(source: Path, run: Path) -> Workspace:
    run.mkdir()
    return Workspace.create(source, run / "work", "r1", "train.py")[0]


def versioned(folder: Path) -> Path:
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Path -> mode and sha256 of every file under `folder`, its .git included."""
    return {
        str(p.relative_to(folder)): (
            p.lstat().st_mode,
            hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "",
        )
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture(params=["git", "plain"])
def source(request: pytest.FixtureRequest, toy: Path) -> Path:
    return versioned(toy) if request.param == "git" else toy


def test_a_run_leaves_its_source_byte_identical(source: Path, tmp_path: Path) -> None:
    before = snapshot(source)
    space = create(source, tmp_path / "run")
    commit = space.commit(1, "LR = 1\n", space.head(), "trial 1\n")
    space.advance(commit)
    space.scratch(commit, tmp_path / "scratch")
    assert snapshot(source) == before


def test_every_trial_is_kept_alive_and_only_kept_ones_move_the_branch(
    source: Path, tmp_path: Path
) -> None:
    space = create(source, tmp_path / "run")
    base = space.head()
    space.remember(0, base)
    discarded = space.commit(1, "LR = 1\n", base, "trial 1\n")
    kept = space.commit(2, "LR = 2\n", base, "trial 2: é\n")
    assert space.head() == base
    space.advance(kept)
    assert space.head() == kept
    assert (space.folder / "train.py").read_text() == "LR = 2\n"
    git(space.folder, "gc", "-q", "--prune=now")
    refs = dict(
        line.split()[::-1]
        for line in git(
            space.folder, "for-each-ref", "--format=%(objectname) %(refname)"
        ).splitlines()
    )
    assert refs["refs/heads/autoresearch/r1"] == kept
    assert [refs[f"refs/trials/{n}"] for n in range(3)] == [base, discarded, kept]
    assert git(space.folder, "diff", "--stat", f"{base}", "refs/trials/1").count("train.py") == 1
    assert space.read(discarded) == "LR = 1\n"


@pytest.mark.parametrize(
    "text", ["LR = 1", "a\r\nb\r\n", "é😀\x0c\u2028\n", "", "raw \udce9 byte\n"], ids=repr
)
def test_a_file_is_committed_to_the_byte(toy: Path, tmp_path: Path, text: str) -> None:
    (toy / ".gitattributes").write_text("*.py text eol=crlf ident\n")
    space = create(toy, tmp_path / "run")
    assert space.read(space.commit(1, text, space.head(), "m")) == text


def test_a_scratch_copy_holds_the_files_and_no_git(source: Path, tmp_path: Path) -> None:
    space = create(source, tmp_path / "run")
    space.scratch(space.commit(1, "LR = 1\n", space.head(), "m"), tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "prepare.py", "program.md", "train.py",
    ]  # fmt: skip
    assert (tmp_path / "s" / "train.py").read_text() == "LR = 1\n"


def test_an_executable_stays_one(toy: Path, tmp_path: Path) -> None:
    (toy / "train.py").chmod(0o755)
    space = create(toy, tmp_path / "run")
    space.scratch(space.commit(1, "LR = 1\n", space.head(), "m"), tmp_path / "s")
    assert os.access(tmp_path / "s" / "train.py", os.X_OK)


def test_a_dirty_tree_is_refused(toy: Path, tmp_path: Path) -> None:
    versioned(toy)
    (toy / "train.py").write_text("LR = 7\n")
    before = snapshot(toy)
    with pytest.raises(TargetError, match=r"uncommitted changes \(train.py, ...\); commit or"):
        create(toy, tmp_path / "run")
    assert snapshot(toy) == before


def test_an_untracked_file_is_not_dirt(toy: Path, tmp_path: Path) -> None:
    versioned(toy)
    (toy / "notes.txt").write_text("x")
    assert create(toy, tmp_path / "run").head()


def test_a_repository_without_a_commit_is_one_line(toy: Path, tmp_path: Path) -> None:
    git(toy, "init", "-q")
    with pytest.raises(TargetError) as caught:
        create(toy, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_plain_folder_is_copied_without_what_is_no_code(toy: Path, tmp_path: Path) -> None:
    (toy / ".venv").mkdir()
    (toy / "sub" / "__pycache__").mkdir(parents=True)
    (toy / "sub" / "data.txt").write_text("d")
    (toy / "link").symlink_to("/etc/hostname")
    (toy / "sub" / "link").symlink_to("/etc")
    os.mkfifo(toy / "pipe")
    os.mkfifo(toy / "sub" / "pipe")
    (toy / ".gitignore").write_text("*.txt\n")
    space = create(toy, tmp_path / "run")
    assert git(space.folder, "ls-files").split() == [
        ".gitignore", "prepare.py", "program.md", "sub/data.txt", "train.py",
    ]  # fmt: skip


def test_a_run_folder_inside_a_plain_target_is_not_copied_into_itself(toy: Path) -> None:
    (toy / "runs" / "old").mkdir(parents=True)
    (toy / "runs" / "old" / "ledger.jsonl").write_text("")
    space = create(toy, toy / "runs" / "new")
    assert (
        "ledger" not in git(space.folder, "ls-files") and not (space.folder / "runs/new").exists()
    )


def test_without_git_it_says_so(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="git is not on PATH; install git"):
        create(toy, tmp_path / "run")


# --- a foreign repository is data --------------------------------------------------------------

HOOKS = (
    "post-checkout", "post-commit", "pre-commit", "post-index-change", "reference-transaction",
    "pre-auto-gc", "post-rewrite", "prepare-commit-msg", "commit-msg", "post-merge", "fsmonitor",
)  # fmt: skip


@pytest.fixture
def hostile(toy: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A repository in which everything that git could run makes a marker; (repository, marker)."""
    marker = tmp_path / "marker"
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\necho $0 $@ >> {marker}\ncat\n")
    trap.chmod(0o755)
    (toy / ".gitattributes").write_text("*.py filter=evil diff=evil merge=evil\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.py").write_text("x = 1\n")
    versioned(inner)
    versioned(toy)
    git(toy, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    git(toy, "commit", "-q", "-m", "with a submodule")
    for place in (toy / ".git", toy / ".git" / "modules" / "sub"):
        for hook in HOOKS:
            path = place / "hooks" / hook
            path.parent.mkdir(exist_ok=True)
            path.write_text(trap.read_text())
            path.chmod(0o755)
        with (place / "config").open("a") as config:
            config.write(
                f"[core]\n\tfsmonitor = {trap}\n\tsshCommand = {trap}\n\tpager = {trap}\n"
                f"\teditor = {trap}\n\tgitProxy = {trap}\n\talternateRefsCommand = {trap}\n"
                f'[filter "evil"]\n\tclean = {trap}\n\tsmudge = {trap}\n\trequired = true\n'
                f'[diff "evil"]\n\ttextconv = {trap}\n\tcommand = {trap}\n'
                f"[uploadpack]\n\tpackObjectsHook = {trap}\n[gc]\n\tauto = 1\n"
                f'[alias]\n\tclone = "!{trap}"\n\tstatus = "!{trap}"\n'
                f"[credential]\n\thelper = {trap}\n"
                "[submodule]\n\trecurse = true\n"
            )
    for path in (toy / "train.py", toy / "sub" / "a.py"):  # stale index: a status must read it
        os.utime(path, (1, 1))
    return toy, marker


def test_the_traps_of_the_hostile_repository_work(hostile: tuple[Path, Path]) -> None:
    folder, marker = hostile
    git(folder, "status")
    assert marker.exists(), "else the next test shows nothing"


def test_nothing_of_a_hostile_repository_runs(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    folder, marker = hostile
    before = snapshot(folder)
    space = create(folder, tmp_path / "run")
    commit = space.commit(1, "LR = 1\n", space.head(), "trial 1\n")
    space.read(commit)
    space.advance(commit)
    space.scratch(commit, tmp_path / "scratch")
    assert not marker.exists(), marker.read_text()
    assert snapshot(folder) == before
    assert not list((tmp_path / "scratch" / "sub").iterdir()), "the submodule is not fetched"


def test_a_repository_of_another_user_can_be_cloned(toy: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    versioned(toy)
    for path in (toy, *toy.rglob("*")):
        os.chown(path, 12345, 12345)
    assert create(toy, tmp_path / "run").head()
