"""The words that foreign logs use: names of columns, of statuses, of metrics and their direction.

Collected from public results.tsv and autoresearch.jsonl files; what is not here is reported, never
guessed.
"""

import math
import re
from typing import Literal

from loop.trial import Reason

Status = Literal[
    "baseline", "keep", "discard", "failed", "crash", "invalid", "stopped", "duplicate", "skipped"
]

COMMIT = {"commit", "hash", "sha", "rev", "revision", "commit_hash", "commit_sha", "git_commit"} | {
    "git_hash",
    "git_sha",
}
STATUS = {"status", "decision", "verdict", "outcome", "kept", "action", "result", "state"}
DESCRIPTION = {"description", "desc", "change", "changes", "idea", "hypothesis", "summary"} | {
    *("message", "title", "note", "notes", "comment", "experiment", "what"),
}
NUMBER = {"run", "exp", "id", "trial", "n", "no", "#", "iter", "iteration", "run_id", "index"}
TIME = {"timestamp", "time", "date", "datetime", "started", "when"}
_MEASURE = re.compile(
    r"memory|vram|mem_|_mem|mfu|tok_|tok/|tokens|num_|steps?$|params?$|params_|batch|seconds|duration"
    r"|elapsed|_time|cost|usd|epoch|depth|confidence|segment|lines|count|gpu"
)

_STATUSES: dict[Status, str] = {
    "baseline": "baseline base initial start reference",
    "keep": "keep kept accept accepted improved improvement success best new_best win merged "
    "advance advanced yes true",
    "discard": "discard discarded revert reverted reject rejected worse no_improvement regression "
    "regressed no false neutral rollback rolled_back",
    "failed": "fail failed failure",
    "crash": "crash crashed error errored exception oom out_of_memory nan timeout timed_out hung "
    "killed",
    "invalid": "checks_failed invalid check_failed",
    "stopped": "stopped early_stop early_stopped pruned screen_discard killed_early hopeless",
    "duplicate": "duplicate dup",
    "skipped": "skip skipped pending running todo planned",
}
_BY_WORD = {word: status for status, words in _STATUSES.items() for word in words.split()}
_REASONS = {
    **dict.fromkeys(("oom", "out_of_memory"), Reason.OUT_OF_MEMORY),
    **dict.fromkeys(("timeout", "timed_out", "hung"), Reason.TIME_OUT),
    "nan": Reason.METRIC_NOT_FINITE,
    "killed": Reason.KILLED,
}
_NOTHING = {"", "-", "--", "n/a", "na", "none", "null", "crash", "error", "fail", "failed", "oom"}
_LOWER = re.compile(
    r"bpb|loss|ppl|perplexity|error|err$|mse|mae|rmse|latency|_ms$|^ms$|time|duration|seconds|bytes"
    r"|size|_s$|_us$|µs|bits|cost|wer|cer|fid|regret|violations|instructions|cycles|allocs"
)
_HIGHER = re.compile(
    r"acc|score|f1|auc|r2|reward|throughput|tok_per|tokens_per|_per_s|fps|corr|sharpe|recall"
    r"|precision|bleu|rouge|pass|win|qps|rps|mfu|speedup|quality"
)
_NOT_NEGATIVE = re.compile(r"bpb|ppl|perplexity|acc|latency|_ms$|^ms$|seconds|bytes|size|f1|auc")


def column(name: str) -> str:
    """The name of a column as it is compared: lower case, words joined by `_`."""
    return re.sub(r"[\s\-]+", "_", name.strip().strip("*`\"'").lower())


def is_measure(name: str) -> bool:
    """Does a column of this name hold something beside the metric that is optimised?"""
    return bool(_MEASURE.search(name)) or name in COMMIT | STATUS | DESCRIPTION | NUMBER | TIME


def status(text: str) -> Status | None:
    """What a status cell says, None: unknown."""
    return _BY_WORD.get(_word(text))


def reason(text: str) -> Reason | None:
    """The reason of a failure that the status cell itself names."""
    return _REASONS.get(_word(text))


def _word(text: str) -> str:
    plain = re.sub(r"[\s\-]+", "_", re.sub(r"[^\w\s\-(:,]", "", text).strip().lower())
    return re.split(r"[(:,]", plain)[0].strip("_")


def number(text: str) -> float | None:
    """A metric cell: a number (nan and inf among them), or None where it says there is none.

    Raises ValueError for anything else.
    """
    plain = text.strip().strip("*`~").lower()
    if plain in _NOTHING:
        return None
    percent = plain.endswith("%")
    value = float(plain.rstrip("%").replace("_", "x"))  # float() would take 1_000
    return value / 100 if percent else value


def is_number(text: str) -> bool:
    try:
        return number(text) is not None
    except ValueError:
        return False


def direction(metric: str) -> Literal["min", "max"] | None:
    """Which way is better, by the metric's name; None: the name does not tell."""
    higher, lower = _HIGHER.search(metric.lower()), _LOWER.search(metric.lower())
    if bool(higher) == bool(lower):
        return None
    return "max" if higher else "min"


def absurd(metric: str, value: float) -> str:
    """Why a finite `value` cannot be one of `metric`; "": it can."""
    if abs(value) > 1e12 and not re.search(r"byte|size|cycle|instruction|tok", metric.lower()):
        return f"{metric} of {value:g} is absurd"
    if value < 0 and _NOT_NEGATIVE.search(metric.lower()):
        return f"{metric} cannot be negative ({value:g})"
    return "" if math.isfinite(value) else f"{metric} is {value}"
