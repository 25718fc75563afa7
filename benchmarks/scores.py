"""What the files of a recorded stream score, by training seed: kept as data, so nothing is trained.

    python -m benchmarks.scores menu PLACE

lets both loops of `benchmarks.stream` turn on the recorded replies, trains what they ask for and is
not known yet (by forks, without a box), and writes benchmarks/data/menu.scores.json. PLACE keeps
what was measured: the command may be interrupted and given again.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.recording import DATA, Recording, read
from eval.forked import STORE, Forked, Store
from loop import target
from loop.budget import Budget
from loop.edit import code_hash
from loop.errors import UsageError, ending
from loop.files import write_atomic
from loop.start import set_up
from loop.target import BUILT_IN
from loop.trial import Scored

CODE = 16
"""Hexadecimal digits of a code's hash that are kept."""
Measure = Callable[[str, int], float | None]


@dataclass
class Scores:
    """`table`: code -> seed -> score. `measure`: what is asked for a score that is not there;
    without it, `lacks` counts those."""

    table: dict[str, dict[str, float]]
    measure: Measure | None = None
    lacks: int = 0
    sources: dict[str, str] = field(default_factory=dict)

    def of(self, source: str, seed: int) -> float | None:
        """The score of a file on a training seed; None: it has none, or it is not known."""
        code = code_of(source)
        self.sources[code] = source
        return self.known(code, seed)

    def known(self, code: str, seed: int) -> float | None:
        """The same of a file that was asked for before, by its code."""
        seeds = self.table.setdefault(code, {})
        if str(seed) not in seeds:
            value = self.measure(self.sources[code], seed) if self.measure else None
            if value is None:
                self.lacks += 1
                return None
            seeds[str(seed)] = value
        return seeds[str(seed)]


def code_of(source: str) -> str:
    """The short hash of what a file does."""
    code = code_hash(source, "train.py")
    assert isinstance(code, str), "a loop runs what parses"
    return code[:CODE]


def recorded(told: Recording, name: str) -> Scores:
    """What is known of a recording: its own scores, and those of `NAME.scores.json`."""
    table: dict[str, dict[str, float]] = {}
    with suppress(FileNotFoundError):
        table = json.loads(_path(name).read_text())
    for code, metric in told.scores().items():
        table.setdefault(code[:CODE], {})[str(told.asked["seed"])] = metric.value
    return Scores(table)


def training(told: Recording, place: Path) -> tuple[Measure, Callable[[], None]]:
    """What trains a file on a seed, and what ends it."""
    found = target.load(BUILT_IN, told.asked["profile"], told.asked["variant"])
    set_up(found, BUILT_IN)
    budget = Budget.parse(told.asked["budget"])
    source = (BUILT_IN / found.editable).read_text()
    runner = Forked(found, source, Store(place / STORE))

    def measure(source: str, seed: int) -> float | None:
        with TemporaryDirectory(prefix="scores-") as folder:
            copy = Path(folder) / "trainer"
            shutil.copytree(BUILT_IN, copy, ignore=shutil.ignore_patterns("__pycache__"))
            (copy / found.editable).write_text(source)
            outcome, _ = runner.run(copy, found.environment(budget, seed), copy / "log")
        return outcome.metric.value if isinstance(outcome, Scored) else None

    return measure, runner.close


def run(argv: Sequence[str]) -> int:
    """Measure what the loops ask for, and write it."""
    from benchmarks import stream

    if len(argv) != 2:
        raise UsageError("python -m benchmarks.scores NAME PLACE")
    name, place = argv[0], Path(argv[1])
    told = read(name)
    scores = recorded(told, name)
    scores.measure, close = training(told, place)
    try:
        with TemporaryDirectory(prefix="scores-") as folder:
            for side in stream.judged(told, scores, Path(folder)):
                print(f"{side}: {side.confirmed(scores)} keeps are confirmed")
    finally:
        close()
    write_atomic(_path(name), json.dumps(scores.table, indent=0).encode())
    return 0


def _path(name: str) -> Path:
    return DATA / f"{name}.scores.json"


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
