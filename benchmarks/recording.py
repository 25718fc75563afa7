"""A run with a small model, kept as a few kilobytes: what it said, and what became of that.

    python -m benchmarks.recording RUN > benchmarks/data/menu.jsonl

The first line tells what the run was asked for; each further line is a trial: the replies of its
brain in order, and its outcome. Replayed by the scripted brain under the same seed, the strategy
sees the same states and its loop takes the same turns.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import write_script
from loop import ledger
from loop.errors import UsageError, ending
from loop.start import RunArgs, read_run_toml
from loop.trial import Json, Metric, Outcome, Reply, Scored, Trial, from_json, to_json

DATA = Path(__file__).parent / "data"
STATED = ("strategy", "seed", "profile", "variant", "budget", "temperature", "reply_tokens")


@dataclass(frozen=True)
class Turn:
    """One trial. `purposes[i]`: what `replies[i]` answers. `code`: hash of the edited file."""

    replies: tuple[Reply, ...]
    purposes: tuple[str, ...]
    outcome: Outcome
    verdict: str
    code: str


@dataclass(frozen=True)
class Recording:
    """`asked`: flags of the run. `turns[0]` is the baseline."""

    asked: Json
    turns: tuple[Turn, ...]

    def scores(self) -> dict[str, Metric]:
        """Code -> what it scored when the run was recorded."""
        return {t.code: t.outcome.metric for t in self.turns if isinstance(t.outcome, Scored)}

    def args(self, place: Path) -> RunArgs:
        """The same run, in `place`, with a brain that replays its replies."""
        texts = [reply.text for turn in self.turns for reply in turn.replies]
        brain = write_script(place / "script.jsonl", texts)
        return RunArgs(
            place / "run", brain, judge="naive", final_seeds=0, window=8192, **self.asked
        )


def read(name: str) -> Recording:
    """The recording `name` of those beside this file."""
    first, *lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [from_json(Turn, json.loads(line), f"{name}.jsonl") for line in lines]
    return Recording(json.loads(first), tuple(turns))


def lines(run: Path) -> Iterator[Json]:
    """The recording of the run folder `run`, a line at a time."""
    asked = read_run_toml(run)["args"]
    yield {name: asked[name] for name in STATED}
    for trial in ledger.trials(run):
        yield to_json(_turn(trial))


def _turn(trial: Trial) -> Turn:
    pairs = [(reply, call.purpose) for call in trial.proposal.calls for reply in call.replies]
    outcome = trial.outcome
    if isinstance(outcome, Scored):
        outcome = Scored(outcome.metric)
    edit = trial.proposal.edit
    replies, purposes = tuple(r for r, _ in pairs), tuple(p for _, p in pairs)
    return Turn(replies, purposes, outcome, trial.decision.verdict, edit.code_hash if edit else "")


def run(argv: Sequence[str]) -> int:
    """Print the recording of the run folder argv[0]."""
    if len(argv) != 1:
        raise UsageError("python -m benchmarks.recording RUN > FILE.jsonl")
    for line in lines(Path(argv[0])):
        print(json.dumps(line, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
