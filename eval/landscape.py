"""Surveys -> what every move of a state gained, and files of experience for arms that need them.

python -m eval.landscape SURVEY... --out experience.json
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from eval.summary import improvement
from loop import flags, knobs, ledger, noise, target
from loop.context import State, proposal_seed
from loop.errors import AutoresearchError, ending
from loop.files import write_atomic
from loop.flags import flag
from loop.knobs import Value
from loop.start import read_run_toml
from loop.trial import Measurement, Metric, Scored, Trial
from loop.workspace import Workspace

WIN = 2.0
"""Standard errors above zero from which a mean paired gain counts as a win."""


@dataclass(frozen=True)
class Gain:
    """One move: `mean` over the seeds of (before - after, so that above zero is better), in the
    metric's unit; `each` by seed."""

    knob: str
    old: Value
    new: Value
    mean: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Landscape:
    """The moves of one state that were scored. `failed`: moves that left no score.

    `sd`: of one paired gain between training seeds, pooled over all moves (a move's own n is too
    small).
    """

    folder: Path
    variant: str
    gains: tuple[Gain, ...]
    failed: tuple[str, ...]
    sd: float

    def win(self, gain: Gain) -> bool:
        """Better by more than the noise?"""
        return gain.mean > WIN * self.sd / math.sqrt(len(gain.each))

    def state(self, number: int) -> State:
        """The state before the first proposal, the menu shuffled by `number`."""
        info = read_run_toml(self.folder)
        found = target.from_toml(info["target"])
        baseline = next(iter(ledger.trials(self.folder)))
        assert baseline.commit, "a baseline has a commit"
        space = Workspace(self.folder / "work", info["name"], found.editable)
        source = space.read(baseline.commit)
        return State(found, source, baseline, (baseline,), proposal_seed(number, 1))


def read(folders: Sequence[Path]) -> list[Landscape]:
    """The surveys in `folders`, their noise pooled. Raises LedgerError; AutoresearchError: no move
    was scored on two seeds."""
    found = [_read(folder) for folder in folders]
    pooled = noise.estimate([gain.each for one in found for gain in one.gains])
    if pooled is None:
        raise AutoresearchError(
            f"{', '.join(map(str, folders))}: no move was scored on two seeds, so the noise is not "
            "known; survey with --seeds 2, or name another survey too"
        )
    return [replace(one, sd=pooled.sigma) for one in found]


def _read(folder: Path) -> Landscape:
    scores: dict[int, dict[int, Metric]] = {}
    moves: dict[int, Trial] = {}
    failed = []
    for record in ledger.read(folder):
        if isinstance(record, Trial):
            if isinstance(record.outcome, Scored):
                seed = int(str(record.outcome.measurements.get("seed", 0)))
                scores.setdefault(record.id, {})[seed] = record.outcome.metric
                moves[record.id] = record
            elif record.proposal.edit:
                failed.append(record.proposal.description)
        elif isinstance(record, Measurement) and isinstance(record.outcome, Scored):
            scores.setdefault(record.trial, {})[record.seed] = record.outcome.metric
    gains = []
    for number, trial in moves.items():
        change = trial.proposal.edit.knobs if number and trial.proposal.edit else ()
        if len(change) == 1 and (pairs := sorted(set(scores[0]) & set(scores[number]))):
            each = tuple(improvement(scores[0][seed], scores[number][seed]) for seed in pairs)
            old, new = (knobs.literal(text) for text in (change[0].old, change[0].new))
            gains.append(Gain(change[0].knob, old, new, fmean(each), each))
    info = read_run_toml(folder)
    return Landscape(folder, str(info["variant"]), tuple(gains), tuple(failed), math.nan)


@dataclass(frozen=True)
class LandscapeArgs:
    """Write what the moves of surveys gained, for --experience."""

    surveys: tuple[Path, ...] = flag(help="folders of surveys", positional=True)
    out: Path = flag(Path("experience.json"), "file to be written")


def run(argv: Sequence[str]) -> int:
    args = flags.parse("landscape", LandscapeArgs, argv)
    rows = []
    for found in read(args.surveys):
        wins = sum(map(found.win, found.gains))
        print(f"{found.folder.name}: {len(found.gains)} moves, {wins} wins, {len(found.failed)} "
              f"failed, sd of a paired gain {found.sd:.4f}")  # fmt: skip
        rows += [
            {"knob": g.knob, "old": g.old, "new": g.new, "gain": round(g.mean, 5),
             "win": found.win(g), "from": found.folder.name}
            for g in found.gains
        ]  # fmt: skip
    write_atomic(args.out, json.dumps(rows, indent=0).encode())
    return 0


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
