"""Run git with our configuration alone.

A foreign repository is data: its hooks, filters, fsmonitor, attributes and submodules do not run,
nothing is fetched, and neither the user's nor the system's configuration is read.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from loop.errors import TargetError

SAFE = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.autocrlf": "false",
    "submodule.recurse": "false",
    "protocol.ext.allow": "never",
    "gc.auto": "0",
    "safe.directory": "*",
}
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "autoresearch"), ("EMAIL", "autoresearch@localhost"))
}


def command(args: Sequence[str]) -> list[str]:
    """`git ARGS` with the safe configuration, as an argument list."""
    config = [part for key, value in SAFE.items() for part in ("-c", f"{key}={value}")]
    return ["git", *config, *args]


def environment() -> dict[str, str]:
    """The cleared environment that git is given."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_DEFAULT_REF_FORMAT": "files",  # as loop.workspace writes them
        "LC_ALL": "C.UTF-8",
        **IDENTITY,
    }


def git(
    args: Sequence[str], cwd: Path, text: str | None = None, env: dict[str, str] | None = None
) -> str:
    """Standard output of `git ARGS` in `cwd`; bytes that are not UTF-8 as surrogate escapes.

    `text` goes to its standard input, `env` on top of a cleared environment. Raises TargetError
    with git's own last line.
    """
    try:
        done = subprocess.run(
            command(args),
            cwd=cwd,
            input=None if text is None else text.encode("utf-8", "surrogateescape"),
            capture_output=True,
            env=environment() | (env or {}),
        )
    except OSError as error:  # no git, or no such folder
        raise TargetError(f"cannot run git in {cwd}: {error.strerror}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        verb = next(part for part in args if not part.startswith("-"))
        raise TargetError(f"git {verb} failed in {cwd}: {said[-1]}")
    return done.stdout.decode("utf-8", "surrogateescape")
