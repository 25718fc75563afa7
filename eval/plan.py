"""The plan of a comparison: `plan.toml` -> Plan, fixed by its hash before the first trial.

An example (paths are relative to the file; `?` marks what may be left out):

    seeds = 8                     # 0 to 7; or a list. A pair of arms shares its training seed
    pilot_seeds = 2               # ? further seeds, run first: they choose the best prompting arm
                                  #   and tell the noise, and decide nothing else
    trials = 40                   # of each run, beside the baseline
    target = "path/of/a/target"   # ? the built-in one
    profile = "cpu"               # ? the target's first
    variant = "kjv"               # ? the profile's first
    budget = "2e11flops"          # ? of one experiment; the profile's
    judge = "noise-aware"         # ? or "naive"
    final_seeds = 3               # ? fresh seeds of each run's final check
    runner = "boxed"              # ? or "forked": edits of knobs alone, on the built-in target
                                  #   under a FLOPs budget, measured once and shared between arms

    [primary]                     # the one contrast that decides, and what would matter
    endpoint = "final"            # ? final: the incumbent on fresh seeds and untouched text;
                                  #   best: the best score kept; auc: the mean of best-so-far
    contrast = ["adapter", "best prompting arm"]     # or two arms: the first against the second
    smallest_effect = 0.01        # the least gain worth having, in the metric's unit

    [[arms]]
    name = "menu"
    brain = "llamacpp:smollm2-135m"
    strategy = "menu"
    temperature = 0.7             # ? and window, reply_tokens, samples, base_url, experience: as
                                  #   for `run`

    [[arms]]
    name = "adapter"
    brain = "llamacpp:smollm2-135m"
    strategy = "menu"
    adapter = "adapters/menu"     # folder that finetune wrote and `adapters export` completed
    role = "adapter"              # ? control, prompting, adapter or frontier; else guessed from
                                  #   the strategy, the adapter and the provider

    [[arms]]
    name = "random_edit"
    strategy = "random_edit"

All arms share the target, the budget and the judge: a plan has them once.
"""

import dataclasses
import hashlib
import json
import math
import re
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from loop import strategies
from loop.brains.models import sha256
from loop.budget import Budget
from loop.errors import AutoresearchError, UsageError, choose
from loop.files import write_atomic
from loop.start import JUDGES, LORA
from loop.target import BUILT_IN
from loop.trial import Json, RecordError, from_json, to_json

Role = Literal["control", "prompting", "adapter", "frontier"]
Endpoint = Literal["final", "best", "auc"]
BEST_PROMPTING = "best prompting arm"
FORKABLE = (
    *("menu", "few_shot", "pointwise", "pointwise_few_shot", "hybrid"),
    *("replay", "random_search", "random_edit", "tpe"),
)
"""Strategies whose edits move knobs and nothing else."""
FRONTIER = ("anthropic", "openai")
"""Providers that are taken for the frontier where an arm does not say its role."""
RECORD = "plan.json"


@dataclass(frozen=True)
class Arm:
    """A (brain, strategy) pair under a name. `adapter`, `experience`: a folder and a file, as
    written in the plan; "": none."""

    name: str
    strategy: str
    role: Role
    brain: str = ""
    adapter: str = ""
    experience: str = ""
    base_url: str = ""
    window: int = 0
    reply_tokens: int = 512
    temperature: float = 0.7
    samples: int = 3


@dataclass(frozen=True)
class Primary:
    """The contrast that decides: `arm` against `against` (an arm's name or BEST_PROMPTING).

    `smallest_effect`: the least gain worth having, in the metric's unit, above 0.
    """

    arm: str
    against: str
    smallest_effect: float
    endpoint: Endpoint = "final"


