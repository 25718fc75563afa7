"""A reply -> a new file, or Rejected(reason). Never raises, whatever the reply.

Three formats, tried in this order:
- SEARCH/REPLACE blocks (the markers of aider's edit blocks): each SEARCH must match exactly once;
  a second try ignores indentation and trailing blanks;
- a fenced whole file: the longest fenced block that parses and has at least half the file's lines;
- `KNOB = value` lines, in a fence or not.
"""

import ast
import difflib
import hashlib
import re
from dataclasses import dataclass

from loop import knobs
from loop.trial import Edit, KnobChange, Reason, Rejected, Reply

MAX_FILE_CHARS = 200_000
MAX_REPLY_CHARS = 80_000

# Each looks at one line or one tag: a pattern that spans lines can be made to take hours.
_SEARCH = re.compile(r"[ \t]*<{5,9}[ \t]*SEARCH")
_DIVIDER = re.compile(r"[ \t]*={5,9}[ \t]*\n")
_REPLACE = re.compile(r"[ \t]*>{5,9}[ \t]*REPLACE")
_KNOB = re.compile(r"^[ \t>*`-]*([A-Z][A-Z0-9_]*)[ \t]*=(?!=)([^\n]*)$", re.MULTILINE)
_THINK = re.compile(r"(</?think>)", re.IGNORECASE)


@dataclass(frozen=True)
class Edited:
    """The new file and how it came from the old one."""

    source: str
    edit: Edit


def usable(reply: Reply) -> str | Rejected:
    """The text of `reply` that may hold an answer, or why there is none."""
    if reply.finish == "tool_call":
        return Rejected(Reason.TOOL_CALL, "the reply is a tool call; none was offered")
    text = _without_thoughts(reply.text)
    if not text.strip():
        if reply.reasoning.strip() or reply.text.strip():
            return Rejected(Reason.ONLY_REASONING, "the reply holds reasoning and no answer")
        return Rejected(Reason.EMPTY_REPLY, "the reply is empty")
    if reply.finish == "length":
        return Rejected(Reason.CUT_SHORT, "the reply was cut at the token limit")
    return text


def apply(
    answer: str, source: str, name: str = "train.py", fixed: tuple[str, ...] = ()
) -> Edited | Rejected:
    """Apply the edit in `answer` to `source`, the text of the file `name`.

    `fixed`: names of files that must not be edited. The result parses and differs from `source`
    in more than comments and layout.
    """
    if len(answer) > MAX_REPLY_CHARS:
        return Rejected(Reason.TOO_LARGE, f"a reply of {len(answer):,} characters")
    answer = answer.replace("\r\n", "\n")
    if offending := _names_fixed_file(answer, name, fixed):
        return Rejected(Reason.FIXED_FILE, f"{offending} is fixed; only {name} may change")
    crlf = 0 < source.count("\r\n") == source.count("\n")
    plain = source.replace("\r\n", "\n") if crlf else source
    if blocks := _blocks(answer):
        new = _search_replace(plain, blocks)
    elif whole := _whole_file(answer, plain):
        new = whole
    else:
        new = _knob_lines(answer, plain)
    if isinstance(new, Rejected):
        return new
    return compare(source, new.replace("\n", "\r\n") if crlf else new, name)


def compare(source: str, new: str, name: str = "train.py") -> Edited | Rejected:
    """The canonical edit from `source` to `new`, or why `new` is not worth a run."""
    if len(new) > MAX_FILE_CHARS:
        return Rejected(Reason.TOO_LARGE, f"{len(new):,} characters; at most {MAX_FILE_CHARS:,}")
    digest = code_hash(new, name)
    if isinstance(digest, Rejected):
        return digest
    if digest == code_hash(source, name):
        return Rejected(Reason.NO_OP, "the edit changes nothing but comments or layout")
    edit = Edit(unified(source, new, name), _knob_changes(source, new), sha256(new), digest)
    return Edited(new, edit)


