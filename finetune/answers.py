"""What can be told of an answer from its prompt alone: could the loop use it, and, for a menu, what
would the same answer be for each of the other moves?

Formats: the prompts and answers of `menu`, `pointwise` and `bare` as rendered rows hold them. The
rates of valid edits that count are `eval`'s, by the loop's own parser; these here cost nothing and
say whether an adapter is worth measuring.
"""

import json
import re
from typing import Any

Messages = list[dict[str, Any]]
_MOVE = re.compile(r"^- ((\w+) = (.+))$", re.MULTILINE)
_SETTING = re.compile(r"^(\w+) = (.+)$", re.MULTILINE)
_KNOB_LINE = re.compile(r"^\s*([A-Z][A-Z0-9_]*) = (\S.*)$", re.MULTILINE)
_SEARCH = re.compile(r"^<{7} SEARCH\n(.*?\n)={7}\n.*?^>{7} REPLACE", re.MULTILINE | re.DOTALL)
VERDICTS = ("Yes", "No")
_OFFER, _HISTORY = "\nPossible changes:\n", "\nTried so far "
_TRIED = re.compile(r"^\d+\. (\w+): .+? -> (.+?): .*$", re.MULTILINE)
_STANDS = re.compile(r", (?:keep|baseline)\n")


def moves(prompt: Messages) -> list[str]:
    """The moves that a menu's prompt offers, in order, without those that it says were tried since
    the incumbent was kept."""
    _, _, offered = prompt[-1]["content"].rpartition(_OFFER)
    offered, _, history = offered.partition(_HISTORY)
    tried = {f"{name} = {new}" for name, new in _TRIED.findall(_STANDS.split(history)[-1])}
    return [found[1] for found in _MOVE.finditer(offered) if found[1] not in tried]


def valid(strategy: str, prompt: Messages, answer: str) -> bool:
    """Could the loop use this answer to this prompt?"""
    if strategy == "menu":
        parsed = _parsed(answer)
        return parsed is not None and parsed[1] in moves(prompt)
    if strategy == "pointwise":
        return answer.strip().rstrip(".").lower() in map(str.lower, VERDICTS)
    shown = "\n".join(message["content"] for message in prompt)
    if blocks := _SEARCH.findall(answer):
        return all(shown.count(block) >= 1 for block in blocks)
    knobs = _KNOB_LINE.findall(answer)
    return bool(knobs) and all(
        (old := re.search(rf"^{name} = (.+)$", shown, re.MULTILINE)) and old[1].strip() != new
        for name, new in knobs
    )


def candidates(prompt: Messages, answer: str) -> list[str] | None:
    """`answer` said of every move of the menu, the given one first.

    None: it is not a menu's answer, or its reason is not only about its own move, so that it cannot
    be said of another.
    """
    parsed = _parsed(answer)
    offered = moves(prompt)
    if parsed is None or parsed[1] not in offered:
        return None
    reason, move = parsed
    now = dict(_SETTING.findall(prompt[-1]["content"].partition(_OFFER)[0]))
    told = {text: _change(text, now) for text in offered}
    if told[move] not in reason or _said(reason, move) != answer:
        return None
    others = [text for text in offered if text != move]
    return [answer, *(_said(reason.replace(told[move], told[text]), text) for text in others)]


def _parsed(answer: str) -> tuple[str, str] | None:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {"reason", "move"}:
        return None
    return str(found["reason"]), str(found["move"])


def _change(move: str, now: dict[str, str]) -> str:
    name, _, new = move.partition(" = ")
    return f"{name}: {now.get(name, '?')} -> {new}"


def _said(reason: str, move: str) -> str:
    return json.dumps({"reason": reason, "move": move}, ensure_ascii=False)
