"""What a row answers: the reply as it came, or its edit written in the arm's own language.

A foreign description is written after the result ("0.9 is too aggressive"), so it never becomes
part of an answer.
"""

import difflib
import json
import re

from data_collection.prompts import Prompt, Standing
from loop import edit, knobs
from loop.edit import Edited, sha256
from loop.moves import Move
from loop.strategies.menu import REASON_CHARS, chosen
from loop.trial import Rejected

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")


def completion(strategy: str, standing: Standing, prompt: Prompt) -> str | None:
    """The answer text; None: this row has none that the strategy could have given.

    A reply to this strategy's own, unrepaired question is given as it came; anything else is
    written anew from the canonical edit, and checked to lead to the same code.
    """
    trial = standing.trial
    calls = trial.proposal.calls
    if trial.context.strategy == strategy and calls and calls[0].replies:
        text = calls[0].replies[0].text
        if isinstance(trial.outcome, Rejected):
            return text or None  # a repair that failed as well does not redeem it
        if len(calls) == 1 and (strategy == "bare" or _offered(text, prompt)):
            return text
    if trial.proposal.edit is None:
        return None
    return _choice(standing, prompt) if strategy == "menu" else written(standing)


def _offered(text: str, prompt: Prompt) -> bool:
    return not isinstance(chosen(text, list(prompt.moves)), Rejected)


def _choice(standing: Standing, prompt: Prompt) -> str | None:
    """The move as the menu's JSON; its reason says what it changes, all that is known before."""
    change = standing.trial.proposal.edit
    if change is None or len(change.knobs) != 1:
        return None
    name, new = change.knobs[0].knob, knobs.literal(change.knobs[0].new)
    move = next((m for m in prompt.moves if m.knob == name and m.new == new), None)
    if move is None:
        return None
    return said(move)


def said(move: Move) -> str:
    """A move as the answer of a menu, in the words of every answer that is written anew."""
    reason = f"Try {move.description}."[:REASON_CHARS]
    return json.dumps({"reason": reason, "move": move.text}, ensure_ascii=False)


def written(standing: Standing) -> str | None:
    """The edit as `KNOB = value` lines or SEARCH/REPLACE blocks that give the very same code."""
    change, state = standing.trial.proposal.edit, standing.state
    assert change is not None
    if change.knobs:
        text = "\n".join(f"{c.knob} = {c.new}" for c in change.knobs)
    else:
        new = patched(state.source, change.diff)
        if new is None or sha256(new) != change.file_sha256:
            return None
        text = blocks(state.source, new)
    edited = edit.apply(text, state.source, state.target.editable, state.target.fixed)
    same = isinstance(edited, Edited) and edited.edit.code_hash == change.code_hash
    return text if same else None


def patched(source: str, diff: str) -> str | None:
    """`source` after the unified diff, None: the diff does not belong to it."""
    old, new, at = _LINES.findall(source), [], 0
    lines = _LINES.findall(diff)
    begun = False
    for index, line in enumerate(lines):
        begun = begun or line.startswith("@@")
        if line.startswith("\\") or not begun:
            continue
        text = line[1:]
        if index + 1 < len(lines) and lines[index + 1].startswith("\\"):
            text = text.removesuffix("\n")
        if match := _HUNK.match(line):
            start = int(match[1]) - (0 if match[2] == "0" else 1)
            new += old[at:start]
            at = start
        elif line.startswith("+"):
            new.append(text)
        elif line[0] in " -":
            if at >= len(old) or old[at] != text:
                return None
            if line[0] == " ":
                new.append(text)
            at += 1
    return "".join(new + old[at:])


def blocks(old: str, new: str) -> str:
    """SEARCH/REPLACE blocks from `old` to `new`, each SEARCH as long as it takes to be unique."""
    before, after = _LINES.findall(old), _LINES.findall(new)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    spans: list[list[int]] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        i1, i2, j1, j2 = _unique(before, after, old, i1, i2, j1, j2)
        if spans and i1 <= spans[-1][1]:
            spans[-1][1], spans[-1][3] = max(i2, spans[-1][1]), max(j2, spans[-1][3])
        else:
            spans.append([i1, i2, j1, j2])
    return "\n".join(
        "<<<<<<< SEARCH\n" + _ended(before[i1:i2]) + "=======\n" + _ended(after[j1:j2])
        + ">>>>>>> REPLACE"
        for i1, i2, j1, j2 in spans
    )  # fmt: skip


def _unique(
    before: list[str], after: list[str], old: str, i1: int, i2: int, j1: int, j2: int
) -> tuple[int, int, int, int]:
    """Widen by a line above and below until the old lines stand once in the file."""
    while (i1 > 0 or i2 < len(before)) and (
        not "".join(before[i1:i2]).strip() or old.count("".join(before[i1:i2])) != 1
    ):
        if i1 > 0 and j1 > 0:
            i1, j1 = i1 - 1, j1 - 1
        if i2 < len(before) and j2 < len(after):
            i2, j2 = i2 + 1, j2 + 1
        elif i1 == 0:
            break
    return i1, i2, j1, j2


def _ended(lines: list[str]) -> str:
    text = "".join(lines)
    return text if not text or text.endswith("\n") else text + "\n"
