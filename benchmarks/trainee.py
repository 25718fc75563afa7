"""Whether the built-in trainee wastes its core: against faster ways of torch, and a plain GPT.

The ways are training steps in alternation, each in a process of its own. The plain GPT (nanoGPT's,
same shape, batch, text and budget in FLOPs) sets the loss of the race; the trainee gets a sixteenth
of the budget, an eighth and so on, until it is there. Seconds of a core are tokens times what a
token takes either of them in the alternation, so the evaluations are left out.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.harness import Bench
from benchmarks.measure import Cost, Figure, Goal, alternate, of, ratio
from loop import target
from loop.budget import Budget
from loop.errors import AutoresearchError
from loop.start import set_up
from loop.target import BUILT_IN
from loop.workspace import Workspace

Told = Mapping[str, str]
HERE = Path(__file__).parent
AS_IT_IS, PLAIN = "as it is", "a plain GPT"
ENDLESS = 1e9
"""Budgets: the steps are counted elsewhere."""
STEPS = 10
"""Of a round, as in trainee_steps.py."""
TOKENS = 1024
"""Of a step."""
KEPT = {"MALLOC_MMAP_THRESHOLD_": f"{2**25}", "MALLOC_TRIM_THRESHOLD_": f"{2**30}",
        "MALLOC_TOP_PAD_": f"{2**26}"}  # fmt: skip
"""Freed memory is kept for the next tensors, as the warm worker has it (mallopt(3))."""
CALM = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads sleep while they wait: on a busy machine one that spins keeps the others from working."""
WAYS = {
    AS_IT_IS: "",
    "by hand, freed memory given back": "given-back",
    "on all cores": "threads",
    "data in memory, FLOPs not counted": "memory",
    "fused Adam": "fused",
    "bfloat16": "bf16",
    "compiled": "memory,compiled",
    "compiled, fused Adam": "memory,compiled,fused",
    "compiled, fused Adam, bfloat16": "memory,compiled,fused,bf16",
    PLAIN: "plain",
}
"""See trainee_steps.py for the words; `given-back` is seen to from outside. `as it is`: as in the
warm worker, one thread, eager."""
RATE = 3e-3
"""Of the plain GPT: the best of 1e-3, 2e-3, 3e-3, 5e-3 and 1e-2."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
RACES = 3
"""Training seeds."""
WITHIN: Goal = ("<=", 1.1)


def run(bench: Bench) -> Iterator[Figure]:
    """Steps, tokens a second, and the race to the same loss."""
    place = Place(bench.place)
    ways = {name: Way(place, words) for name, words in WAYS.items()}
    try:
        costs = alternate({name: way.round for name, way in ways.items()}, bench.rounds)
    finally:
        for way in ways.values():
            way.close()
    ours = costs[AS_IT_IS]
    for name in (n for n in WAYS if n not in (AS_IT_IS, PLAIN)):
        yield ratio(f"a step {AS_IT_IS} / {name}", ours, costs[name], WITHIN, ways[name].note(ours))
    tokens = ways[AS_IT_IS].tokens
    for name in (AS_IT_IS, PLAIN):
        speeds = [tokens / cost.processor for cost in costs[name]]
        yield of(f"{name}: trains", speeds, "tokens/s", note="a second of one core")
    slower = statistics.median(
        a.processor / b.processor for a, b in zip(ours, costs[PLAIN], strict=True)
    )
    races = [Race(place, seed) for seed in range(RACES)]
    rounds = races[0].steps / STEPS
    for name in (n for n in WAYS if "compiled" in ways[n].words):
        whole = [
            rounds * a.processor / (ways[name].warm + rounds * b.processor)
            for a, b in zip(ours, costs[name], strict=True)
        ]
        what = f"a whole training {AS_IT_IS} / {name}, compiling included"
        yield of(what, whole, "x", WITHIN, f"seconds of a core; {races[0].steps:.0f} steps")
    gaps = [race.gap for race in races]
    yield of("val_bpb after the same FLOPs, less a plain GPT's", gaps, "bpb", ("<=", 0.0))
    times = [race.tokens * slower for race in races]
    note = f"{statistics.median(r.tokens for r in races):.3g} x its tokens; training seeds"
    yield of("seconds to the loss of a plain GPT, of its own", times, "x", ("<=", 1.0), note)


class Place:
    """A folder of the trainer, where scripts run as an experiment does, but in no box."""

    def __init__(self, folder: Path) -> None:
        self.target = target.load(BUILT_IN, "cpu")
        set_up(self.target, BUILT_IN)
        space, _ = Workspace.create(BUILT_IN, folder / "work", "bench", self.target.editable)
        space.scratch(space.head(), folder / "trainer")
        self.folder = folder / "trainer"
        self.budget = self.target.budget or Budget.parse("2e11flops")

    def start(
        self, share: float, seed: int, script: str, *args: str, more: Told = MappingProxyType({})
    ) -> "subprocess.Popen[str]":
        """A script with `share` of the profile's budget."""
        budget = replace(self.budget, amount=share * self.budget.amount)
        told = self.target.environment(budget, seed) | dict(more)
        told["PYTHONPATH"] = f"{self.folder}{os.pathsep}{HERE.parent}"
        return subprocess.Popen(
            [sys.executable, "-B", script, *args], cwd=self.folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | told,
        )  # fmt: skip

    def result(self, share: float, seed: int, script: str, *args: str) -> tuple[float, float]:
        """(val_bpb, millions of tokens) of a script that trains."""
        with self.start(share, seed, script, *args) as process:
            process.communicate()
        if process.returncode:
            raise AutoresearchError(f"{script} ended with {process.returncode}; see its last lines")
        told = json.loads((self.folder / "result.json").read_text())
        return told["metric"]["val_bpb"], told["measurements"]["total_tokens_M"]


