"""Git for a run: every commit is kept, the source stays as it was, what it brings stays data."""

import hashlib
import os
import zlib
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


def test_what_is_written_without_git_is_sound_to_git(source: Path, tmp_path: Path) -> None:
    space = create(source, tmp_path / "run")
    first = space.commit(1, "LR = 1\n", space.head(), "trial 1: é\n")
    second = space.commit(2, "LR = 2\n", first, "trial 2\n")
    said = git(space.folder, "fsck", "--strict", "--no-dangling", "--no-progress")
    assert said == ""
    assert git(space.folder, "log", "--format=%an %s", second).split("\n")[:2] == [
        "autoresearch trial 2", "autoresearch trial 1: é",
    ]  # fmt: skip
    (tmp_path / "copy").mkdir()
    git(space.folder, f"--work-tree={tmp_path / 'copy'}", "checkout", "-q", second, "--", ".")
    space.scratch(second, tmp_path / "s")
    assert snapshot(tmp_path / "s") == snapshot(tmp_path / "copy")


def test_a_file_in_a_folder_of_a_packed_sha256_repository(toy: Path, tmp_path: Path) -> None:
    (toy / "src").mkdir()
    (toy / "train.py").rename(toy / "src" / "train.py")
    (toy / "src" / "train.py.old").write_text("x")
    git(toy, "init", "-q", "--object-format=sha256", "-b", "main")
    git(toy, "add", "-A")
    git(toy, "commit", "-q", "-m", "first")
    (tmp_path / "run").mkdir()
    space = Workspace.create(toy, tmp_path / "run" / "work", "r1", "src/train.py")[0]
    commit = space.commit(1, "LR = 1\n", space.head(), "m")
    git(space.folder, "gc", "-q")
    after = space.commit(2, "LR = 2\n", commit, "m")
    assert (len(after), space.read(commit), space.read(after)) == (64, "LR = 1\n", "LR = 2\n")
    assert git(space.folder, "diff", "--name-only", commit, after) == "src/train.py\n"
    git(space.folder, "fsck", "--strict")


def test_a_repository_without_the_file_says_so(toy: Path, tmp_path: Path) -> None:
    (toy / "train.py").unlink()
    space = create(toy, tmp_path / "run")
    with pytest.raises(TargetError, match=r"train\.py is not in the repository"):
        space.read(space.head())


def test_a_damaged_object_is_not_taken(toy: Path, tmp_path: Path) -> None:
    space = create(toy, tmp_path / "run")
    commit = space.commit(1, "LR = 1\n", space.head(), "m")
    path = space.folder / ".git" / "objects" / commit[:2] / commit[2:]
    path.chmod(0o644)
    path.write_bytes(zlib.compress(b"commit 4\0tree"))
    with pytest.raises(TargetError, match=f"object {commit} of .* is damaged"):
        space.read(commit)


def test_locks_that_a_killed_git_left_go_and_the_targets_own_stay(
    toy: Path, tmp_path: Path
) -> None:
    (toy / "uv.lock").write_text("pins")
    space = create(toy, tmp_path / "run")
    space.scratch(space.head(), tmp_path / "s")
    left = [space.folder / ".git" / n for n in ("index.lock", "refs/heads/autoresearch/r1.lock")]
    for lock in left:
        lock.write_text("")
    space.unlock()
    assert not any(lock.exists() for lock in left)
    space.scratch(space.head(), tmp_path / "s")
    assert (tmp_path / "s" / "uv.lock").read_text() == "pins"


def test_an_experiment_cannot_spoil_the_next_ones_copy(toy: Path, tmp_path: Path) -> None:
    space = create(toy, tmp_path / "run")
    space.scratch(space.head(), tmp_path / "s")
    with (tmp_path / "s" / "prepare.py").open("a") as file:
        file.write("spoilt = True\n")
    (tmp_path / "s" / "more.py").write_text("")
    space.scratch(space.head(), tmp_path / "t")
    assert (tmp_path / "t" / "prepare.py").read_text() == "x = 1\n"
    assert not (tmp_path / "t" / "more.py").exists()


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
