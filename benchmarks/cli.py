"""How long a person waits before anything begins: help, imports, the start of an experiment."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness import Bench
from benchmarks.measure import Figure, alternate, ratio

ROOT = Path(__file__).parent.parent
PYTHON = "a bare python"
COMMANDS = {
    PYTHON: ["-c", "pass"],
    "autoresearch --help": ["-m", "autoresearch", "--help"],
    "autoresearch run --help": ["-m", "autoresearch", "run", "--help"],
    "import of the loop": ["-c", "import loop.__main__"],
}
TORCH = "import torch"
EXPERIMENT = "what an experiment imports"


def run(bench: Bench) -> Iterator[Figure]:
    """Each over a bare interpreter; the start of an experiment over the import of torch alone."""
    sides = {name: started(argv) for name, argv in COMMANDS.items()}
    costs = alternate(sides, 2 * bench.rounds)
    for name in list(COMMANDS)[1:]:
        yield ratio(f"{name} / {PYTHON}", costs[name], costs[PYTHON])
    trainer = str(ROOT / "trainer")
    sides = {
        TORCH: started(["-c", TORCH]),
        EXPERIMENT: started(["-c", "import run, evaluate, flops, train"], trainer),
    }
    costs = alternate(sides, bench.rounds)
    yield ratio(f"{EXPERIMENT} / {TORCH}", costs[EXPERIMENT], costs[TORCH])


def started(argv: list[str], folder: str = str(ROOT)) -> Callable[[], object]:
    """A Python process in `folder`, from its start to its end."""
    return lambda: subprocess.run(
        [sys.executable, *argv], cwd=folder, capture_output=True, check=True
    )
