"""What a trainer's hour brings: the proposals of a small model, replayed through both loops.

A trial is useful when it scores and its code is new: neither what stands already nor what was tried
before. A keep is confirmed when its code beats what it replaced on training seeds that no loop saw.
Both loops get the same replies (the first of each trial; ours alone asks for a repair) and the same
score for the same file and seed, so they differ in what they let run and in what they keep. The
budget of a run is fixed work, so a run is a fixed share of an hour; what ours takes beside it (box,
audit), the benchmark `trial` says.
"""

import json
import math
import shutil
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import recording
from benchmarks.harness import Bench, advance, begun, write_script
from benchmarks.measure import Figure
from benchmarks.recording import Recording
from benchmarks.reference_loop import ReferenceLoop
from benchmarks.replayed import Replayed
from benchmarks.scores import CODE, Scores, recorded
from loop import brains, target
from loop.errors import AutoresearchError
from loop.target import BUILT_IN
from loop.trial import Rejected

NAMES = ("bare", "menu")
JUDGED = ("menu",)
"""Those with a file of scores on further seeds."""
UNSEEN = range(90_001, 90_007)
"""Training seeds of the confirmation."""
ERRORS = 2.0
"""Standard errors that the mean gain on them must exceed."""


@dataclass(frozen=True)
class Side:
    """What a loop made of a stream. `runs`: of the trainer, the baseline's first one left out.

    `useful`: of them, files that score and are new. `keeps`: (code kept, code replaced).
    """

    runs: int
    useful: int
    keeps: tuple[tuple[str, str], ...]

    def confirmed(self, scores: Scores) -> int:
        """How many keeps are better on unseen training seeds."""
        return sum(better(new, old, scores) for new, old in self.keeps)


def run(bench: Bench) -> Iterator[Figure]:
    """Useful trials a run for each recorded arm, then what the judges keep of them."""
    for name in NAMES:
        yield from _useful(recording.read(name), name, bench.place / name)
    for name in JUDGED:
        told = recording.read(name)
        yield from _judged(told, name, bench.place / f"{name}-judged")


def _useful(told: Recording, name: str, place: Path) -> Iterator[Figure]:
    scores = recorded(told, name)
    ours = through_ours(told, scores, place)
    for patient in (True, False):
        theirs = through_reference(told, scores, place, patient)
        how = "skips" if patient else "runs on at"
        note = (
            f"ours {ours.useful} useful of {ours.runs} runs, reference {theirs.useful} of "
            f"{theirs.runs}; it {how} a reply without an edit; stream: {shares(told)}"
        )
        if ours.useful and theirs.useful:
            gain = ours.useful / ours.runs * theirs.runs / theirs.useful
            what = f"{name}: useful trials a run / the reference loop's"
            yield Figure(what, 1, gain, gain, gain, goal=(">=", 2.0), note=note)
        else:  # a model that is never useful: what is left to compare is the waste
            saved = theirs.runs - ours.runs
            what = f"{name}: runs saved of {len(told.turns) - 1} proposals"
            yield Figure(what, 1, saved, saved, saved, "runs", note=note)


def _judged(told: Recording, name: str, place: Path) -> Iterator[Figure]:
    """The same stream before the judge that a run has if nobody says otherwise."""
    scores = recorded(told, name)
    ours, theirs = judged(told, scores, place)
    real, theirs_real = ours.confirmed(scores), theirs.confirmed(scores)
    if scores.lacks:
        raise AutoresearchError(
            f"{scores.lacks} scores of {name} are not recorded: python -m benchmarks.scores {name} "
            "PLACE trains them"
        )
    note = (
        f"ours {ours.useful} useful of {ours.runs} runs, reference {theirs.useful} of {theirs.runs}"
    )
    gain = ours.useful / ours.runs * theirs.runs / theirs.useful
    what = f"{name}, noise and replicates counted: useful trials a run / the reference loop's"
    yield Figure(what, 1, gain, gain, gain, goal=(">=", 2.0), note=note)
    note = (
        f"ours {real} of {len(ours.keeps)} keeps in {ours.runs} runs, reference {theirs_real} of "
        f"{len(theirs.keeps)} in {theirs.runs}; {len(UNSEEN)} unseen seeds"
    )
    gain = real / ours.runs * theirs.runs / max(1, theirs_real)
    what = f"{name}: confirmed improvements a run / the reference loop's"
    yield Figure(what, 1, gain, gain, gain, goal=(">=", 2.0), note=note)
    pairs = (("ours", ours, real), ("the reference loop", theirs, theirs_real))
    for who, side, sure in pairs:
        if side.keeps:
            share = 100 * sure / len(side.keeps)
            what = f"{name}: keeps that are confirmed, {who}"
            yield Figure(what, 1, share, share, share, "%")


