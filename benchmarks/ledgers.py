"""Runs of any length, written by the real ledger, in which nothing was trained."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from loop import knobs, target
from loop.edit import Edited, compare, sha256
from loop.ledger import Ledger
from loop.target import BUILT_IN
from loop.trial import (
    Call,
    Context,
    Decision,
    Edit,
    Message,
    Metric,
    Proposal,
    Reply,
    Scored,
    Trial,
)

STARTED = "2026-01-01T00:00:00+00:00"


@contextmanager
def unsynced() -> Iterator[None]:
    """fsync does nothing: three hundred thousand of them are not what is measured."""
    kept, os.fsync = os.fsync, lambda fd: None
    try:
        yield
    finally:
        os.fsync = kept


def write(folder: Path, trials: int) -> Path:
    """A run of the built-in target: single moves with prompts as `bare` makes them, one kept."""
    found = target.load(BUILT_IN, "cpu")
    source = (BUILT_IN / found.editable).read_text()
    moves = _moves(found, source)
    stable = ("You improve a program.\n" * 20, f"This is train.py:\n{source}")
    folder.mkdir(parents=True)
    with unsynced(), Ledger(folder) as ledger:
        ledger.append(_trial(0, Edit("", (), sha256(source), "0" * 64), (), 3.0))
        for number in range(1, trials):
            edit = moves[number % len(moves)]
            history = "".join(f"{i}. a move: 3.1, discard\n" for i in range(number - 20, number))
            ledger.append(_trial(number, edit, (*stable, history, "\nPropose.\n"), 3.1))
    (folder / "blobs" / sha256(source)).write_text(source)
    about = {"name": folder.name, "strategy": "bare", "brain": "scripted:none", "seed": 0,
             "profile": "cpu", "variant": "kjv", "target": target.to_toml(found)}  # fmt: skip
    (folder / "run.toml").write_text(tomli_w.dumps(about))
    return folder


def _moves(found: target.Target, source: str) -> list[Edit]:
    """Every single-knob move of `source`, as the loop would record it."""
    files = [
        knobs.write(source, {name: repr(new)})
        for name, value in found.values(source).items()
        for new in found.knobs[name].moves(value)
    ]
    return [edited.edit for edited in (compare(source, new) for new in files)
            if isinstance(edited, Edited)]  # fmt: skip


def _trial(number: int, edit: Edit, parts: tuple[str, ...], score: float) -> Trial:
    metric = Metric("val_bpb", score + (number % 17) / 1000)
    reply = Reply("LR = 0.2", prompt_tokens=3000, cached_tokens=2700, completion_tokens=8)
    calls = (Call((Message("user", parts),), (reply,), 0.7, 512, number),) if parts else ()
    base = Metric("val_bpb", 3.0)
    source = "" if number else edit.file_sha256
    return Trial(
        id=number,
        run="r",
        parent=0 if number else None,
        commit=f"{number:040x}",
        started=STARTED,
        seconds=9.0,
        context=Context(source or "0" * 64, 0 if number else None, base if number else None,
                        "bare", "h", tuple(range(max(0, number - 20), number))),
        proposal=Proposal(f"move {number}", calls, answer="LR = 0.2", edit=edit),
        outcome=Scored(metric, {"peak_vram_mb": 0.0, "num_steps": 300}),
        decision=Decision("discard" if number else "baseline", "naive", "not better"),
    )  # fmt: skip
