"""A foreign git repository, read and never run.

Its objects are lent to an empty repository of our own (an alternate), so that its configuration,
hooks, filters, attributes and remotes are not even read where objects are. Lost commits that are
still in the object store are found by their hash.
"""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from loop.errors import TargetError
from loop.git import command, environment, git

MOST_BYTES = 800_000
"""A file larger than this is no training script."""


@dataclass(frozen=True)
class Commit:
    """One commit. `when`: its committer's time as ISO text, "" where it has none."""

    sha: str
    parents: tuple[str, ...]
    when: str
    subject: str


def git_folder(source: Path) -> Path | None:
    """The folder with `objects/` of the repository at `source` (work tree or bare), None: none."""
    found = source / ".git"
    if found.is_file() and not found.is_symlink():  # a linked work tree names its repository
        text = found.read_text(encoding="utf-8", errors="replace")
        found = (source / text.partition("gitdir:")[2].strip()).resolve()
        if (found / "commondir").is_file():
            common = (found / "commondir").read_text(encoding="utf-8", errors="replace").strip()
            found = (found / common).resolve()
    for folder in (found, source):
        if (folder / "objects").is_dir() and (folder / "HEAD").exists():
            return folder
    return None


@contextmanager
def open_history(folder: Path) -> Iterator["History"]:
    """The history whose git folder is `folder`. Raises TargetError: it cannot be read."""
    if (folder / "objects").is_symlink():
        raise TargetError(f"{folder / 'objects'} is a symbolic link; copy the repository instead")
    with TemporaryDirectory(prefix="autoresearch-") as place:
        own = Path(place)
        git(["init", "--quiet", "--bare", "--template=", "."], own)
        info = own / "objects" / "info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "alternates").write_text(f"{(folder / 'objects').resolve()}\n")
        if (folder / "shallow").is_file():
            (own / "shallow").write_bytes((folder / "shallow").read_bytes())
        history = History(own, _tips(folder))
        try:
            yield history
        finally:
            history.close()


def origin(folder: Path) -> str:
    """Where the repository came from: the address of `origin` without any name or password."""
    try:
        url = git(["config", "--file", str(folder / "config"), "remote.origin.url"], folder)
    except TargetError:
        return ""
    parts = urlsplit(url.strip())
    if parts.scheme and parts.hostname:
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    return re.sub(r"^[^/@]*@", "", url.strip())


def _tips(folder: Path) -> dict[str, str]:
    """Reference -> commit, HEAD among them. References are read by git, which opens no object."""
    listing = git(["--git-dir=.", "for-each-ref", "--format=%(refname) %(objectname)"], folder)
    tips = dict(line.split(" ", 1) for line in listing.splitlines())
    head = (folder / "HEAD").read_text(encoding="utf-8", errors="replace").strip()
    sha = tips.get(head.removeprefix("ref:").strip(), head)
    return {"HEAD": sha, **tips} if re.fullmatch(r"[0-9a-f]{40,64}", sha) else tips


class History:
    """Objects of a repository, by name. `tips`: reference -> commit."""

    def __init__(self, repository: Path, tips: dict[str, str]) -> None:
        self._repository, self.tips = repository, tips
        self._check = self._serve("--batch-check")
        self._read = self._serve("--batch")
        self.text = lru_cache(maxsize=256)(self._text)
        self.commit = lru_cache(maxsize=4096)(self._commit)

    def close(self) -> None:
        for process in (self._check, self._read):
            assert process.stdin and process.stdout
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def line(self, sha: str, most: int = 100_000) -> Iterator[Commit]:
        """The first-parent line from `sha` back, itself first, as far as it is there."""
        for _ in range(most):
            found = self.commit(sha)
            if found is None:
                return
            yield found
            if not found.parents:
                return
            sha = found.parents[0]

    def paths(self, sha: str) -> list[str]:
        """Every file of a commit; none where its tree is missing."""
        try:
            return git(["ls-tree", "-r", "--name-only", "-z", sha], self._repository).split("\0")
        except TargetError:
            return []

    def changed(self, shas: Sequence[str]) -> dict[str, list[str]]:
        """Commit -> the files it changes against its first parent; {} where objects are missing."""
        options = ["--stdin", "-r", "--root", "--name-only", "--no-renames", "-m", "--first-parent"]
        try:
            said = git(["diff-tree", *options], self._repository, "".join(f"{s}\n" for s in shas))
        except TargetError:
            return {}
        found: dict[str, list[str]] = {}
        current: list[str] = []
        for line in said.splitlines():
            sha = line.split(" ")[0]
            if re.fullmatch(r"[0-9a-f]{40,64}", sha):
                current = found.setdefault(sha, [])
            elif line:
                current.append(line)
        return found

    def _text(self, sha: str, path: str) -> str | None:
        """The file `path` of a commit, None: missing, too large, a link or not UTF-8."""
        if "\n" in path:
            return None
        data = self._content(f"{sha}:{path}", "blob")
        try:
            return None if data is None else data.decode("utf-8")
        except UnicodeDecodeError:
            return None

    def _commit(self, name: str) -> Commit | None:
        """By a full or short hash, None: not there, ambiguous, or no hash."""
        if not re.fullmatch(r"[0-9a-f]{6,64}", name):
            return None
        sha = self._describe(f"{name}^{{commit}}")[0]
        data = self._content(sha, "commit") if sha else None
        if data is None:
            return None
        head, _, message = data.decode("utf-8", "replace").partition("\n\n")
        parents = tuple(re.findall(r"^parent ([0-9a-f]+)$", head, re.MULTILINE))
        time = re.search(r"^committer .*> (\d{1,11}) ", head, re.MULTILINE)
        when = datetime.fromtimestamp(int(time[1]), UTC).isoformat() if time else ""
        known = tuple(parent for parent in parents if self._describe(parent)[0])
        return Commit(sha, known, when, message.strip().split("\n")[0][:200])

    def _describe(self, name: str) -> tuple[str, str, int]:
        """(sha, type, bytes) of an object, ("", "", 0): there is no such object."""
        answer = self._ask(self._check, name).split()
        if len(answer) == 3 and answer[2].isdigit():
            return answer[0], answer[1], int(answer[2])
        return "", "", 0

    def _content(self, name: str, kind: str) -> bytes | None:
        sha, found, size = self._describe(name)
        if found != kind or size > MOST_BYTES:
            return None
        self._ask(self._read, sha)
        assert self._read.stdout
        return self._read.stdout.read(size + 1)[:-1]

    def _ask(self, process: subprocess.Popen[bytes], name: str) -> str:
        assert process.stdin and process.stdout
        try:
            process.stdin.write(name.encode() + b"\n")
            process.stdin.flush()
            return process.stdout.readline().decode("utf-8", "replace")
        except BrokenPipeError:
            raise TargetError(
                "git cat-file died: the repository is damaged; try git fsck"
            ) from None

    def _serve(self, how: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(["cat-file", how]),
            cwd=self._repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