def judged(told: Recording, scores: Scores, place: Path) -> tuple[Side, Side]:
    """(ours with its own judge, the reference loop)."""
    place.mkdir(parents=True, exist_ok=True)
    ours = through_ours(told, scores, place / "noise-aware", "noise-aware")
    return ours, through_reference(told, scores, place, patient=True)


def through_ours(told: Recording, scores: Scores, place: Path, judge: str = "naive") -> Side:
    """The stream through the loop of `autoresearch run`."""
    place.mkdir(parents=True)
    args = replace(told.args(place), judge=judge)
    replayed = Replayed(target.load(args.target, args.profile, args.variant), scores)
    with begun(args, lambda _: replayed) as loop:
        advance(loop, len(told.turns) - 1)
        trials = loop.position.trials
    codes = {t.id: t.proposal.edit.code_hash[:CODE] for t in trials if t.proposal.edit}
    keeps = tuple(
        (codes[t.id], codes[t.parent or 0]) for t in trials if t.decision.verdict == "keep"
    )
    return _side(replayed, keeps)


def through_reference(told: Recording, scores: Scores, place: Path, patient: bool) -> Side:
    """The stream through the reference loop, which trains on one seed."""
    folder = place / f"reference-{patient}"
    shutil.copytree(BUILT_IN, folder, ignore=shutil.ignore_patterns("__pycache__"))
    first = [plain(t.replies[0].text) for t in told.turns[1:] if t.replies]
    brain = brains.connect(write_script(place / f"first-{patient}.jsonl", first))
    replayed = Replayed(target.load(BUILT_IN, told.asked["profile"]), scores)
    seed = int(told.asked["seed"])
    loop = ReferenceLoop(folder, brain, lambda at: replayed.score(at, seed), patient=patient)
    standing, keeps = replayed.ran[0], []
    for _ in first:
        best = loop.best
        loop.turn()
        if loop.best < best:
            keeps.append((replayed.ran[-1], standing))
            standing = replayed.ran[-1]
    return _side(replayed, tuple(keeps))


def better(new: str, old: str, scores: Scores) -> bool:
    """Is code `new` better than `old` on seeds that neither was chosen on? Lower is better."""
    pairs = [(scores.known(old, seed), scores.known(new, seed)) for seed in UNSEEN]
    gains = [a - b for a, b in pairs if a is not None and b is not None]
    if len(gains) < len(UNSEEN):
        return False
    return statistics.mean(gains) > ERRORS * statistics.stdev(gains) / math.sqrt(len(gains))


def shares(told: Recording) -> str:
    """What became of the proposals when they were recorded, in words."""
    kinds = Counter(
        t.outcome.reason if isinstance(t.outcome, Rejected) else "ran" for t in told.turns[1:]
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def plain(text: str) -> str:
    """A reply as the reference loop reads it: the move out of a menu's JSON."""
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    return str(answer["move"]) if isinstance(answer, dict) and "move" in answer else text


def _side(replayed: Replayed, keeps: tuple[tuple[str, str], ...]) -> Side:
    first, *rest = replayed.ran
    table = replayed.scores.table
    return Side(len(rest), len({code for code in rest if table.get(code)} - {first}), keeps)