class Way:
    """A process that does rounds of steps. `tokens` of a round; `warm`: seconds of a core before
    the first."""

    def __init__(self, place: Place, words: str) -> None:
        self.words = set(words.split(",")) - {""}
        inside = ",".join(sorted(self.words - {"given-back"}))
        more = {} if "given-back" in self.words else KEPT
        more = more | CALM if "threads" in self.words else more
        script = str(HERE / "trainee_steps.py")
        self._process = place.start(ENDLESS, 0, script, inside, more=more)
        told = self._line()
        self.tokens, self.warm = int(told["tokens"]), float(told["warm"])

    def round(self) -> Cost:
        """What a round takes, as the process says itself."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Cost(*self._line())

    def note(self, ours: Sequence[Cost]) -> str:
        """What compiling costs before there is anything to gain."""
        if "compiled" not in self.words:
            return ""
        steps = STEPS * self.warm / statistics.median(cost.processor for cost in ours)
        return f"compiling takes {self.warm:.0f} s of a core, as long as {steps:.0f} steps"

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _line(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise AutoresearchError("trainee_steps.py ended early; see its last lines")
        return json.loads(line)


class Race:
    """One training seed. `gap`: val_bpb at the end of the budget, the trainee's less the plain
    GPT's. `tokens`: what the trainee needs to the plain GPT's loss, over what that was given.
    `steps`: of the trainee in the whole budget."""

    def __init__(self, place: Place, seed: int) -> None:
        plain, given = place.result(1.0, seed, str(HERE / "nanogpt.py"), str(RATE))
        ended, all_of_it = place.result(1.0, seed, "train.py")
        self.steps = all_of_it * 1e6 / TOKENS
        self.gap = ended - plain
        for share in SHARES:
            bpb, needed = place.result(share, seed, "train.py")
            if bpb <= plain:
                break
        else:
            needed = all_of_it if self.gap <= 0 else math.inf
        self.tokens = needed / given
