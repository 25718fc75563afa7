"""run.log, what a trainer printed -> cells: one row for each summary block.

Source of the format: Karpathy's autoresearch, train.py (a line `---`, then lines `name: value`,
among them `val_bpb`). A log alone tells no status and no commit.
"""

import re

from data_collection import words
from data_collection.rows import Cells, Reading

_LINE = re.compile(r"^([A-Za-z_][\w]*):\s+([-+]?[\d.]+(?:[eE][-+]?\d+)?|nan|inf|-inf)\s*$")


def read(text: str) -> Reading:
    """Text of the log -> its cells; lines outside a summary are training output, not rows."""
    reading = Reading("run.log")
    block: dict[str, str] = {}
    begun = 0
    for number, line in enumerate([*text.split("\n"), "---"], 1):
        match = _LINE.match(line)
        if match:
            begun = begun or number
            block[words.column(match[1])] = match[2]
        elif line.strip() == "---":
            _close(block, begun, reading)
            block, begun = {}, 0
    reading.lines = len(reading.cells)
    return reading


def _close(block: dict[str, str], begun: int, reading: Reading) -> None:
    metric = next((name for name in block if not words.is_measure(name)), "")
    if metric:
        values = {**block, "description": "baseline" if not reading.cells else ""}
        reading.cells.append(Cells(begun, values, metric))
