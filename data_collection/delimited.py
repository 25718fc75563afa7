"""results.tsv in any of its variations -> cells, every line accounted for.

Source of the format: Karpathy's autoresearch, program.md (five tab-separated columns: commit,
val_bpb, memory_gb, status, description). Seen in the wild and read here: columns in other orders
and numbers, commas, semicolons or a Markdown table, quoted cells, no header, a header that repeats
or changes, newlines inside an unquoted description, prose between rows, a torn last row.
"""

import re
from dataclasses import dataclass

from data_collection import words
from data_collection.rows import Cells, Reading, Unread

KARPATHY = ("commit", "val_bpb", "memory_gb", "status", "description")
_PROSE = re.compile(r"\s*(#|//|---|===|>|\*\*|```)")
_RULE = re.compile(r"[\s|:\-]*-{2,}[\s|:\-]*")
MOST_LINES = 40
"""Lines that one row may span."""


@dataclass(frozen=True)
class Schema:
    """The columns that hold from a header on. `metric`: "" where none looks like one."""

    names: tuple[str, ...]
    metric: str

    @property
    def status(self) -> int | None:
        return next((i for i, name in enumerate(self.names) if name in words.STATUS), None)

    @property
    def open_ended(self) -> bool:
        """Is the last column free text, so that surplus delimiters belong to it?"""
        return self.names[-1] in words.DESCRIPTION


def read(text: str, what: str = "results.tsv") -> Reading:
    """Text of the file -> its cells. Never raises: what is not understood is listed."""
    reading = Reading(what)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    whole = text.endswith(("\n", "\r"))
    delimiter = _delimiter(lines)
    reading.said.append({"\t": "tab-separated", "|": "a Markdown table"}.get(
        delimiter, f"separated by '{delimiter}'"))  # fmt: skip
    schema: Schema | None = None
    seen: set[tuple[str, ...]] = set()
    after_blank, at = True, 0
    while at < len(lines):
        line, number = lines[at], at + 1
        if not line.strip():
            after_blank, at = True, at + 1
            continue
        reading.lines += 1
        head = _header(_split(line, delimiter))
        if head and (schema is None or len(set(head.names) & set(schema.names)) >= 2):
            if schema and head != schema:
                reading.said.append(f"line {number}: another header, {len(head.names)} columns")
            elif head.names in seen:
                reading.said.append(f"line {number}: the header repeats")
            schema, after_blank, at = head, False, at + 1
            seen.add(head.names)
            reading.headers += 1
            continue
        if delimiter == "|" and _RULE.fullmatch(line):
            reading.headers, at = reading.headers + 1, at + 1
            continue
        if schema is None and (guess := _headerless(_split(line, delimiter))):
            schema = guess
            reading.said.append(f"no header: columns read as {', '.join(guess.names)}")
        row, used = _take(lines, at, delimiter, schema) if schema else (None, 1)
        reading.lines += sum(bool(extra.strip()) for extra in lines[at + 1 : at + used])
        reading.continued += sum(bool(extra.strip()) for extra in lines[at + 1 : at + used])
        if row:
            reading.cells.append(row)
        elif schema and _continues(
            line, after_blank, reading, schema, whole or number < len(lines)
        ):
            last = reading.cells[-1]
            last.values[schema.names[-1]] += "\n" + line.strip()
            reading.continued += 1
        else:
            torn = not whole and number == len(lines)
            why = "the file ends inside this row" if torn and delimiter in line else (
                "no header before it" if schema is None else "not a row of this table")  # fmt: skip
            reading.unread.append(Unread(number, line[:200], why))
        after_blank, at = False, at + used
    if reading.continued:
        reading.said.append(f"{reading.continued} lines continue the row before them")
    return reading


def _continues(line: str, after_blank: bool, reading: Reading, schema: Schema, ended: bool) -> bool:
    """Is `line` the rest of the description above it, rather than prose of its own?"""
    if after_blank or not reading.cells or not schema.open_ended or _PROSE.match(line):
        return False
    if reading.unread and reading.unread[-1].line > reading.cells[-1].line:
        return False
    return ended and schema.names[-1] in reading.cells[-1].values


def _delimiter(lines: list[str]) -> str:
    """The one that splits most lines into the same number of cells, four or more, tabs first."""
    best, most = "\t", 0
    for candidate in ("\t", "|", ",", ";"):
        counts: dict[int, int] = {}
        for line in lines[:2000]:
            if (n := len(_split(line, candidate))) >= 3:
                counts[n] = counts.get(n, 0) + 1
        heads = sum(_header(_split(line, candidate)) is not None for line in lines[:50])
        score = max(counts.values(), default=0) + 1000 * min(heads, 1)
        if score > most * 1.01:
            best, most = candidate, score
    return best


