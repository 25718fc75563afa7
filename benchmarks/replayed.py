"""Runners that train nothing: for what depends on the turns of a loop and not on a training."""

from dataclasses import dataclass, field
from pathlib import Path

from loop.audit import Split
from loop.edit import code_hash
from loop.hopeless import Rival
from loop.target import Target
from loop.trial import Crashed, Metric, Outcome, Reason, Scored


@dataclass
class Replayed:
    """Gives each file the score that it had when it was recorded. `ran`: codes, in order."""

    target: Target
    scores: dict[str, Metric]
    ran: list[str] = field(default_factory=list)

    def run(
        self, folder: Path, env: dict[str, str], log: Path, split: Split = "audit",
        rival: Rival | None = None,
    ) -> tuple[Outcome, float]:  # fmt: skip
        """As `loop.experiment.Runner.run`; a file without a recorded score crashes."""
        code = code_hash((folder / self.target.editable).read_text(), self.target.editable)
        assert isinstance(code, str), "a loop runs what parses"
        self.ran.append(code)
        if code in self.scores:
            return Scored(self.scores[code]), 0.0
        return Crashed("train", Reason.EXCEPTION, "not recorded"), 0.0


@dataclass
class Worse:
    """Every file is a little worse than the one before: the baseline stands, all is set back."""

    target: Target
    count: int = 0

    def run(
        self, folder: Path, env: dict[str, str], log: Path, split: Split = "audit",
        rival: Rival | None = None,
    ) -> tuple[Outcome, float]:  # fmt: skip
        """As `loop.experiment.Runner.run`."""
        self.count += 1
        return Scored(Metric(self.target.metric, 2 + self.count / 1000)), 0.0
