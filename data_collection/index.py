"""The working index of a collection: one small line a trial, in a temporary SQLite file.

What has to look at all trials at once (labels, duplicates, caps, groups) happens here, so that a
corpus of any size is built in flat memory: the trials themselves are only ever streamed.
"""

import bisect
import sqlite3
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_collection import hashes, noise
from data_collection.noise import Scores
from data_collection.runs import Run
from loop.trial import Measurement, Scored, Stopped, Trial

SURE = 0.9
"""P(real) from which a trial is a win; up to 1 - SURE, and without a better score, a loss."""
UNSELECTED = ("noise", "replicate", "baseline again")
"""Purposes of measurements that nothing chose by their value."""
FIELDS = (
    "run, trial, state, edit, near, label, reason, raw_gain, p_real, gain, gain_sd, n, left_out"
)


@dataclass(frozen=True)
class Entry:
    """What the index knows of a trial. Gains in the metric's unit, positive is better."""

    trial: int
    state: bytes
    edit: bytes
    near: bytes
    label: str
    reason: str
    raw_gain: float | None
    p_real: float | None
    gain: float | None
    gain_sd: float | None
    n: int
    left_out: str


class _Series:
    """The scores of a run while it is read: ids in order, where the kept ones are, replicates by
    trial and seed, and by code and seed."""

    def __init__(self) -> None:
        self.scores, self.ids = Scores(), array("q")
        self.kept: dict[int, int] = {}
        self.replicates: dict[int, dict[int, float]] = {}
        self.codes: dict[str, dict[int, float]] = {}


class Index:
    """The index at `path`, new. Add every run, then `settle` once, then read."""

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path)
        self._base.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-8000;"
            "PRAGMA temp_store=FILE;"
            "CREATE TABLE trials (run INT, trial INT, state BLOB, edit BLOB, near BLOB, label TEXT,"
            " reason TEXT, raw_gain REAL, p_real REAL, gain REAL, gain_sd REAL, n INT,"
            " left_out TEXT, alone INT, PRIMARY KEY (run, trial)) WITHOUT ROWID;"
        )

    def close(self) -> None:
        self._base.close()

    def add(self, number: int, run: Run) -> noise.Noise | None:
        """Index the run as `number`; returns its noise. Raises LedgerError."""
        series = _Series()
        higher = False
        for record in run.records():
            if isinstance(record, Measurement):
                _measured(record, series, run.seed)
            elif isinstance(record, Trial):
                self._insert(number, record)
                if isinstance(record.outcome, Scored):
                    higher = record.outcome.metric.direction == "max"
                    _scored(record, series, run.seed)
        _average(series)
        groups = [list(values.values()) for values in series.codes.values()]
        found = noise.estimate(groups, series.scores, higher)
        if found is not None:
            self._judge(number, series, found.sigma, higher)
        self._base.commit()
        return found

    def settle(self, cap: int) -> None:
        """Mark what should not be trained on: duplicates, near duplicates, over the cap.

        Exact first, then near ones, each within its state over all runs, the most measured one
        stays; then at most `cap` rows (0: any number) of a state and label, the surest first.
        """
        self._mark("duplicate", "state, edit", "n DESC, run, trial", 1)
        self._mark("near_duplicate", "state, near", "n DESC, run, trial", 1)
        if cap:
            kind = "CASE WHEN label = 'failure' THEN reason ELSE label END"
            sure = "ABS(COALESCE(p_real, 0.5) - 0.5) DESC, run, trial"
            self._mark("over_cap", f"state, {kind}", sure, cap)
        self._base.commit()

    def entries(self, number: int) -> Iterator[Entry]:
        """The run's trials, by id."""
        columns = FIELDS.removeprefix("run, ")
        rows = self._base.execute(
            f"SELECT {columns} FROM trials WHERE run = ? ORDER BY trial", (number,)
        )
        return (Entry(*row) for row in rows)

    def shared(self) -> Iterator[tuple[int, int]]:
        """Pairs of runs that have a state, or the very row, in common."""
        for column, which in (("state", "left_out != 'baseline'"), ("edit", "alone")):
            query = f"SELECT DISTINCT {column}, run FROM trials WHERE {which}"
            before: tuple[bytes, int] | None = None
            for digest, run in self._base.execute(f"{query} ORDER BY {column}, run"):
                if before and before[0] == digest:
                    yield before[1], run
                before = (digest, run)

    def size(self, number: int) -> int:
        """How many trials the run has."""
        query = "SELECT COUNT(*) FROM trials WHERE run = ?"
        return int(self._base.execute(query, (number,)).fetchone()[0])

    def counts(self, column: str) -> dict[str, int]:
        """How many trials have each value of `label`, `reason` or `left_out`."""
        assert column in ("label", "reason", "left_out")
        query = f"SELECT {column}, COUNT(*) FROM trials GROUP BY 1 ORDER BY 2 DESC"
        return dict(self._base.execute(query))

    def _insert(self, number: int, trial: Trial) -> None:
        label, reason = _label(trial)
        baseline = trial.decision.verdict == "baseline"
        self._base.execute(
            f"INSERT OR REPLACE INTO trials ({FIELDS}, alone) VALUES ({','.join('?' * 14)})",
            (number, trial.id, hashes.state(trial), hashes.change(trial),
             hashes.near(trial), label, reason, raw_gain(trial), None, None, None,
             1, "baseline" if baseline else "", hashes.alone(trial)),
        )  # fmt: skip

    def _judge(self, number: int, series: _Series, sigma: float, higher: bool) -> None:
        """Write P(real) and what follows from it."""
        self._base.executemany(
            "UPDATE trials SET p_real = ?1, gain = ?2, gain_sd = ?3, n = ?4, label = CASE"
            f" WHEN ?1 >= {SURE} THEN 'win' WHEN ?1 <= {1 - SURE:.6g} AND raw_gain <= 0"
            " THEN 'loss' ELSE 'unclear' END WHERE run = ?5 AND trial = ?6",
            (
                (v.p, v.gain, v.sd, int(series.scores.n[at]), number, series.ids[at])
                for at, v in enumerate(noise.verdicts(series.scores, sigma, higher))
                if v is not None
            ),
        )

    def _mark(self, why: str, group: str, order: str, most: int) -> None:
        self._base.execute(
            f"UPDATE trials SET left_out = '{why}' WHERE (run, trial) IN (SELECT run, trial FROM "
            f"(SELECT run, trial, ROW_NUMBER() OVER (PARTITION BY {group} ORDER BY {order}) AS at"
            f" FROM trials WHERE left_out = '') WHERE at > {most})"
        )


