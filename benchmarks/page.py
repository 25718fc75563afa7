"""The figures as a Markdown table, put into a page between two marks."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Figure
from loop.errors import UsageError
from loop.files import write_atomic
from loop.trial import Json

TITLES = ("what", "median", "quartiles", "cpu", "n", "goal", "note")


def markdown(
    about: Json, found: dict[str, list[Figure]], lacks: dict[str, str],
    cells: Callable[[Figure], tuple[str, ...]],
) -> str:  # fmt: skip
    """Where and when, a line a figure, and what could not be measured."""
    rows = [
        (f"{name}: {figure.what}", *cells(figure), figure.note)
        for name, figures in found.items()
        for figure in figures
    ]
    lines = [
        "{date}; {processor}, {cores} cores, Linux {kernel}; Python {python}, torch {torch}, "
        "xllamacpp {xllamacpp}; load {load_before} before, {load_after} after.".format(**about),
        "",
        *map(_line, (TITLES, ("---",) * len(TITLES), *rows)),
    ]
    lines += [f"\nNot measured: {name}: {why}" for name, why in lacks.items()]
    return "\n".join(lines)


def insert(path: Path, name: str, text: str) -> None:
    """`text` between the lines `<!-- NAME -->` and `<!-- /NAME -->` of a page. UsageError."""
    marks = [f"<!-- {name} -->\n", f"<!-- /{name} -->\n"]
    try:
        before, rest = path.read_text(encoding="utf-8").split(marks[0])
        after = rest.split(marks[1])[1]
    except (OSError, ValueError, IndexError):
        lines = f"<!-- {name} --> and <!-- /{name} -->"
        raise UsageError(f"--doc: {path} has no lines {lines}; add them") from None
    whole = f"{before}{marks[0]}{text}\n{marks[1]}{after}"
    write_atomic(path, whole.encode())


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
