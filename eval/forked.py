"""Experiments on knobs alone, measured once and without a box.

Under a FLOPs budget an experiment is a function of its file, its seed and the text that scores it:
the same digits on a busy and on an idle machine. So arms that meet the same file on the same seed
may share one measurement, and an edit that our own code wrote (a known file with other values of
its knobs) needs no box around it and no second import of torch. Anything else is refused.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop import knobs, trial
from loop.audit import Split
from loop.edit import code_hash, sha256
from loop.errors import AutoresearchError
from loop.experiment import read_outcome
from loop.hopeless import Rival
from loop.supervise import Exit
from loop.target import BUILT_IN, Target
from loop.trial import Outcome, Scored

_IDENTITY = tuple(
    f"AUTORESEARCH_{name}" for name in ("PROFILE", "VARIANT", "BUDGET", "SEED", "THREADS")
)


STORE = "outcomes.db"
"""A store's name in the folder of what is measured."""


class Store:
    """Measurements by what they are of: an SQLite file that several processes may share."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._base = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("CREATE TABLE IF NOT EXISTS outcomes (key TEXT PRIMARY KEY, body TEXT)")

    def get(self, key: str) -> tuple[Outcome, float] | None:
        found = self._base.execute("SELECT body FROM outcomes WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        body = json.loads(found[0])
        return trial.from_json(Outcome, body["outcome"], "outcome"), body["seconds"]

    def put(self, key: str, outcome: Outcome, seconds: float) -> None:
        body = json.dumps({"outcome": trial.to_json(outcome), "seconds": seconds})
        self._base.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?)", (key, body))


class Forks:
    """The process that has imported torch and forks: started when it is first asked."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def ask(self, job: dict[str, Any]) -> int:
        """Run one experiment (see trainer/forked.py); its exit status. AutoresearchError."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "forked.py"], cwd=BUILT_IN, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._server.stdin and self._server.stdout, "both are pipes"
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        if not (answer := self._server.stdout.readline()):
            raise AutoresearchError("the process that forks experiments is gone: --resume")
        return int(json.loads(answer)["status"])

    def close(self) -> None:
        """End it; the next question starts another."""
        if self._server and self._server.stdin:
            self._server.stdin.close()
            self._server.wait()
            self._server = None


@dataclass(frozen=True)
class Forked:
    """A runner for the built-in target on a CPU: knob edits only, under a FLOPs budget.

    `source`: the file whose knobs may take other values. An experiment that another run has
    measured is taken from `store`, with the seconds that it took then. `forks`: several runs may
    share one.
    """

    target: Target
    source: str
    store: Store
    forks: Forks = field(default_factory=Forks)

    def run(
        self, folder: Path, env: dict[str, str], log: Path, split: Split = "audit",
        rival: Rival | None = None,
    ) -> tuple[Outcome, float]:  # fmt: skip
        """As `loop.experiment.Runner.run`, `rival` left aside."""
        source = (folder / self.target.editable).read_text(encoding="utf-8")
        self._require_knobs(source)
        parts = [sha256(source), split, *(env.get(name, "") for name in _IDENTITY)]
        key = "/".join(parts)
        if found := self.store.get(key):
            return found
        outcome, seconds = self._measure(folder, env, log, split)
        self.store.put(key, outcome, seconds)
        return outcome, seconds

    def _measure(
        self, folder: Path, env: dict[str, str], log: Path, split: Split
    ) -> tuple[Outcome, float]:
        began = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(Path.home()), **env}
        job = {"folder": str(folder.absolute()), "log": str(log.absolute()), "split": split,
               "env": environment}  # fmt: skip
        status = self.forks.ask(job)
        seconds = time.monotonic() - began
        outcome = read_outcome(self.target, Exit(status, seconds), folder, log)
        if isinstance(outcome, Scored):
            measured = {k: v for k, v in outcome.measurements.items() if k != self.target.metric}
            outcome = Scored(outcome.metric, measured | {"metric_channel": split})
        return outcome, seconds

    def close(self) -> None:
        """End the process that forks."""
        self.forks.close()

    def _require_knobs(self, source: str) -> None:
        values = self.target.values(source)
        ours = knobs.write(self.source, {name: repr(value) for name, value in values.items()})
        if code_hash(ours, self.target.editable) != code_hash(source, self.target.editable):
            raise AutoresearchError(
                f"{self.target.editable} was changed beyond its knobs: measure it in the box "
                '(runner = "boxed" in the plan)'
            )
