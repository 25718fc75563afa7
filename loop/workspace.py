"""Git for a run: `work/`, a clone of the target in which the incumbent's branch moves.

Nothing is ever checked out over a running experiment: a trial is committed by its objects, kept
alive under `refs/trials/<n>`, and run in a scratch copy of its own. Kept commits move the branch
`autoresearch/<run>`. A foreign repository is data: its hooks, filters, fsmonitor and submodules do
not run, and no configuration but ours is read.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from loop import objects
from loop.errors import TargetError
from loop.files import remove
from loop.git import git


@dataclass(frozen=True)
class Workspace:
    """The git repository of a run. `editable`: path of the file that trials change."""

    folder: Path
    run: str
    editable: str
    _templates: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def create(cls, source: Path, folder: Path, run: str, editable: str) -> tuple[Self, str]:
        """Clone or copy the target `source` into `folder`; also say in a phrase which.

        A folder that is a git work tree of its own is cloned with its history and must be clean;
        any other is copied without what git would not track, and becomes a first commit. Raises
        TargetError when git is absent or the tree is dirty.
        """
        if shutil.which("git") is None:
            raise TargetError("git is not on PATH; install git (2.25 or newer)")
        space = cls(folder, run, editable)
        said = space._clone(source) if (source / ".git").exists() else space._copy(source)
        space._git("update-ref", space.branch, "HEAD")
        space._git("symbolic-ref", "HEAD", space.branch)
        space._git("reset", "--quiet", "--hard")
        return space, said

    @property
    def branch(self) -> str:
        return f"refs/heads/autoresearch/{self.run}"

    def unlock(self) -> None:
        """Remove the locks that a killed process left; only one that holds the run may do so."""
        inner = self.folder / ".git"
        for lock in (*inner.glob("*.lock"), *(inner / "refs").rglob("*.lock")):
            lock.unlink(missing_ok=True)

    def head(self) -> str:
        """The incumbent's commit."""
        return self._git("rev-parse", self.branch).strip()

    def read(self, commit: str) -> str:
        """The editable file as it is in `commit`; bytes not UTF-8 as surrogate escapes."""
        return self._content(commit).decode("utf-8", "surrogateescape")

    def commit(self, trial: int, source: str, parent: str, message: str) -> str:
        """Commit `parent` with `source` as its editable file, under refs/trials/<trial>."""
        content = source.encode("utf-8", "surrogateescape")
        base = objects.tree(self.folder, parent)
        root = objects.with_file(self.folder, base, self.editable, content)
        commit = objects.commit(self.folder, root, parent, message)
        self.remember(trial, commit)
        return commit

    def remember(self, trial: int, commit: str) -> None:
        """Keep `commit` alive as the one of `trial`."""
        ref = self.folder / ".git" / "refs" / "trials" / str(trial)
        ref.parent.mkdir(exist_ok=True)
        beside = ref.with_name(f"{trial}.lock")
        beside.write_text(f"{commit}\n")
        beside.replace(ref)

    def advance(self, commit: str) -> None:
        """Make `commit` the incumbent: move the branch, and `work/` with it."""
        self._git("update-ref", self.branch, commit)
        self._git("reset", "--quiet", "--hard", self.branch)

    def scratch(self, commit: str, folder: Path) -> None:
        """Write the files of `commit` into the new folder `folder`, without a .git."""
        remove(folder)
        shutil.copytree(self._template(commit), folder, symlinks=True)
        (folder / self.editable).write_bytes(self._content(commit))

    def _content(self, commit: str) -> bytes:
        return objects.file(self.folder, objects.tree(self.folder, commit), self.editable)

    def _template(self, commit: str) -> Path:
        """A folder with the files of `commit`, of which only the editable one may be another's.

        Checked out once in a process: what a trial changes of the target is that one file.
        """
        root = objects.tree(self.folder, commit)
        rest = objects.with_file(self.folder, root, self.editable, b"")
        template = self.folder.absolute() / ".git" / "scratch" / rest
        if rest not in self._templates:
            remove(template)
            template.mkdir(parents=True)
            index = {"GIT_INDEX_FILE": str(template.with_suffix(".index"))}
            self._git("read-tree", commit, env=index)
            self._git("checkout-index", "--all", "--force", f"--prefix={template}/", env=index)
            self._templates.add(rest)
        return template

    def _clone(self, source: Path) -> str:
        options = ["--quiet", "--no-hardlinks", "--no-checkout", "--no-recurse-submodules"]
        # The other end of the clone forgets our configuration, and with it whom to trust.
        options += ["--template=", "--upload-pack=git -c safe.directory=* upload-pack"]
        places = [str(source.absolute()), str(self.folder.absolute())]
        git(["clone", *options, *places], source)
        # Compared through our own .git: the source's configuration may name filters to run.
        self._git("read-tree", "HEAD")
        status = self._git(
            f"--work-tree={source.absolute()}", "status", "--porcelain", "--untracked-files=no",
            "--ignore-submodules=all",
        )  # fmt: skip
        if status.strip():
            raise TargetError(
                f"{source} has uncommitted changes ({status.splitlines()[0][3:]}, ...); commit or "
                "stash them, so that the baseline is something you can return to"
            )
        return f"cloned {source} at {self._git('rev-parse', '--short', 'HEAD').strip()}"

    def _copy(self, source: Path) -> str:
        self.folder.mkdir(parents=True)
        run = self.folder.parent.resolve()  # which may lie inside the source
        try:
            shutil.copytree(
                source, self.folder, dirs_exist_ok=True,
                ignore=lambda folder, names: [n for n in names if _left_out(Path(folder, n), run)],
            )  # fmt: skip
        except OSError as error:  # shutil.Error too: it lists one reason a file
            reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
            raise TargetError(f"cannot copy {source}: {reason}") from None
        self._git("init", "--quiet", "--template=")
        self._git("add", "--all", "--force")
        self._git("commit", "--quiet", "-m", f"target {source.name} as found")
        return f"copied {source} (no git repository of its own)"

    def _git(self, *args: str, text: str | None = None, env: dict[str, str] | None = None) -> str:
        return git(args, self.folder, text, env)


_LEFT_OUT = (".git", ".venv", "venv", "__pycache__", "node_modules", "results.tsv", "run.log")


def _left_out(path: Path, run: Path) -> bool:
    """Not code: caches, links, pipes and sockets, this run, and earlier runs kept in the folder."""
    if path.name in _LEFT_OUT or path.is_symlink() or path.resolve() == run:
        return True
    return (path / "ledger.jsonl").exists() if path.is_dir() else not path.is_file()
