"""Run one experiment in its box -> Outcome: the training, then the audit of what it claims."""

import hashlib
import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loop import hopeless
from loop.audit import Auditor, Split, set_aside
from loop.files import read_plain, remove
from loop.hopeless import Rival
from loop.sandbox import Box
from loop.supervise import COMMAND_NOT_FOUND, Exit, Part, supervise
from loop.supervise import Limits as Limits
from loop.target import Target, argv
from loop.trial import Crashed, Invalid, Metric, Outcome, Reason, Scored, Stopped, TimedOut
from loop.warm import Worker, launches

TAIL_CHARS = 2000


@dataclass(frozen=True)
class Runner:
    """Runs the target's command in the box, under the limits."""

    target: Target
    box: Box
    limits: Limits
    warm: Worker | None = None

    def run(
        self, folder: Path, env: dict[str, str], log: Path, split: Split = "audit",
        rival: Rival | None = None,
    ) -> tuple[Outcome, float]:  # fmt: skip
        """One experiment in `folder`, a fresh copy of the target -> outcome, seconds it took.

        The process writes its output to `log`; results are read from `folder`. A target with an
        audit gets its score from there, on the text `split`. With `rival` it is cut when hopeless.
        """
        target, env = self.target, _environment(env)
        if target.audit:
            env["AUTORESEARCH_AUDITED"] = "1"
        if not self.box.bwrap:  # in a box these are private as they are
            caches = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
            env |= dict.fromkeys(caches, str(folder.absolute() / ".compiled"))
        aside = set_aside(target, folder) if target.audit else None
        before = _digests(target, folder)
        part = self._part(folder, env)
        try:
            if target.smoke_s and (failed := self._smoke(folder, env, log)):
                return failed
            boxed = bool(self.box.bwrap)
            give_up = rival.hopeless if rival else None
            ended = supervise([part], env, log, self.limits, boxed=boxed, give_up=give_up)
            outcome, seconds = read_outcome(target, ended, folder, log), ended.seconds
            if isinstance(outcome, Scored) and _digests(target, folder) != before:
                outcome = Invalid(outcome.metric, Reason.FIXED_FILE_CHANGED, "see its log")
            if isinstance(outcome, Scored) and aside:
                auditor = Auditor(target, self.box, self.limits, aside, self.warm)
                log = log.with_suffix(".audit.log")
                outcome, more = auditor.audit(outcome, folder, env, log, split)
                seconds += more
            return outcome, seconds
        finally:
            if aside:
                remove(aside)

    def _part(self, folder: Path, env: dict[str, str]) -> Part:
        target, command = self.target, argv(self.target.command)
        wrapped = self.box.wrap(
            command, folder, reads=target.reads, fixed=target.fixed, env=env
        )  # fmt: skip
        return Part(wrapped, folder, launch=launches(self.warm, self.box, command, env))

    def _smoke(self, folder: Path, env: dict[str, str], log: Path) -> tuple[Outcome, float] | None:
        """Two steps and the end of an experiment, in seconds. What came of it if that failed."""
        env = env | {"AUTORESEARCH_SMOKE": "1"}
        part = self._part(folder, env)
        limits = replace(self.limits, seconds=min(self.target.smoke_s, self.limits.seconds))
        ended = supervise([part], env, log, limits, boxed=bool(self.box.bwrap))
        outcome = read_outcome(self.target, ended, folder, log)
        with suppress(OSError):
            (folder / "result.json").unlink()
        if isinstance(outcome, Crashed):
            return replace(outcome, stage="smoke"), ended.seconds
        return None if isinstance(outcome, Scored) else (outcome, ended.seconds)


def read_outcome(target: Target, ended: Exit, folder: Path, log: Path) -> Outcome:
    """What an ended experiment amounts to, from its exit, its log and its result file."""
    if ended.cap == "seconds":
        return TimedOut(round(ended.seconds, 3))
    if ended.cap == "hopeless":
        curve = hopeless.read(log.read_text("utf-8", "replace"))
        return Stopped(curve[-1][0] if curve else 0.0)
    tail = read_tail(log)
    if ended.cap:
        reason = {"memory": Reason.OUT_OF_MEMORY, "processes": Reason.KILLED}
        return Crashed("train", reason.get(ended.cap, Reason.DISK_LIMIT), tail)
    if ended.status == COMMAND_NOT_FOUND:
        return Crashed("start", Reason.EXCEPTION, tail)
    if ended.status != 0:
        return Crashed("train", _crash_reason(ended.status, tail), tail)
    value, measurements = _read_metric(target, folder, log)
    if value is None:
        return Crashed("metric", Reason.METRIC_MISSING, tail)
    if not math.isfinite(value):
        return Crashed("metric", Reason.METRIC_NOT_FINITE, tail)
    direction: Literal["min", "max"] = "max" if target.direction == "max" else "min"
    return Scored(Metric(target.metric, value, direction), measurements)


def read_tail(log: Path) -> str:
    """The capped end of a log, as text without control characters."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4 * TAIL_CHARS))
        text = file.read().decode("utf-8", "replace")
    return re.sub(r"[^\n\t -~\u00a0-\uffff]", "", text)[-TAIL_CHARS:]


def _environment(env: dict[str, str]) -> dict[str, str]:
    """A cleared environment: what a program needs to start, and what the target is told."""
    passed = ("PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
    kept = {key: os.environ[key] for key in passed if key in os.environ}
    # USER: torch.compile names its cache after the user, and a box has no list of them.
    private = {"HOME": str(Path.home()), "USER": "autoresearch"}
    private |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    return kept | private | env


def _read_metric(target: Target, folder: Path, log: Path) -> tuple[float | None, dict[str, object]]:
    if target.metric_from == "result.json":
        return _read_result(folder / "result.json", target.metric)
    printed = _read_summary(log)
    value = printed.pop(target.metric, None)
    finite = {key: number for key, number in printed.items() if math.isfinite(number)}
    return value, {**finite, "metric_channel": "printed"}


def _read_result(path: Path, name: str) -> tuple[float | None, dict[str, object]]:
    try:
        data = json.loads(read_plain(path, 2**22))
        value, measurements = float(data["metric"][name]), dict(data["measurements"])
        json.dumps(measurements, allow_nan=False)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None, {}
    return value, measurements


def _read_summary(log: Path) -> dict[str, float]:
    """The `name: number` lines of Karpathy's summary block: the last of each name."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**20))
        text = file.read().decode("utf-8", "replace")
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, number = line.partition(":")
        if re.fullmatch(r"\s*[A-Za-z_]\w*", name):
            with suppress(ValueError):
                found[name.strip()] = float(number)
    return found


def _crash_reason(status: int, tail: str) -> Reason:
    if re.search(r"\bOutOfMemoryError\b|\bMemoryError\b|out of memory|can't allocate memory", tail):
        return Reason.OUT_OF_MEMORY
    if re.search(r"^OSError: \[Errno (27|28|122)\]", tail, re.MULTILINE):  # too large, full, quota
        return Reason.DISK_LIMIT
    return Reason.KILLED if status < 0 or status > 128 else Reason.EXCEPTION


def _digests(target: Target, folder: Path) -> list[str]:
    """sha256 of each fixed file as it lies in `folder`; "" for one that is gone or no file."""
    found = []
    for name in target.fixed:
        try:
            found.append(hashlib.sha256(read_plain(folder / name, 2**26)).hexdigest())
        except OSError:
            found.append("")
    return found
