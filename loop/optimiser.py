"""The optimiser of the arms `tpe` and `hybrid`: Optuna's TPE over the knobs of the target.

Its state is a function of the ledger: before each proposal a study is filled with every trial that
ran, also those that a brain proposed. A crash counts as a pruned trial, which TPE ranks last, so
that it learns to keep away. `StudyMirror` writes the same trials to `optuna.db` beside the ledger,
for Optuna's own tools (`optuna-dashboard sqlite:///RUN/optuna.db`).

Source: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; Optuna's TPESampler.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loop import knobs
from loop.context import State
from loop.knobs import Knob, Value
from loop.position import Position
from loop.target import Target
from loop.trial import Record, Rejected, Scored, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Values = dict[str, Value]


def propose(state: State) -> Values:
    """The next configuration that TPE would try, one value for each knob that has a space."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=state.seed)
    study = optuna.create_study(direction=_direction(state.target), sampler=sampler)
    study.add_trials([_frozen(t, state.target) for t in state.trials if _ran(t)])
    space = _space(state.target, state.values())
    drawn = study.ask(space).params
    return {name: _value(state.target.knobs[name], drawn[name]) for name in space}


def configuration(trial: Trial) -> Values:
    """The knob values of a trial's code: those of its incumbent, and what it changed."""
    changed = trial.proposal.edit.knobs if trial.proposal.edit else ()
    before = {name: _unlisted(value) for name, value in trial.context.knobs.items()}
    return before | {change.knob: knobs.literal(change.new) for change in changed}


class StudyMirror:
    """An Observer that keeps `optuna.db` in `folder` equal to the ledger's trials."""

    def __init__(self, folder: Path, target: Target) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._target = target
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder.absolute() / 'optuna.db'}",
            study_name=folder.resolve().name,
            direction=_direction(target),
            load_if_exists=True,
        )
        self._there = {t.user_attrs.get("trial") for t in self._study.get_trials(deepcopy=False)}

    def phase(self, trial: int, text: str) -> None:
        """A study has no use for phases."""

    def record(self, record: Record, position: Position) -> None:
        missing = [t for t in position.trials if _ran(t) and t.id not in self._there]
        self._study.add_trials([_frozen(trial, self._target) for trial in missing])
        self._there |= {trial.id for trial in missing}


def _ran(trial: Trial) -> bool:
    return not isinstance(trial.outcome, Rejected)


def _frozen(trial: Trial, target: Target) -> "FrozenTrial":
    """A trial as Optuna knows it; a value off its knob's ladder is left out."""
    import optuna

    values = configuration(trial)
    space = _space(target, values)
    params = {name: _coordinate(target.knobs[name], values[name]) for name in space}
    inside = {name: at for name, at in params.items() if at is not None}
    value = trial.outcome.metric.value if isinstance(trial.outcome, Scored) else None
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.PRUNED if value is None else states.COMPLETE,
        value=value,
        params=inside,
        distributions={name: space[name] for name in inside},
        user_attrs={"trial": trial.id, "values": {k: repr(v) for k, v in values.items()}},
    )


def _space(target: Target, values: Values) -> "dict[str, BaseDistribution]":
    """An ordered ladder of numbers is searched by its index: TPE then knows what is near."""
    from optuna import distributions as d

    space: dict[str, BaseDistribution] = {}
    for name in values:
        knob = target.knobs.get(name)
        if knob is None or f"knob:{name}" == target.seed:
            continue
        if _ordered(knob):
            space[name] = d.IntDistribution(0, len(knob.choices) - 1)
        elif knob.choices:
            space[name] = d.CategoricalDistribution([repr(choice) for choice in knob.choices])
        else:
            space[name] = d.FloatDistribution(knob.low, knob.high, log=knob.scale == "log")
    return space


def _coordinate(knob: Knob, value: Value) -> int | str | float | None:
    """Where `value` lies in the search space, None outside of it."""
    if knob.choices:
        if value not in knob.choices:
            return None
        return knob.choices.index(value) if _ordered(knob) else repr(value)
    assert isinstance(value, int | float), f"{knob.name} is a range, its value a {type(value)}"
    return float(value) if knob.low <= value <= knob.high else None


def _value(knob: Knob, at: Any) -> Value:
    """The inverse of `_coordinate`."""
    if _ordered(knob):
        return knob.choices[int(at)]
    if knob.choices:
        return next(choice for choice in knob.choices if repr(choice) == at)
    return float(f"{at:.3g}")


def _ordered(knob: Knob) -> bool:
    return bool(knob.choices) and all(isinstance(c, int | float) for c in knob.choices)


def _unlisted(value: Any) -> Value:
    found: Value = tuple(value) if isinstance(value, list) else value
    return found


def _direction(target: Target) -> Literal["minimize", "maximize"]:
    return "minimize" if target.direction == "min" else "maximize"
