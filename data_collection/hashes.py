"""When are two trials the same? Hashes of the state, of the change, and of the change loosely."""

import ast
import hashlib
import io
import re
import tokenize

from loop.trial import KnobChange, Trial

SIZE = 16


def digest(*parts: str) -> bytes:
    """SIZE bytes that identify the texts `parts` in this order."""
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).digest()[:SIZE]


def state(trial: Trial) -> bytes:
    """Where a trial started: its file. A row alone has a state of its own."""
    if trial.context.file_sha256:
        return digest("file", trial.context.file_sha256)
    return digest("alone", change(trial).hex())


def change(trial: Trial) -> bytes:
    """What it tried, exactly: the code that it led to, or what it answered in vain.

    A row alone is known by its words and its score, so that a log imported twice is found.
    """
    if trial.proposal.edit is not None:
        return digest("code", trial.proposal.edit.code_hash)
    replies = [reply.text for call in trial.proposal.calls for reply in call.replies]
    if replies:
        return digest("reply", *replies)
    metric = getattr(trial.outcome, "metric", None)
    score = "" if metric is None else repr(metric.value)
    return digest("row", idea(trial), score, repr(trial.proposal.notes.get("hash", "")))


def alone(trial: Trial) -> bool:
    """Is nothing known of it but its row: no code and no reply?"""
    return trial.proposal.edit is None and not any(c.replies for c in trial.proposal.calls)


def near(trial: Trial) -> bytes:
    """What it tried, loosely: knobs to two digits, or the changed lines without layout, comments
    and the order of hunks."""
    edit = trial.proposal.edit
    if edit is None:
        return change(trial)
    if edit.knobs:
        return digest("knobs", *sorted(f"{c.knob}={_rounded(c.new)}" for c in edit.knobs))
    lines = [
        f"{line[0]}{_bare(line[1:])}"
        for line in edit.diff.split("\n")
        if line[:1] in "+-" and line[:3] not in ("+++", "---") and _bare(line[1:])
    ]
    return digest("lines", *sorted(lines)) if lines else change(trial)


def idea(trial: Trial) -> str:
    """What it tried, as words that repeat: the knobs and their direction, or the description's
    first words."""
    edit = trial.proposal.edit
    if edit is not None and edit.knobs:
        return ", ".join(sorted(f"{c.knob} {_way(c)}" for c in edit.knobs)[:4])
    words = re.findall(r"[a-z_][a-z_0-9]*", trial.proposal.description.lower())
    return " ".join(words[:6])


def _way(change: KnobChange) -> str:
    try:
        old, new = ast.literal_eval(change.old), ast.literal_eval(change.new)
        return "up" if new > old else "down"
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return f"to {change.new[:20]}"


def _rounded(text: str) -> str:
    try:
        return f"{float(text):.2g}"
    except ValueError:
        return text


def _bare(line: str) -> str:
    """A line of Python without layout and comment; any other line without blanks."""
    try:
        tokens = tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline)
        return " ".join(t.string for t in tokens if t.type not in _LAYOUT and t.string.strip())
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return "".join(line.split("#")[0].split())


_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