@dataclass(frozen=True)
class Plan:
    """Arms x seeds, all from the same code. `pilot_seeds` are no `seeds`; `target` "": built in."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    trials: int
    primary: Primary
    pilot_seeds: tuple[int, ...] = ()
    target: str = ""
    profile: str = ""
    variant: str = ""
    budget: str = ""
    judge: str = "noise-aware"
    final_seeds: int = 3
    runner: Literal["boxed", "forked"] = "boxed"
    title: str = ""

    def arm(self, name: str) -> Arm:
        """The arm of that name. Raises UsageError."""
        choose("arm", name, [arm.name for arm in self.arms])
        return next(arm for arm in self.arms if arm.name == name)

    def of(self, *roles: Role) -> tuple[str, ...]:
        """Names of the arms that have one of `roles`, in the plan's order."""
        return tuple(arm.name for arm in self.arms if arm.role in roles)

    @property
    def hash(self) -> str:
        """sha256 of what the plan says: comments, layout and the order of keys aside."""
        text = json.dumps(to_json(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Amendment:
    """The plan was changed `at`, after `trials` trials were on the disk (baselines aside).

    `changes`: a phrase for each entry that differs, e.g. `trials: 30 -> 40`.
    """

    at: str
    why: str
    before: str
    after: str
    changes: tuple[str, ...]
    trials: int


@dataclass(frozen=True)
class Fixed:
    """What is written down before the first trial. `at`: when; `hash`: of `plan` as it was then,
    unlike `plan` and `text`, which are the latest. `adapters`, `experience`: arm -> sha256 of the
    file that is served, or shown."""

    plan: Plan
    hash: str
    at: str
    text: str
    adapters: dict[str, str]
    experience: dict[str, str]
    amendments: tuple[Amendment, ...] = ()


def read(path: Path) -> tuple[Plan, str]:
    """The plan in the file, and its text. Raises UsageError: one line, what and where."""
    try:
        text = path.read_text(encoding="utf-8")
        return parse(tomllib.loads(text)), text
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise UsageError(f"{path} is not TOML: {error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def parse(body: Json) -> Plan:
    """The parsed TOML as a Plan. Raises UsageError."""
    known = {field.name for field in dataclasses.fields(Plan)}
    _check_keys("", body, known, needed=("arms", "seeds", "trials", "primary"))
    seeds = _seeds("seeds", body["seeds"], 0)
    pilot = _seeds("pilot_seeds", body.get("pilot_seeds", 0), max(seeds) + 1)
    if not isinstance(body["arms"], list):
        raise UsageError("arms: write each arm as a table [[arms]]")
    entries = body | {
        "seeds": seeds,
        "pilot_seeds": pilot,
        "arms": [_arm(entry) for entry in body["arms"]],
        "primary": _primary(body["primary"]),
    }
    try:
        plan: Plan = from_json(Plan, _filled(Plan, entries), "plan")
    except RecordError as error:
        raise UsageError(str(error)) from None
    _check(plan)
    return plan


def asked(plan: Plan, arm: Arm, seed: int) -> Json:
    """What the plan says of one run, as the fields of `loop.start.RunArgs`; paths aside."""
    said = {
        **{key: getattr(arm, key) for key in ("strategy", "brain", "base_url", "window")},
        **{key: getattr(arm, key) for key in ("reply_tokens", "temperature", "samples")},
        **{key: getattr(plan, key) for key in ("trials", "profile", "variant", "budget", "judge")},
    }
    return said | {"seed": seed, "final_seeds": plan.final_seeds}


def served(arm: Arm, base: Path) -> tuple[str, Path | None]:
    """(brain, GGUF LoRA to put on it) that an arm asks; `base`: what its paths are relative to.

    A folder with both forms serves the LoRA, which loses nothing to rounding. Raises UsageError.
    """
    if not arm.adapter:
        return arm.brain, None
    folder = base / Path(arm.adapter).expanduser()
    if (lora := folder / LORA).is_file():
        return arm.brain, lora
    if (merged := folder / "merged.gguf").is_file():
        return f"llamacpp:{merged}", None
    what = f"has no {LORA} or merged.gguf" if folder.is_dir() else "is not there"
    raise UsageError(
        f"arm {arm.name}: the adapter {arm.adapter} {what}; make it with "
        f"`autoresearch adapters export {arm.adapter} --to lora-gguf`"
    )


def fix(plan: Plan, text: str, base: Path, out: Path, *, amend: str = "", trials: int = 0) -> Fixed:
    """Write the plan down in `out` before its first trial, or find it written there.

    A plan (or an adapter) that differs from what is written is refused, unless `amend` says why;
    then that is written down too, with `trials`, how many were done by then. Raises UsageError.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    adapters = {arm.name: _digest(_weights(arm, base)) for arm in plan.arms if arm.adapter}
    experience = {arm.name: _digest(base / arm.experience) for arm in plan.arms if arm.experience}
    new = Fixed(plan, plan.hash, now, text, adapters, experience)
    if not (out / RECORD).exists():
        return _write(out, new)
    old = fixed(out)
    changes = _changes(to_json(old.plan), to_json(plan))
    changes += _replaced("adapter", old.adapters, adapters)
    changes += _replaced("experience", old.experience, experience)
    if not changes:
        return old
    if not amend.strip():
        raise UsageError(
            f"the plan was fixed on {old.at} and differs now ({'; '.join(changes)}): put it back, "
            'name another --out, or say why with --amend "..."'
        )
    amendment = Amendment(now, amend.strip(), old.plan.hash, plan.hash, tuple(changes), trials)
    amendments = (*old.amendments, amendment)
    return _write(out, dataclasses.replace(new, hash=old.hash, at=old.at, amendments=amendments))


def fixed(out: Path) -> Fixed:
    """What is written down in `out`. Raises UsageError: no plan was executed there."""
    try:
        body = json.loads((out / RECORD).read_text(encoding="utf-8"))
        found: Fixed = from_json(Fixed, body, RECORD)
    except OSError as error:
        raise UsageError(f"{out} holds no plan ({RECORD}: {error.strerror})") from None
    except ValueError as error:  # JSONDecodeError, RecordError
        raise UsageError(f"{out / RECORD} cannot be understood: {error}") from None
    return found


def _write(out: Path, record: Fixed) -> Fixed:
    try:
        out.mkdir(parents=True, exist_ok=True)
        body = json.dumps(to_json(record), indent=1, ensure_ascii=False)
        write_atomic(out / RECORD, body.encode())
    except OSError as error:
        raise AutoresearchError(
            f"cannot write {out / RECORD}: {error.strerror}; name another --out"
        ) from None
    return record


def _weights(arm: Arm, base: Path) -> Path:
    brain, lora = served(arm, base)
    return lora or Path(brain.partition(":")[2])


def _digest(path: Path) -> str:
    """sha256 of a file that an arm depends on, so that another one in its place is noticed."""
    try:
        return sha256(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _replaced(what: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [f"{what} of {arm}: another file" for arm, digest in new.items()
            if old.get(arm, digest) != digest]  # fmt: skip


def _changes(old: Json, new: Json, where: str = "") -> list[str]:
    """A phrase for each entry of two tables that differs; arms are known by name."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        at = f"{where}{key}"
        if key not in old or key not in new:
            found.append(f"{at} {'added' if key in new else 'removed'}")
            continue
        was, now = old[key], new[key]
        if key == "arms" and was != now:
            named = [{arm["name"]: arm for arm in arms} for arms in (was, now)]
            found += _changes(named[0], named[1], "arm ") or ["the order of the arms"]
        elif isinstance(was, dict) and isinstance(now, dict):
            found += _changes(was, now, f"{at}.")
        elif was != now:
            found.append(f"{at}: {_said(was)} -> {_said(now)}")
    return found


def _said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value != "" else "none"


def _check_keys(
    where: str, body: Any, known: typing.Iterable[str], needed: Sequence[str] = ()
) -> None:
    if not isinstance(body, dict):
        raise UsageError(f"{where or 'the plan'} is {body!r}, not a table")
    at = f" of {where}" if where else ""
    for key in body:
        choose(f"entry{at}", key, list(known))
    if lacking := [key for key in needed if key not in body]:
        raise UsageError(f"{where or 'the plan'} lacks {', '.join(lacking)}")


def _seeds(name: str, value: Any, first: int) -> list[int]:
    """A list as it is; a count as the numbers from `first`."""
    found = list(range(first, first + value)) if type(value) is int else value
    if not isinstance(found, list) or any(type(seed) is not int or seed < 0 for seed in found):
        raise UsageError(f"{name} is {value!r}: write how many, or a list of numbers from 0 on")
    if name == "seeds" and not found:
        raise UsageError("seeds: a plan needs one or more")
    if twice := sorted({seed for seed in found if found.count(seed) > 1}):
        raise UsageError(f"{name}: {', '.join(map(str, twice))} stands there twice")
    return found


def _arm(body: Any) -> Json:
    known = [field.name for field in dataclasses.fields(Arm)]
    name = body.get("name", "") if isinstance(body, dict) else ""
    where = f"arm {name}" if name else "an arm"
    _check_keys(where, body, known, needed=("name", "strategy"))
    guess = "prompting"
    if body["strategy"] in strategies.CONTROLS:
        guess = "control"
    elif body.get("adapter"):
        guess = "adapter"
    elif str(body.get("brain", "")).partition(":")[0] in FRONTIER and not body.get("base_url"):
        guess = "frontier"
    return _filled(Arm, {"role": guess} | body)


def _primary(body: Any) -> Json:
    _check_keys("[primary]", body, ("endpoint", "contrast", "smallest_effect"),
                needed=("contrast", "smallest_effect"))  # fmt: skip
    contrast = body["contrast"]
    if not isinstance(contrast, list) or len(contrast) != 2:
        raise UsageError(f"[primary] contrast is {contrast!r}: write [arm, arm it is held against]")
    rest = {key: value for key, value in body.items() if key != "contrast"}
    return _filled(Primary, rest | {"arm": contrast[0], "against": contrast[1]})


def _filled(kind: type[Any], body: Json) -> Json:
    """`body` with the defaults of the dataclass `kind`; whole numbers where fractions may stand."""
    hints = typing.get_type_hints(kind)
    defaults = {f.name: f.default for f in dataclasses.fields(kind)
                if f.default is not dataclasses.MISSING}  # fmt: skip
    filled = {key: to_json(value) for key, value in defaults.items()} | body
    return {
        key: float(value) if hints[key] is float and type(value) is int else value
        for key, value in filled.items()
    }


def _check(plan: Plan) -> None:
    """Whatever the types do not say. Raises UsageError."""
    if len(plan.arms) < 2:
        raise UsageError("a plan compares: write two [[arms]] or more")
    for arm in plan.arms:
        _check_arm(arm)
    _check_twice(plan.arms)
    if plan.trials < 1:
        raise UsageError(f"trials is {plan.trials}, below 1")
    if plan.final_seeds < 0:
        raise UsageError(f"final_seeds is {plan.final_seeds}, below 0")
    if both := sorted(set(plan.seeds) & set(plan.pilot_seeds)):
        raise UsageError(f"{', '.join(map(str, both))} stands in seeds and in pilot_seeds")
    choose("judge", plan.judge, list(JUDGES))
    try:
        budget = Budget.parse(plan.budget) if plan.budget else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if plan.runner == "forked":
        _check_forked(plan, budget)
    _check_primary(plan)


def _check_arm(arm: Arm) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", arm.name):
        raise UsageError(f"arm {arm.name!r}: a name is letters, digits, '_', '-' and '.'")
    choose(f"strategy of arm {arm.name}:", arm.strategy,
           [*strategies.ARMS, *strategies.CONTROLS])  # fmt: skip
    if arm.strategy in strategies.CONTROLS and (arm.brain or arm.adapter):
        raise UsageError(f"arm {arm.name}: {arm.strategy} is a control and asks no brain")
    if arm.strategy in strategies.ARMS and not arm.brain:
        raise UsageError(f"arm {arm.name}: {arm.strategy} asks a brain; write brain = ...")
    if arm.adapter and not arm.brain.startswith("llamacpp:"):
        raise UsageError(
            f"arm {arm.name}: an adapter folder is served by llamacpp, not by {arm.brain}; for a "
            'model on another server name that and write role = "adapter"'
        )
    if arm.role == "adapter" and arm.strategy in strategies.CONTROLS:
        raise UsageError(f"arm {arm.name}: a control has no adapter")


def _check_twice(arms: Sequence[Arm]) -> None:
    seen: dict[Arm, str] = {}
    names: set[str] = set()
    for arm in arms:
        if arm.name in names:
            raise UsageError(f"arm {arm.name} stands there twice")
        names.add(arm.name)
        same = dataclasses.replace(arm, name="", role="control")
        if other := seen.get(same):
            raise UsageError(f"arms {other} and {arm.name} are the same arm under two names")
        seen[same] = arm.name


def _check_forked(plan: Plan, budget: Budget | None) -> None:
    if plan.target and Path(plan.target).resolve() != BUILT_IN:
        raise UsageError('runner = "forked" is for the built-in target; write runner = "boxed"')
    if budget is None or budget.unit != "flops":
        raise UsageError('runner = "forked" needs a budget in FLOPs, e.g. budget = "1e11flops"')
    for arm in plan.arms:
        if arm.strategy not in FORKABLE:
            raise UsageError(
                f"arm {arm.name}: {arm.strategy} may edit anything, which needs a box: write "
                f'runner = "boxed" (forked is for {", ".join(FORKABLE)})'
            )


def _check_primary(plan: Plan) -> None:
    primary, names = plan.primary, [arm.name for arm in plan.arms]
    choose("arm of [primary] contrast:", primary.arm, names)
    choose("arm of [primary] contrast:", primary.against, [*names, BEST_PROMPTING])
    if primary.arm == primary.against:
        raise UsageError(f"[primary] contrast holds {primary.arm} against itself")
    if primary.against == BEST_PROMPTING:
        rivals = [name for name in plan.of("prompting") if name != primary.arm]
        if not rivals:
            raise UsageError(f"[primary] contrast: no arm prompts, so there is no {BEST_PROMPTING}")
        if len(rivals) > 1 and not plan.pilot_seeds:
            raise UsageError(
                f"the {BEST_PROMPTING} of {', '.join(rivals)} is chosen on seeds that decide "
                "nothing: write pilot_seeds = 2 or more"
            )
    if not (math.isfinite(primary.smallest_effect) and primary.smallest_effect > 0):
        raise UsageError(f"[primary] smallest_effect is {primary.smallest_effect:g}, not above 0")
    if primary.endpoint == "final" and not plan.final_seeds:
        raise UsageError('[primary] endpoint "final" needs final_seeds of 1 or more')


def target_folder(plan: Plan, base: Path) -> Path:
    """The folder of the plan's target; `base`: what its paths are relative to."""
    return base / Path(plan.target).expanduser() if plan.target else BUILT_IN
