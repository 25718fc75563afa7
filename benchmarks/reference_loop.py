"""What one would run instead: the well-known single-file agents' loop, as small as it can be.

Written from the description of Karpathy's autoresearch (program.md): the agent is shown everything
again, edits the file, commits it, runs the program, reads the metric from its log, notes a line in
results.tsv, and resets the commit unless the metric is better. No sandbox, no audit, no fsync, no
look at the edit before it runs, no record of the conversation.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from loop import edit
from loop.brain import Brain
from loop.trial import Message, Rejected

IDENTITY = ("-c", "user.name=agent", "-c", "user.email=agent@localhost")
Run = Callable[[Path], float | None]


class ReferenceLoop:
    """`folder`: the program, which becomes a git repository. `run`: the program's metric, or None.

    `patient`: a reply without an edit costs no run; otherwise the program runs as it is, as it does
    where a SEARCH that matches nothing changes nothing and nobody notices.
    """

    def __init__(
        self, folder: Path, brain: Brain, run: Run, *, editable: str = "train.py",
        patient: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.brain, self.run, self.patient = folder, brain, run, patient
        self.editable = folder / editable
        self.results = folder.with_name(f"{folder.name}.tsv")
        self.results.write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\n")
        self.runs = 0
        self._git("init", "-q")
        self._git("add", "-A")
        self._git("commit", "-qm", "as found")
        self.best = self._measure() or float("inf")

    def turn(self) -> float | None:
        """One experiment -> its metric; None: it left none, or there was none."""
        prompt = "\n\n".join(
            path.read_text()
            for path in (self.folder / "program.md", self.editable, self.results)
            if path.exists()
        )
        reply = self.brain.chat((Message("user", (prompt,)),))[0]
        edited = edit.apply(reply.text, self.editable.read_text())
        if isinstance(edited, Rejected):
            if self.patient and edited.reason != "no_op":
                return None
        else:
            self.editable.write_text(edited.source)
        self._git("commit", "-qam", reply.text[:60] or "edit", "--allow-empty")
        commit = self._git("rev-parse", "--short", "HEAD").strip()
        value = self._measure()
        better = value is not None and value < self.best
        status = "keep" if better else "discard" if value is not None else "crash"
        with self.results.open("a") as results:
            results.write(f"{commit}\t{value or 0:.6f}\t0.0\t{status}\t{reply.text[:60]!r}\n")
        if better and value is not None:
            self.best = value
        else:
            self._git("reset", "-q", "--hard", "HEAD~1")
        return value

    def _measure(self) -> float | None:
        self.runs += 1
        return self.run(self.folder)

    def _git(self, *args: str) -> str:
        done = subprocess.run(
            ["git", *IDENTITY, *args], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout


def process(command: Sequence[str]) -> Run:
    """Runs `command` with its output in run.log, and reads the last `val_bpb:` there."""

    def run(folder: Path) -> float | None:
        log = folder.with_name(f"{folder.name}.log")
        with log.open("wb") as output:
            subprocess.run(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, check=False,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        lines = [line for line in log.read_text().splitlines() if line.startswith("val_bpb:")]
        return float(lines[-1].split()[1]) if lines else None

    return run
