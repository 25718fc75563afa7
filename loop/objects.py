"""Git's objects, read and written here: a process for each would cost a trial a tenth of a second.

An object is `KIND SIZE\\0BODY`, named by its hash and kept deflated under objects/ by its name; a
tree's body is `MODE NAME\\0HASH` for each entry (Chacon and Straub, Pro Git, 10.2 Git Objects).
What git has packed is read through git.
"""

import hashlib
import os
import time
import zlib
from functools import lru_cache
from pathlib import Path

from loop.errors import TargetError
from loop.git import IDENTITY, git

KEPT = 64  # objects in memory: the incumbent's, which every trial reads, are among them


@lru_cache(maxsize=KEPT)
def read(folder: Path, digest: str, kind: str) -> bytes:
    """Body of the object `digest` of the repository `folder`. Raises TargetError."""
    try:
        data = zlib.decompress(_path(folder, digest).read_bytes())
    except (OSError, zlib.error):
        return git(["cat-file", kind, digest], folder).encode("utf-8", "surrogateescape")
    head, _, body = data.partition(b"\0")
    if head != f"{kind} {len(body)}".encode() or _digest(data, digest) != digest:
        raise TargetError(f"object {digest} of {folder} is damaged; restore it from a copy")
    return body


def write(folder: Path, kind: str, body: bytes, like: str) -> str:
    """Keep an object; its name, hashed as `like` is: SHA-1 or, in newer repositories, SHA-256."""
    data = f"{kind} {len(body)}\0".encode() + body
    digest = _digest(data, like)
    path = _path(folder, digest)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f"tmp_obj_{os.getpid()}")  # a name that `git gc` clears away
        beside.write_bytes(zlib.compress(data, 1))
        beside.chmod(0o444)
        beside.replace(path)
    return digest


def tree(folder: Path, commit: str) -> str:
    """The tree of `commit`."""
    return read(folder, commit, "commit")[5:].partition(b"\n")[0].decode()


def file(folder: Path, root: str, path: str) -> bytes:
    """Content of the file `path` in the tree `root`. Raises TargetError: there is none."""
    name, _, rest = path.partition("/")
    mode, digest, _ = _entry(folder, root, name)
    if rest:
        return file(folder, digest, rest)
    if not mode.startswith(b"100"):
        raise TargetError(f"{path} is not a plain file in the repository {folder}")
    return read(folder, digest, "blob")


def with_file(folder: Path, root: str, path: str, content: bytes) -> str:
    """The tree `root` with other content in its file `path`, which keeps its mode."""
    name, _, rest = path.partition("/")
    _, old, at = _entry(folder, root, name)
    new = with_file(folder, old, rest, content) if rest else write(folder, "blob", content, root)
    body, digest = read(folder, root, "tree"), bytes.fromhex(new)
    return write(folder, "tree", body[:at] + digest + body[at + len(digest) :], root)


def commit(folder: Path, root: str, parent: str, message: str) -> str:
    """Commit the tree `root` upon `parent`."""
    now = int(time.time())
    lines = [f"tree {root}", f"parent {parent}"]
    for who in ("author", "committer"):
        name, email = (IDENTITY[f"GIT_{who.upper()}_{what}"] for what in ("NAME", "EMAIL"))
        lines.append(f"{who} {name} <{email}> {now} +0000")
    text = "\n".join((*lines, "", message))
    return write(folder, "commit", text.encode("utf-8", "surrogateescape"), parent)


def _entry(folder: Path, root: str, name: str) -> tuple[bytes, str, int]:
    """Mode and hash of the entry `name` of the tree `root`, and where in it the hash begins."""
    body, at, size = read(folder, root, "tree"), 0, len(root) // 2
    wanted = name.encode("utf-8", "surrogateescape")
    while at < len(body):
        space, end = body.index(b" ", at), body.index(b"\0", at)
        if body[space + 1 : end] == wanted:
            return body[at:space], body[end + 1 : end + 1 + size].hex(), end + 1
        at = end + 1 + size
    raise TargetError(f"{name} is not in the repository {folder}: commit it there first")


def _path(folder: Path, digest: str) -> Path:
    return folder / ".git" / "objects" / digest[:2] / digest[2:]


def _digest(data: bytes, like: str) -> str:
    kind = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(kind, data, usedforsecurity=False).hexdigest()
