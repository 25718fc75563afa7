"""The audit: what an experiment claims of itself is measured again, elsewhere and by others.

Two boxes joined by two pipes. In one the target's fixed code has the deciding text and runs nothing
that a model wrote; in the other the trial's code holds the weights that the trial left, and sees no
text at all. Token by token the first asks and the second answers with logits, so that neither the
text's next token nor the score is ever in reach of the edited file.

The evaluator writes audit.json: {"metric": number} or {"invalid": reason, "detail": sentence}. What
it measures becomes the trial's score; the claim is kept beside it in the measurements.
"""

import json
import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loop.files import read_plain
from loop.sandbox import Box
from loop.supervise import Exit, Limits, Part, supervise
from loop.target import Target, argv
from loop.trial import Invalid, Json, Metric, Reason, Scored
from loop.warm import Worker, launches

Split = Literal["audit", "test"]
RESULT = "audit.json"
MOST_BETTER = 0.1
"""Share by which a claim may be better than the audit finds: texts differ, by about 1 % here."""


@dataclass(frozen=True)
class Auditor:
    """Where the fixed files were set aside before the trial's code could run: see `set_aside`."""

    target: Target
    box: Box
    limits: Limits
    fixed: Path
    warm: Worker | None = None

    def audit(
        self, claim: Scored, folder: Path, env: dict[str, str], log: Path, split: Split
    ) -> tuple[Scored | Invalid, float]:
        """The score of what the trial left in `folder`, on the text of `split`; seconds it took."""
        ended = self._ask(folder, env, log, split)
        return self._judged(claim, ended, log, split), ended.seconds

    def _judged(self, claim: Scored, ended: Exit, log: Path, split: Split) -> Scored | Invalid:
        found = _read(self.fixed / RESULT)
        if "invalid" in found:
            reason = _reason(found["invalid"])
            return Invalid(claim.metric, reason, str(found.get("detail", ""))[:500])
        value = found.get("metric")
        if ended.cap or not isinstance(value, int | float) or not math.isfinite(value):
            detail = f"the second box gave no score ({ended.cap or 'see its log'}: {log.name})"
            return Invalid(claim.metric, Reason.UNREADABLE_WEIGHTS, detail)
        metric = replace(claim.metric, value=float(value))
        if split == "audit" and (detail := _mismatch(claim.metric, metric)):
            return Invalid(metric, Reason.AUDIT_MISMATCH, detail)
        return Scored(metric, self._measurements(claim, split, ended.seconds))

    def _ask(self, folder: Path, env: dict[str, str], log: Path, split: Split) -> Exit:
        """Run both ends until the evaluator is done."""
        places = {"{split}": split, "{folder}": str(folder.absolute())}
        command = [_filled(part, places) for part in argv(self.target.audit)]
        text = self.target.test_reads if split == "test" else self.target.audit_reads
        asking = self.box.wrap(
            command, self.fixed, reads=[*text, str(folder.absolute())], fixed=self.target.fixed,
            env=env,
        )  # fmt: skip
        serving = argv(self.target.model)
        answering = self.box.wrap(serving, folder, reads=(), fixed=self.target.fixed, env=env)
        ask, serve = (launches(self.warm, self.box, c, env) for c in (command, serving))
        question, answer = os.pipe(), os.pipe()
        ends = (
            Part(asking, self.fixed, stdin=answer[0], stdout=question[1], launch=ask),
            Part(answering, folder, stdin=question[0], stdout=answer[1], launch=serve),
        )
        boxed = bool(self.box.bwrap)
        return supervise(ends, env, log, self.limits, boxed=boxed, pipes=(*question, *answer))

    @staticmethod
    def _measurements(claim: Scored, split: Split, seconds: float) -> Json:
        kept = {k: v for k, v in claim.measurements.items() if k != claim.metric.name}
        audit = {"metric_channel": split, "claimed": claim.metric.value}
        return {**kept, **audit, "audit_seconds": round(seconds, 3)}


def set_aside(target: Target, folder: Path) -> Path:
    """Copy the fixed files out of `folder`, a fresh copy of the target, to a place beside it."""
    aside = folder.with_name(f"{folder.name}.audit")
    shutil.rmtree(aside, ignore_errors=True)
    for name in target.fixed:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, aside / name)
    return aside


def _mismatch(claim: Metric, found: Metric) -> str:
    gain = found.value - claim.value if claim.direction == "min" else claim.value - found.value
    if gain <= MOST_BETTER * abs(found.value):
        return ""
    return f"it claims {claim.value:.6g}, and the second box finds {found.value:.6g}"


def _filled(part: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        part = part.replace(name, value)
    return part


def _read(path: Path) -> Json:
    try:
        found = json.loads(read_plain(path, 2**20))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _reason(text: object) -> Reason:
    try:
        return Reason(str(text))
    except ValueError:
        return Reason.AUDIT_MISMATCH
