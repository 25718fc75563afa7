"""Runners that train nothing: for what depends on the turns of a loop and not on a training."""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.scores import Scores, code_of
from loop.audit import Split
from loop.hopeless import Rival
from loop.target import Target
from loop.trial import Crashed, Metric, Outcome, Reason, Scored


@dataclass
class Replayed:
    """Gives each file the score that is known of it and the seed. `ran`: codes, in order."""

    target: Target
    scores: Scores
    ran: list[str] = field(default_factory=list)

    def run(
        self, folder: Path, env: dict[str, str], log: Path, split: Split = "audit",
        rival: Rival | None = None,
    ) -> tuple[Outcome, float]:  # fmt: skip
        """As `loop.experiment.Runner.run`; a file without a score crashes."""
        value = self.score(folder, int(env["AUTORESEARCH_SEED"]))
        if value is None:
            return Crashed("train", Reason.EXCEPTION, "not recorded"), 0.0
        return Scored(Metric(self.target.metric, value)), 0.0

    def score(self, folder: Path, seed: int) -> float | None:
        """Of the file in `folder`."""
        source = (folder / self.target.editable).read_text()
        self.ran.append(code_of(source))
        return self.scores.of(source, seed)


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
