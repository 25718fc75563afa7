"""What can go wrong, as a tree.

    AutoresearchError          the work failed: one line says what, where and what to try (exit 1)
    ├── UsageError             the command was wrong (exit 2)
    ├── LedgerError            the run folder cannot be read or written as it is
    ├── TargetError            the target cannot be understood or does not run
    ├── SandboxError           no box for model-written code on this machine
    └── BrainError             the brain cannot be reached, loaded or asked
        ├── ContextOverflow    what would be sent does not fit the brain's window
        └── ServerDown         its server stays down: the run waits and asks again

Everything else is a bug and crashes with its traceback.
"""

import sys
from collections.abc import Callable, Sequence

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""


class AutoresearchError(Exception):
    """The work failed. The message is one line: what, where, what to try next."""

    exit_status = 1


class UsageError(AutoresearchError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_status = 2


class LedgerError(AutoresearchError):
    """A run folder is corrupt, locked, full, or not a run."""


class TargetError(AutoresearchError):
    """A target is malformed, or its baseline does not produce its metric."""


class SandboxError(AutoresearchError):
    """The requested sandbox does not work here."""


class BrainError(AutoresearchError):
    """A brain cannot be loaded, reached, or made to answer."""


class ContextOverflow(BrainError):
    """A prompt is longer than the brain's window; it is never truncated silently."""


class ServerDown(BrainError):
    """A brain's server does not answer, after retries. `after`: seconds it asked to be left."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def choose(what: str, name: str, existing: list[str]) -> str:
    """Return `name` if it is among `existing`, else raise a UsageError that lists them."""
    if name in existing:
        return name
    raise UsageError(f"unknown {what} '{name}'; there are: {', '.join(sorted(existing))}")


def ending(verb: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """How a command ends: the status that `verb(argv)` returns, or that of what stopped it.

    An AutoresearchError is one line on standard error; Ctrl-C is 130 and no traceback.
    """
    try:
        return verb(argv)
    except AutoresearchError as error:
        print(f"autoresearch: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
