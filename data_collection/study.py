"""An Optuna study -> trials over a file of knobs.

A study has no program: its parameters become one, a file of `NAME = value` lines, so that a point
renders for `menu` as a trial of our own does. Source: Optuna's storages (RDB in an SQLite file,
JournalStorage in a text file), read from a copy and never written.
"""

import keyword
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_collection.adopt import JUDGE, Adopted
from loop import edit, knobs
from loop.errors import AutoresearchError
from loop.target import Target
from loop.trial import (
    Context,
    Crashed,
    Decision,
    Edit,
    Metric,
    Outcome,
    Proposal,
    Reason,
    Scored,
    Stopped,
    Trial,
    better,
)

SQLITE = b"SQLite format 3\x00"
FILE = "params.py"


def is_study(path: Path) -> bool:
    """Is this file an SQLite database or an Optuna journal?"""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(SQLITE) or bool(re.match(rb'\{"op_code": ?\d', head))


def read(path: Path, name: str = "") -> tuple[Any, list[str]]:
    """The study `name` (the only one, if there is one) and what is to be said about it.

    Raises AutoresearchError: not a study, several and none named, or several objectives.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with TemporaryDirectory(prefix="autoresearch-") as place:
        copy = Path(place) / "study"
        shutil.copyfile(path, copy)
        try:
            storage: Any = _storage(copy)
            names = sorted(
                summary.study_name for summary in optuna.get_all_study_summaries(storage)
            )
            if name not in names and len(names) != 1:
                raise AutoresearchError(
                    f"{path} holds {len(names)} studies ({', '.join(names[:10])}); "
                    "name one with --study"
                )
            study = optuna.load_study(study_name=name if name in names else names[0],
                                      storage=storage)  # fmt: skip
            directions, trials = list(study.directions), study.get_trials(deepcopy=True)
        except AutoresearchError:
            raise
        except Exception as error:  # whatever a damaged database makes of it
            said_by_it = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise AutoresearchError(
                f"{path} cannot be read as an Optuna study ({said_by_it})"
            ) from None
    if len(directions) != 1:
        raise AutoresearchError(f"{path}: {len(directions)} objectives; only one can be imported")
    way = "max" if directions[0].name == "MAXIMIZE" else "min"
    said = [f"study {study.study_name}, {len(trials)} trials, direction {way} as it says"]
    return (way, trials), said


def _storage(copy: Path) -> Any:
    import optuna

    with copy.open("rb") as file:
        sqlite = file.read(16) == SQLITE
    if sqlite:
        return optuna.storages.RDBStorage(f"sqlite:///{copy}", skip_compatibility_check=True)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(copy)))


def knob_names(trials: list[Any]) -> dict[str, str]:
    """Parameter -> the knob it becomes: capitals, unique, an identifier."""
    found: dict[str, str] = {}
    for trial in trials:
        for parameter in trial.params:
            if parameter not in found:
                knob = re.sub(r"\W", "_", parameter).upper().lstrip("0123456789_") or "P"
                while knob in found.values() or keyword.iskeyword(knob):
                    knob += "_"
                found[parameter] = knob
    return found


def target_of(name: str, metric: str, way: str, trials: list[Any]) -> Target:
    """The target that a study stands for: its distributions are the knobs' spaces."""
    names = knob_names(trials)
    spaces: dict[str, knobs.Knob] = {}
    for trial in trials:
        for parameter, distribution in trial.distributions.items():
            knob = names.get(parameter)
            if knob and knob not in spaces and (space := _space(knob, distribution)):
                spaces[knob] = space
    return Target(
        name=name, folder=Path(), editable=FILE, command=("{python}", FILE), metric=metric,
        direction=way, knobs=spaces,
    )  # fmt: skip


def _space(name: str, distribution: Any) -> knobs.Knob | None:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        plain = tuple(c for c in choices if isinstance(c, int | float | str))
        return knobs.Knob(name, choices=plain) if len(plain) >= 2 else None
    low, high = float(distribution.low), float(distribution.high)
    if not low < high:
        return None
    if distribution.log:
        return knobs.Knob(name, low=low, high=high, scale="log", step=2.0)
    step = float(distribution.step or (high - low) / 10)
    return knobs.Knob(name, low=low, high=high, scale="linear", step=step)


def adopt(
    way: str, trials: list[Any], run: str, metric: str, listed: list[tuple[int, str]]
) -> Iterator[Adopted]:
    """The study's trials in order. `listed` receives (number, why) of those that are no trials."""
    names = knob_names(trials)
    last_step = max((t.last_step or 0 for t in trials), default=0)
    incumbent: Trial | None = None
    source, count = "", 0
    for point in trials:
        state = point.state.name
        if state in ("RUNNING", "WAITING"):
            listed.append((point.number, f"trial {point.number} is {state.lower()}"))
            continue
        new = _program(point.params, names)
        outcome = _outcome(point, metric, way, last_step)
        scored = outcome if isinstance(outcome, Scored) else None
        before = incumbent.outcome.metric if incumbent and isinstance(
            incumbent.outcome, Scored) else None  # fmt: skip
        base = source or new
        first = incumbent is None and scored is not None
        kept = scored is not None and (before is None or better(scored.metric, before))
        verdict = "baseline" if first else "keep" if kept else "discard"
        edited = edit.compare(base, new, FILE)
        change = edited.edit if isinstance(edited, edit.Edited) else _same(new)
        trial = Trial(
            id=count, run=run, parent=None if incumbent is None else incumbent.id, commit=None,
            started=point.datetime_start.isoformat() if point.datetime_start else "",
            seconds=point.duration.total_seconds() if point.duration else 0.0,
            context=Context(edit.sha256(base), None if incumbent is None else incumbent.id, before,
                            "optuna", ""),
            proposal=Proposal("baseline" if first else _what(change), model="", edit=change,
                              notes={"number": point.number, "state": state}),
            outcome=outcome,
            decision=Decision(
                "baseline" if verdict == "baseline" else "keep" if verdict == "keep" else "discard",
                JUDGE, "kept if it beats all before it: a study keeps no incumbent of its own"),
        )  # fmt: skip
        if kept:
            incumbent, source = trial, new
        count += 1
        yield Adopted(trial, base)


def _program(params: dict[str, Any], names: dict[str, str]) -> str:
    lines = [
        f"{knob} = {params[parameter]!r}\n"
        for parameter, knob in names.items()
        if parameter in params and isinstance(params[parameter], int | float | str)
    ]
    return "".join(lines)


def _outcome(point: Any, metric: str, way: str, last_step: int) -> Outcome:
    direction: Any = way
    if point.state.name == "COMPLETE" and point.value is not None:
        return Scored(Metric(metric, float(point.value), direction))
    if point.state.name == "PRUNED":
        steps = point.intermediate_values
        at = (max(steps) / last_step) if steps and last_step else 0.0
        value = float(steps[max(steps)]) if steps else None
        finite = value is not None and value == value and abs(value) != float("inf")
        return Stopped(
            at, Metric(metric, value, direction) if finite and value is not None else None
        )
    return Crashed("train", Reason.EXCEPTION)


def _same(source: str) -> Edit:
    digest = edit.code_hash(source, FILE)
    return Edit("", (), edit.sha256(source), digest if isinstance(digest, str) else "")


def _what(change: Edit) -> str:
    if not change.knobs:
        return "the same point again" if not change.diff else "other parameters"
    return ", ".join(f"{k.knob}: {k.old} -> {k.new}" for k in change.knobs)
