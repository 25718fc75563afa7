"""What a trainer's hour brings: the proposals of a small model, replayed through both loops.

A trial is useful when it scores and its code is new: neither what stands already nor what was tried
before. Both loops get the same replies (the first of each trial; ours alone asks for a repair) and
the same score for the same file, so they differ in what they let run. How many runs a useful trial
takes does not depend on the machine; what a run takes, does: see the benchmark `trial`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks import recording
from benchmarks.harness import Bench, advance, begun, write_script
from benchmarks.measure import Figure
from benchmarks.recording import Recording
from benchmarks.reference_loop import ReferenceLoop
from benchmarks.replayed import Replayed
from loop import brains, target
from loop.edit import code_hash
from loop.target import BUILT_IN, Target
from loop.trial import Json

NAMES = ("bare", "menu")


def run(bench: Bench) -> Iterator[Figure]:
    """Runs to a useful trial, of the reference loop over ours, for each recorded arm."""
    for name in NAMES:
        told = recording.read(name)
        ours = through_ours(told, bench.place / name)
        for patient in (True, False):
            theirs = through_reference(told, bench.place / f"{name}-{patient}", patient)
            how = "skips" if patient else "runs on at"
            note = (
                f"ours {ours['useful']} useful of {ours['runs']} runs, reference "
                f"{theirs['useful']} of {theirs['runs']}; it {how} a reply without an edit"
            )
            if ours["useful"] and theirs["useful"]:
                gain = ours["useful"] / ours["runs"] * theirs["runs"] / theirs["useful"]
                what = f"{name}: useful trials a run / the reference loop's"
                yield Figure(what, 1, gain, gain, gain, goal=(">=", 2.0), note=note)
            else:  # a model that is never useful: what is left to compare is the waste
                saved = theirs["runs"] - ours["runs"]
                what = f"{name}: runs saved of {len(told.turns) - 1} proposals"
                yield Figure(what, 1, saved, saved, saved, "runs", note=note)


def through_ours(told: Recording, place: Path) -> Json:
    """`runs`, and how many of them were `useful`; the baseline is left out."""
    place.mkdir()
    args = told.args(place)
    found = target.load(args.target, args.profile, args.variant)
    replayed = Replayed(found, told.scores())
    with begun(args, lambda _: replayed) as loop:
        advance(loop, len(told.turns) - 1)
    return _counted(replayed.ran, told)


def through_reference(told: Recording, place: Path, patient: bool) -> Json:
    """The same of the reference loop."""
    place.mkdir()
    args = told.args(place)
    found: Target = target.load(args.target, args.profile, args.variant)
    shutil.copytree(BUILT_IN, place / "program", ignore=shutil.ignore_patterns("__pycache__"))
    first = [t.replies[0].text for t in told.turns[1:] if t.replies]
    brain = brains.connect(write_script(place / "first.jsonl", [plain(text) for text in first]))
    ran: list[str] = []

    def score(folder: Path) -> float | None:
        code = code_hash((folder / found.editable).read_text(), found.editable)
        ran.append(str(code))
        metric = told.scores().get(str(code))
        return metric.value if metric else None

    reference = ReferenceLoop(place / "program", brain, score, patient=patient)
    for _ in first:
        reference.turn()
    return _counted(ran, told)


def plain(text: str) -> str:
    """A reply as the reference loop reads it: the move out of a menu's JSON."""
    import json

    try:
        answer = json.loads(text)
    except ValueError:
        return text
    return str(answer["move"]) if isinstance(answer, dict) and "move" in answer else text


def _counted(ran: list[str], told: Recording) -> Json:
    useful = {code for code in ran[1:] if code in told.scores()} - {ran[0]}
    return {"runs": len(ran) - 1, "useful": len(useful)}