def code_hash(source: str, name: str = "train.py") -> str | Rejected:
    """sha256 of the syntax tree (comments and layout aside), of the text for other languages."""
    if not name.endswith(".py"):
        return sha256(source)
    try:
        return sha256(ast.dump(ast.parse(source)))
    except SyntaxError as error:
        return Rejected(Reason.SYNTAX_ERROR, f"line {error.lineno}: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:
        return Rejected(Reason.SYNTAX_ERROR, str(error) or type(error).__name__)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def unified(old: str, new: str, name: str) -> str:
    """The unified diff of two texts of the file `name`, as `git diff` labels it."""
    lines = difflib.unified_diff(_lines(old), _lines(new), f"a/{name}", f"b/{name}")
    return "".join(
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines
    )


def _lines(text: str) -> list[str]:
    """Lines with their ends, as git counts them: splitlines() also breaks at form feeds."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _without_thoughts(text: str) -> str:
    """`text` without its <think> spans. One may lack its end (cut short) or its beginning (which
    some chat templates write before the reply starts)."""
    kept: list[str] = []
    thinking = False
    for part in _THINK.split(text):
        if part.lower() == "<think>":
            thinking = True
        elif part.lower() == "</think>":
            if not thinking:
                kept.clear()
            thinking = False
        elif not thinking:
            kept.append(part)
    return "".join(kept)


def _blocks(answer: str) -> list[tuple[str, str]]:
    """(search, replace) of every complete SEARCH/REPLACE block."""
    found: list[tuple[str, str]] = []
    search: list[str] = []
    replace: list[str] = []
    part: list[str] | None = None
    for line in _lines(answer):
        if _SEARCH.match(line):
            search, replace = [], []
            part = search
        elif part is search and _DIVIDER.fullmatch(line):
            part = replace
        elif part is replace and _REPLACE.match(line):
            found.append(("".join(search), "".join(replace)))
            part = None
        elif part is not None:
            part.append(line)
    return found


def _fenced(answer: str) -> list[str]:
    """The bodies of the closed ``` blocks."""
    found: list[str] = []
    body: list[str] | None = None
    for line in _lines(answer):
        mark = line.strip()
        if body is None:
            body = [] if mark.startswith("```") and "`" not in mark[3:] else None
        elif mark == "```":
            found.append("".join(body))
            body = None
        else:
            body.append(line)
    return found


def _search_replace(source: str, blocks: list[tuple[str, str]]) -> str | Rejected:
    for search, replace in blocks:
        if not search.strip():
            return Rejected(Reason.SEARCH_NOT_FOUND, "an empty SEARCH matches nothing")
        count = source.count(search)
        if count == 1:
            source = source.replace(search, replace)
            continue
        if count > 1:
            return Rejected(Reason.SEARCH_AMBIGUOUS, f"{_quote(search)} matches {count} times")
        changed = _replace_loosely(source, search, replace)
        if isinstance(changed, Rejected):
            return changed
        source = changed
    return source


def _replace_loosely(source: str, search: str, replace: str) -> str | Rejected:
    """The second try: lines are compared without indentation and trailing blanks."""
    lines = _lines(source)
    wanted = [line.strip() for line in _lines(search.strip("\n"))]
    bare = [line.strip() for line in lines]
    starts = [
        at
        for at in range(len(bare) - len(wanted) + 1)
        if bare[at] == wanted[0] and bare[at : at + len(wanted)] == wanted
    ]
    if not starts:
        return Rejected(Reason.SEARCH_NOT_FOUND, f"{_quote(search)} is not in the file")
    if len(starts) > 1:
        return Rejected(Reason.SEARCH_AMBIGUOUS, f"{_quote(search)} matches {len(starts)} times")
    at = starts[0]
    new = _reindent(replace, search.strip("\n").split("\n")[0], lines[at])
    return "".join([*lines[:at], new, *lines[at + len(wanted) :]])


def _reindent(text: str, written: str, found: str) -> str:
    """Shift `text` by as much as the line `found` is indented more than it was `written`."""
    shift = _indent(found) - _indent(written)
    out = []
    for line in text.removesuffix("\n").split("\n") if text else ():
        if line.strip() and shift > 0:
            line = " " * shift + line
        elif shift < 0:
            line = line[min(-shift, _indent(line)) :]
        out.append(line + "\n")
    return "".join(out)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _whole_file(answer: str, source: str) -> str | None:
    least = max(1, len(source.splitlines()) // 2)
    blocks = [body for body in _fenced(answer) if len(body.splitlines()) >= least]
    for body in sorted(blocks, key=len, reverse=True):
        if not isinstance(code_hash(body), Rejected):
            return body
    return max(blocks, key=len) if blocks else None


def _knob_lines(answer: str, source: str) -> str | Rejected:
    try:
        present = knobs.read(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        present = {}
    wanted: dict[str, str] = {}
    for name, text in _KNOB.findall(answer):
        if name not in present:
            if len(name) > 2:
                return Rejected(Reason.UNKNOWN_KNOB, f"the file has no knob {name[:60]}")
            continue
        text = text.strip(" \t`")
        value = _literal_text(text, present[name])
        if value is None:
            return Rejected(Reason.BAD_VALUE, f"{name} = {text[:60]} is not a value for it")
        if wanted.setdefault(name, value) != value:
            return Rejected(Reason.SEVERAL_EDITS, f"{name} is given two values")
    if not wanted:
        return Rejected(Reason.NO_EDIT, "no edit was found in the reply")
    return knobs.write(source, wanted)


def _literal_text(text: str, old: knobs.Value) -> str | None:
    """The literal that `text` begins with, comments and chatter after it cut off."""
    for candidate in (text.split("#")[0], text, text.split(" ")[0].rstrip(",.;`*")):
        try:
            value = knobs.literal(candidate)
        except ValueError:
            continue
        return candidate.strip() if knobs.fits(old, value) else None
    return None


def _knob_changes(source: str, new: str) -> tuple[KnobChange, ...]:
    """The knob changes from `source` to `new`, empty if anything else changed too."""
    try:
        before, after = knobs.read(source), knobs.read(new)
        changed = {k: repr(v) for k, v in after.items() if k in before and before[k] != v}
        if sha256(ast.dump(ast.parse(knobs.write(source, changed)))) != sha256(
            ast.dump(ast.parse(knobs.write(new, changed)))
        ):
            return ()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    return tuple(KnobChange(name, repr(before[name]), text) for name, text in changed.items())


def _names_fixed_file(answer: str, name: str, fixed: tuple[str, ...]) -> str | None:
    """A fixed file that a block of `answer` says it edits (in its fence, or the line before it)."""
    for other in fixed:
        if other == name:
            continue
        path = re.escape(other)
        head = rf"^(?:[#*` \t]*|(?:---|\+\+\+) [ab]/)(?:[Ff]ile:?\s*)?`?{path}`?\**:?[ \t]*\n"
        block = r"(?=[ \t]*\n?[ \t]*(?:```|<{5,9}|\+\+\+|@@))"
        if re.search(rf"^[ \t]*```[^\n]*\b{path}\b", answer, re.MULTILINE) or re.search(
            head + block, answer, re.MULTILINE
        ):
            return other
    return None


def _quote(text: str) -> str:
    first = text.strip().splitlines()[0]
    return f"SEARCH '{first[:60]}'"