def raw_gain(trial: Trial) -> float | None:
    """How much better its score is than its incumbent's; None where either has none."""
    before = trial.context.incumbent_metric
    if not isinstance(trial.outcome, Scored) or before is None:
        return None
    after = trial.outcome.metric
    if (after.name, after.direction) != (before.name, before.direction):
        return None
    gain = before.value - after.value
    return gain if after.direction == "min" else -gain


def _label(trial: Trial) -> tuple[str, str]:
    """(label, reason) before the noise is known."""
    if trial.decision.verdict == "baseline":
        return "baseline", ""
    if isinstance(trial.outcome, Scored):
        return "unknown", ""
    if isinstance(trial.outcome, Stopped):
        return "censored", str(trial.outcome.reason)
    return "failure", str(trial.outcome.reason)


def _measured(record: Measurement, series: _Series, seed: int) -> None:
    """Keep a replicate by its seed: equal seeds are one value."""
    if record.purpose not in UNSELECTED or not isinstance(record.outcome, Scored):
        return
    value = record.outcome.metric.value
    series.codes.setdefault(record.code or f"trial {record.trial}", {})[record.seed] = value
    if record.seed != seed or record.purpose == "baseline again":
        series.replicates.setdefault(record.trial, {})[record.seed] = value


def _scored(trial: Trial, series: _Series, seed: int) -> None:
    assert isinstance(trial.outcome, Scored)
    parent = -1
    if trial.decision.verdict != "baseline" and trial.context.incumbent is not None:
        parent = series.kept.get(trial.context.incumbent, -1)
    at = series.scores.add(trial.outcome.metric.value, parent)
    series.ids.append(trial.id)
    if trial.decision.verdict != "discard":
        series.kept[trial.id] = at
    if trial.decision.verdict == "baseline":
        code = trial.proposal.edit.file_sha256 if trial.proposal.edit else ""
        for name in (code, f"trial {trial.id}"):  # a measurement names one or the other
            series.codes.setdefault(name, {})[seed] = trial.outcome.metric.value


def _average(series: _Series) -> None:
    """A trial's value is the mean of its own score and its replicates."""
    for trial, values in series.replicates.items():
        at = bisect.bisect_left(series.ids, trial)
        if at < len(series.ids) and series.ids[at] == trial:
            both = [series.scores.value[at], *values.values()]
            series.scores.value[at] = sum(both) / len(both)
            series.scores.n[at] = float(len(both))
