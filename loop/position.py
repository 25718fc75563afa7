"""Where a run stands: what it was asked to do, and what its ledger says of how far it came."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from loop.ahead import UNUSED
from loop.budget import Budget
from loop.caps import Caps
from loop.context import proposal_seed
from loop.judge import Contender
from loop.trial import Crashed, Json, Measurement, Record, Rejected, Scored, TimedOut, Trial
from loop.workspace import Workspace


@dataclass(frozen=True)
class Settings:
    """`trials`: how many beside the baseline, 0 for ever. `failsafe`: incumbent | baseline.

    `final_seeds`: of the final check. `stop_hopeless`: cut trials that lag far behind.
    `patience`: seconds to wait for the server of a brain that is down. `fresh_seeds`: every trial
    trains on a seed of its own, not all on the run's.
    """

    run: str
    seed: int
    trials: int
    budget: Budget | None
    failsafe: str = "incumbent"
    caps: Caps = field(default_factory=Caps)
    patience: float = 3600.0
    fresh_seeds: bool = False
    final_seeds: int = 0
    stop_hopeless: bool = False

    def training_seed(self, trial: int) -> int:
        """The baseline always trains on the run's own seed."""
        return proposal_seed(self.seed, trial) if self.fresh_seeds and trial else self.seed


@dataclass
class Position:
    """Where a run stands: a function of its ledger.

    `kept`: ids of the baseline and the kept trials that stand, the incumbent last. `crashes`:
    experiments in a row that left no score; a rejected proposal never ran and does not count.
    `unused`: what proposals cost that were made ahead for nothing.
    """

    trials: list[Trial] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    crashes: int = 0
    noise_known: bool = False
    unused: list[Json] = field(default_factory=list)

    @property
    def incumbent(self) -> Trial:
        return self.trial(self.kept[-1])

    @property
    def next_id(self) -> int:
        return self.trials[-1].id + 1 if self.trials else 0

    def trial(self, number: int) -> Trial:
        """By id: a repaired ledger may have gaps."""
        return next(trial for trial in reversed(self.trials) if trial.id == number)

    def add(self, record: Record) -> None:
        """Take in the next record of the ledger."""
        if isinstance(record, Trial):
            self.trials.append(record)
            if record.decision.verdict != "discard":
                self.kept.append(record.id)
            if not isinstance(record.outcome, Rejected):
                ended_badly = isinstance(record.outcome, Crashed | TimedOut)
                self.crashes = self.crashes + 1 if ended_badly else 0
        elif isinstance(record, Measurement):
            self.measurements.append(record)
        elif record.name == "noise":
            self.noise_known = True
        elif record.name == UNUSED:
            self.unused.append(record.data)
        elif record.name in ("revert", "incumbent_runs"):
            self.crashes = 0
            while self.kept and self.kept[-1] != record.data.get("to", self.kept[-1]):
                self.kept.pop()


@dataclass(frozen=True)
class Ledgered:
    """The ledger as a judge reads it: the `loop.judge.Past` of a run."""

    position: Position
    workspace: Workspace
    settings: Settings

    @property
    def trials(self) -> Sequence[Trial]:
        return self.position.trials

    @property
    def measurements(self) -> Sequence[Measurement]:
        return self.position.measurements

    @property
    def kept(self) -> Sequence[int]:
        return self.position.kept

    def contender(self, trial: int) -> Contender:
        """The code of a trial that has a score."""
        found = self.position.trial(trial)
        assert found.commit is not None and isinstance(found.outcome, Scored), "it stood once"
        source, seed = self.workspace.read(found.commit), self.settings.training_seed(trial)
        return Contender(trial, found.commit, source, found.outcome.metric, seed)
