"""The loop: state -> proposal -> outcome -> decision -> ledger, nothing else.

It is given a strategy, a judge and a runner, and knows none of their implementations. All it
remembers between two trials is what the ledger says, so that a resumed run is the same run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from loop import edit, final, forbidden, hopeless, knobs
from loop.ahead import PENDING, UNUSED, Ahead, Made, masked, noted
from loop.audit import Split
from loop.context import State, proposal_seed
from loop.errors import BrainError, ServerDown, TargetError
from loop.files import remove
from loop.judge import Contender, Judge, failed
from loop.ledger import Ledger
from loop.position import Ledgered, Position, Settings
from loop.strategy import Draft, Strategy, described
from loop.target import Target
from loop.trial import (
    Context,
    Decision,
    Edit,
    Event,
    Json,
    Measurement,
    Outcome,
    Proposal,
    Reason,
    Record,
    Rejected,
    Scored,
    Trial,
)
from loop.workspace import Workspace

CRASHES_IN_A_ROW = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class Observer(Protocol):
    """Whoever watches a run: the terminal, a tracker."""

    def phase(self, trial: int, text: str) -> None:
        """What is being done now."""

    def record(self, record: Record, position: Position) -> None:
        """A record that is on the disk."""


class Runner(Protocol):
    """Whatever runs one experiment: `loop.experiment.Runner` is the one with the box."""

    @property
    def target(self) -> Target: ...

    def run(
        self, folder: Path, env: dict[str, str], log: Path, split: Split = "audit",
        rival: hopeless.Rival | None = None,
    ) -> tuple[Outcome, float]:  # fmt: skip
        """Train what lies in `folder`, scored on the text `split` -> outcome, seconds it took."""


class Loop:
    """One run, from its ledger on. `stop` is asked between trials.

    `ahead`: what makes the next proposal while an experiment runs; None: nothing does.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        strategy: Strategy,
        judge: Judge,
        runner: Runner,
        workspace: Workspace,
        ledger: Ledger,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = lambda: False,
        ahead: Ahead | None = None,
    ) -> None:
        self.settings, self.strategy, self.judge = settings, strategy, judge
        self.runner, self.workspace, self.ledger = runner, workspace, ledger
        self.observers, self.stop, self.ahead = observers, stop, ahead
        self.target = runner.target
        self.position = Position()
        self.past = Ledgered(self.position, workspace, settings)
        for record in ledger.records:
            self.position.add(record)

    def run(self) -> None:
        """Measure the baseline, then turn until `trials`, a cap or `stop`.

        Raises TargetError when the baseline does not score, BrainError when the brain is gone.
        """
        for _ in self.turns():
            pass

    def turns(self, check_baseline: bool = False) -> Iterator[None]:
        """`run`, a turn at a time, for whoever lets several runs take turns: the baseline with its
        noise, each trial, each experiment of the final check.

        `check_baseline`: the final check measures a baseline that nothing has replaced, too.
        """
        began = time.monotonic()
        remove(self.ledger.folder / "scratch")
        self.workspace.unlock()
        if not self.position.trials:
            self._baseline()
        if not self.position.noise_known and (facts := self.judge.begin(self.past, self._measure)):
            self._append(Event("noise", _now(), facts))
        self.workspace.advance(self._commit_of(self.position.incumbent))
        yield
        while not self.stop() and not self._finished():
            if self.position.crashes >= CRASHES_IN_A_ROW:
                self._failsafe()
            spent = time.monotonic() - began
            reached = self.settings.caps.reached(self.position.trials, spent, self.position.unused)
            if reached:
                self._append(Event("cap", _now(), {"reason": reached}))
                break
            self._persist()
            yield
        if self.ahead:
            self.ahead.close()
            self._charge(self.ahead)
        for contender, seed in final.pending(
            self.past, self.settings.final_seeds, self.settings.seed, check_baseline
        ):
            if self.stop():
                return
            self._measure(contender, seed, final.PURPOSE)
            yield

    def _persist(self) -> None:
        """One turn, begun anew while the brain's server is down: that costs time, not trials."""
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while not self.stop():
            try:
                return self._turn()
            except ServerDown as down:
                waited = time.monotonic() - began
                if waited > self.settings.patience:
                    raise BrainError(
                        f"{down}; waited {waited:.0f} s: mend it, then --resume"
                    ) from None
                if pause == FIRST_PAUSE_S:
                    self._append(Event("brain_down", _now(), {"reason": str(down)}))
                self._pause(max(pause, down.after))
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _pause(self, seconds: float) -> None:
        self._phase(f"waiting {seconds:.0f}s for the brain's server")
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stop():
            time.sleep(0.2)

    def _finished(self) -> bool:
        """Enough trials, or a strategy that has nothing left to propose."""
        last = self.position.trials[-1].outcome
        if isinstance(last, Rejected) and last.reason is Reason.NOTHING_LEFT:
            return True
        return 0 < self.settings.trials < self.position.next_id

    def _baseline(self) -> None:
        """Trial 0: the target's own code, with the start values of its profile."""
        found = self.workspace.read(self.workspace.head())
        source, began = self._start(found), _now()
        commit = self.workspace.head()
        if source != found:
            where = f"{self.target.profile} {self.target.variant}".strip()
            commit = self.workspace.commit(0, source, commit, f"start of {where}\n")
        self.workspace.remember(0, commit)
        outcome, seconds = self._experiment(0, commit, self.settings.seed, "0.log")
        if not isinstance(outcome, Scored):
            self._append(Event("baseline_failed", _now(), {"reason": str(outcome.reason)}))
            raise TargetError(
                f"the baseline gives no {self.target.metric} ({outcome.reason}); see "
                f"{self.ledger.folder / 'logs' / '0.log'} and run its command by hand"
            )
        digest = edit.code_hash(source, self.target.editable)
        assert isinstance(digest, str), "code that ran has a hash"
        change = Edit(
            edit.unified(found, source, self.target.editable), (), edit.sha256(source), digest
        )
        values = _jsonable(self.target.values(source))
        context = Context(edit.sha256(found), None, None, "baseline", "", knobs=values)
        decision = Decision("baseline", self.judge.name, "the code as it was found")
        proposal = Proposal("baseline", edit=change)
        self._append(
            Trial(0, self.settings.run, None, commit, began, seconds, context, proposal, outcome,
                  decision)
        )  # fmt: skip

    def _start(self, found: str) -> str:
        try:
            return knobs.write(found, self.target.start)
        except KeyError as error:
            raise TargetError(
                f"{self.target.editable} has no knob {error}, which [start] sets"
            ) from None

    def _turn(self) -> None:
        began, clock, number = _now(), time.monotonic(), self.position.next_id
        incumbent = self.position.incumbent
        self._phase("asking" if self.strategy.model else "proposing")
        source = self.workspace.read(self._commit_of(incumbent))
        seed = proposal_seed(self.settings.seed, number)
        state = State(self.target, source, incumbent, tuple(self.position.trials), seed)
        draft, edited = self._made(state, clock)
        description = described(draft, edited)
        commit: str | None = None
        if isinstance(edited, edit.Edited):
            message = f"trial {number}: {description or 'edit'}\n"
            parent = self._commit_of(incumbent)
            commit = self.workspace.commit(number, edited.source, parent, message)
        proposal = Proposal(
            description=description,
            calls=draft.calls,
            model=self.strategy.model,
            model_digest=self.strategy.model_digest,
            answer="" if isinstance(draft.answer, Rejected) else draft.answer,
            edit=None if isinstance(edited, Rejected) else edited.edit,
            notes=draft.notes,
        )
        assert isinstance(incumbent.outcome, Scored), "an incumbent has a score"
        context = Context(
            file_sha256=edit.sha256(source),
            incumbent=incumbent.id,
            incumbent_metric=incumbent.outcome.metric,
            strategy=self.strategy.name,
            template_hash=self.strategy.template_hash,
            history=draft.shown.history,
            omitted=draft.shown.omitted,
            knobs=_jsonable(state.values()),
        )
        trial = Trial(
            number, self.settings.run, incumbent.id, commit, began, 0.0, context, proposal, *PENDING
        )
        outcome, decision = self._judged(trial, edited, state)
        seconds = time.monotonic() - clock
        self._append(replace(trial, seconds=seconds, outcome=outcome, decision=decision))
        if decision.verdict == "keep" and commit is not None:
            self.workspace.advance(commit)

    def _made(self, state: State, clock: float) -> Made:
        """A proposal, now or while the last experiment ran, with a note if it could be then."""
        if self.ahead is None:
            return self._propose(state)
        state = masked(state)
        try:
            draft, edited = self.ahead.take(state) or self._propose(state)
        finally:
            self._charge(self.ahead)
        notes = draft.notes | noted(state, time.monotonic() - clock)
        return replace(draft, notes=notes), edited

    def _charge(self, ahead: Ahead) -> None:
        for facts in ahead.unused():
            self._append(Event(UNUSED, _now(), facts))

    def _propose(self, state: State) -> Made:
        """The strategy's draft, repaired once if need be, and the new file it leads to."""
        draft = self.strategy.propose(state)
        edited = self._edit(draft, state)
        if isinstance(edited, Rejected) and (again := self.strategy.repair(state, draft, edited)):
            return again, self._edit(again, state)
        return draft, edited

    def _judged(
        self, trial: Trial, edited: edit.Edited | Rejected, state: State
    ) -> tuple[Outcome, Decision]:
        """What came of `trial`, and what it is worth."""
        if isinstance(edited, Rejected):
            return edited, failed(edited, self.judge.name)
        if self.ahead and not 0 < self.settings.trials <= trial.id:
            seed = proposal_seed(self.settings.seed, trial.id + 1)
            self.ahead.begin(self._propose, state, trial, edited.source, seed)
        number, commit = trial.id, self._commit_of(trial)
        seed = self.settings.training_seed(number)
        outcome, _ = self._experiment(number, commit, seed, f"{number}.log")
        if not isinstance(outcome, Scored):
            return outcome, failed(outcome, self.judge.name)
        candidate = Contender(number, commit, edited.source, outcome.metric, seed)
        incumbent = self.past.contender(self.position.incumbent.id)
        return outcome, self.judge.decide(candidate, incumbent, self.past, self._measure)

    def _edit(self, draft: Draft, state: State) -> edit.Edited | Rejected:
        """The new file, unless it is not worth a run."""
        if isinstance(draft.answer, Rejected):
            return draft.answer
        target = self.target
        edited = edit.apply(draft.answer, state.source, target.editable, target.fixed)
        if isinstance(edited, Rejected):
            return edited
        if {f"knob:{change.knob}" for change in edited.edit.knobs} == {target.seed}:
            return Rejected(Reason.SEED_ONLY, "the edit changes the training seed alone")
        if target.editable.endswith(".py") and (
            found := forbidden.check(state.source, edited.source, target.imports)
        ):
            return found
        for trial in state.trials:
            if trial.proposal.edit and trial.proposal.edit.code_hash == edited.edit.code_hash:
                return Rejected(Reason.DUPLICATE, f"the same code as trial {trial.id}")
        return edited

    def _measure(self, contender: Contender, seed: int, purpose: str) -> Outcome:
        began = _now()
        log = f"{contender.trial}-{purpose}-{seed}.log"
        outcome, seconds = self._experiment(contender.trial, contender.commit, seed, log, purpose)
        self._append(
            Measurement(contender.trial, purpose, seed, began, seconds, outcome, contender.code)
        )
        return outcome

    def _failsafe(self) -> None:
        """After crashes in a row: does the incumbent still run? If not, back to what does."""
        crashes = f"{self.position.crashes} crashes in a row"
        if self.settings.failsafe == "baseline":
            self._revert(0, f"{crashes}: back to the baseline, as asked")
            return
        for number in reversed(self.position.kept):
            contender = self.past.contender(number)
            if isinstance(self._measure(contender, self.settings.seed, "failsafe"), Scored):
                if number == self.position.kept[-1]:
                    self._append(Event("incumbent_runs", _now(), {"reason": crashes}))
                else:
                    self._revert(number, f"{crashes}, and the code kept since does not run")
                return
        raise TargetError(
            f"after {crashes} not even the baseline runs; look at the newest files in "
            f"{self.ledger.folder / 'logs'}, mend the machine, and go on with --resume"
        )

    def _revert(self, to: int, reason: str) -> None:
        self._append(Event("revert", _now(), {"to": to, "reason": reason}))
        self.workspace.advance(self._commit_of(self.position.incumbent))

    def _experiment(
        self, trial: int, commit: str, seed: int, log: str, purpose: str = "training"
    ) -> tuple[Outcome, float]:
        self._phase(purpose, trial)
        scratch = self.ledger.folder / "scratch" / log.removesuffix(".log")
        self.workspace.scratch(commit, scratch)
        try:
            self._seed(scratch / self.target.editable, seed)
            env = self.target.environment(self.settings.budget, seed)
            split: Split = "test" if purpose == final.PURPOSE else "audit"
            rival = self._rival() if trial and purpose == "training" else None
            path = self.ledger.folder / "logs" / log
            return self.runner.run(scratch, env, path, split, rival)
        finally:
            remove(scratch)

    def _rival(self) -> hopeless.Rival | None:
        """The incumbent's curve, if a trial is to be cut for lagging behind it."""
        outcome = self.position.incumbent.outcome
        if not self.settings.stop_hopeless or not isinstance(outcome, Scored):
            return None
        return hopeless.rival(outcome.measurements)

    def _seed(self, file: Path, seed: int) -> None:
        """Write the training seed into the copy that runs, if the target takes it as a knob."""
        kind, _, name = self.target.seed.partition(":")
        if kind == "knob" and name in knobs.read(source := file.read_bytes().decode()):
            file.write_bytes(knobs.write(source, {name: str(seed)}).encode())

    def _append(self, record: Record) -> None:
        self.ledger.append(record)
        self.position.add(record)
        for observer in self.observers:
            observer.record(record, self.position)

    def _phase(self, text: str, trial: int | None = None) -> None:
        for observer in self.observers:
            observer.phase(self.position.next_id if trial is None else trial, text)

    @staticmethod
    def _commit_of(trial: Trial) -> str:
        assert trial.commit is not None, f"trial {trial.id} was kept without a commit"
        return trial.commit


def _jsonable(values: dict[str, knobs.Value]) -> Json:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