def _split(line: str, delimiter: str) -> list[str]:
    """Cells of one physical line; in a quoted cell the delimiter and "" are text."""
    if delimiter == "|":
        line = line.strip().removeprefix("|").removesuffix("|")
    if '"' not in line:
        return [cell.strip() for cell in line.split(delimiter)]
    cells, part = [], ""
    for piece in line.split(delimiter):
        part = f"{part}{delimiter}{piece}" if part else piece
        if not _open(part):
            cells.append(_unquote(part))
            part = ""
    if part:  # never closed: the quote is an ordinary character
        cells.extend(part.split(delimiter))
    return [cell.strip() for cell in cells]


def _open(cell: str) -> bool:
    """Does a quoted cell begin here and not end?"""
    text = cell.strip()
    return text.startswith('"') and (len(text) == 1 or text.count('"') % 2 == 1)


def _unquote(cell: str) -> str:
    text = cell.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text


def _header(cells: list[str]) -> Schema | None:
    """The schema that these cells announce, None: they are no header."""
    names = tuple(words.column(cell) or f"column_{i}" for i, cell in enumerate(cells))
    if len(names) < 3 or len(set(names)) < len(names) or any(map(words.is_number, cells)):
        return None
    roles = sum(
        bool(set(names) & role)
        for role in (words.COMMIT, words.STATUS, words.DESCRIPTION, words.NUMBER)
    )
    if roles < 2 or max(map(len, names)) > 40:
        return None
    return Schema(names, next((name for name in names if not words.is_measure(name)), ""))


def _headerless(cells: list[str]) -> Schema | None:
    """Karpathy's columns, if the cells are in his order: commit, number, ..., status, text."""
    if len(cells) < 4 or not words.is_number(cells[1]) or words.status(cells[-2]) is None:
        return None
    names = KARPATHY if len(cells) == 5 else (
        "commit", "val_bpb", *(f"column_{i}" for i in range(2, len(cells) - 2)),
        "status", "description")  # fmt: skip
    return Schema(names, "val_bpb")


def _take(lines: list[str], at: int, delimiter: str, schema: Schema) -> tuple[Cells | None, int]:
    """The row that begins at line `at`, and how many physical lines it takes."""
    alone = _place(_split(lines[at], delimiter), schema, at + 1)
    if alone and not _dangling(lines[at], delimiter):
        return alone, 1
    joined = lines[at]
    for used in range(2, min(MOST_LINES, len(lines) - at) + 1):
        joined += "\n" + lines[at + used - 1]
        if _dangling(joined, delimiter):
            continue
        if not (row := _place(_split(joined, delimiter), schema, at + 1)):
            continue
        if _place(_split(lines[at + used - 1], delimiter), schema, 0):
            break  # that line is a row of its own
        return row, used
    return alone, 1


def _dangling(text: str, delimiter: str) -> bool:
    """Does `text` end inside a quoted cell?"""
    part = ""
    for piece in text.split(delimiter):
        part = f"{part}{delimiter}{piece}" if part else piece
        if not _open(part):
            part = ""
    return bool(part)


def _place(cells: list[str], schema: Schema, number: int) -> Cells | None:
    """Cells under their columns; by position where the columns do not fit but Karpathy's do."""
    names, status = schema.names, schema.status
    while len(cells) > len(names) and not cells[-1] and not schema.open_ended:
        cells = cells[:-1]
    if len(cells) > len(names) and schema.open_ended:
        surplus = cells[len(names) - 1 :]
        whole = [*cells[: len(names) - 1], "\t".join(surplus)]
    else:
        whole = cells
    if len(whole) <= len(names) and len(whole) >= 3:
        told = status is not None and len(whole) > status and words.status(whole[status])
        if told or (status is None and len(whole) == len(names)):
            return _cells(names, whole, schema.metric, number)
    if len(cells) >= 4 and words.status(cells[-2]) and _scoreless_or_number(cells[1]):
        middle = [f"column_{i}" for i in range(2, len(cells) - 2)]
        note = f"{len(cells)} cells under {len(names)} columns: read in Karpathy's order"
        found = ["commit", schema.metric or "val_bpb", *middle, "status", "description"]
        return _cells(tuple(found), cells, schema.metric or "val_bpb", number, (note,))
    if len(whole) == len(names):
        return _cells(names, whole, schema.metric, number)
    return None


def _scoreless_or_number(cell: str) -> bool:
    try:
        words.number(cell)
    except ValueError:
        return False
    return True


def _cells(
    names: tuple[str, ...], cells: list[str], metric: str, number: int, notes: tuple[str, ...] = ()
) -> Cells:
    padded = [*cells, *[""] * (len(names) - len(cells))]
    return Cells(number, dict(zip(names, padded, strict=True)), metric, inferred=notes)
