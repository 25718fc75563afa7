"""What is being improved: a folder with one editable file, and `target.toml` that describes it.

target.toml (all paths relative to it; `?` marks what may be left out):

    name = "trainer"              ?  the folder's name
    editable = "train.py"
    command = ["{python}", "train.py"]
    setup = ["{python}", "prepare.py"]   ?  run once before the baseline, outside the sandbox
    audit = ["{python}", ...]            ?  see loop.audit; knows {split} and {folder}
    model = ["{python}", ...]            ?  the other end of its pipe
    imports = ["torch", ...]             ?  all that an edit may import (see loop.forbidden)
    warm = ["torch", ...]                ?  installed modules to import once for all (see loop.warm)
    instructions = "program.md"          ?
    seed = "env:NAME" | "knob:NAME" | "none"   ?  how it takes its training seed (none)
    timeout_s = 600                      ?
    smoke_s = 120                        ?  a try of two steps (AUTORESEARCH_SMOKE=1) comes first
    vram_mb = 12000                      ?  GPU memory a training may take, for --gpu share
    reads = ["~/.cache/x"]               ?  what an experiment may read outside its folder
    [metric]  name, direction = "min"|"max" ?, from = "stdout"|"result.json" ?
    [fixed]   "prepare.py" = "<sha256>"  ?  files that no edit may change
    [knobs]   NAME = [1, 2, 4] or {low, high, scale, step}   ?
    [profiles] cpu = "profiles/cpu.toml" ?

A profile overrides `timeout_s`, `smoke_s`, `budget`, `threads`, `vram_mb`, `[knobs]`, and holds
`[files]` (train, audit, test: what a box must see for each purpose), `[start]` (knob values that
replace the file's), `[variants.NAME]`, `weak_audit` (a sentence: what the audit of this text cannot
exclude) and `[data]` (the target's own affair).
"""

import dataclasses
import hashlib
import os
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop import knobs
from loop.budget import Budget
from loop.errors import TargetError, choose
from loop.knobs import Knob, Value
from loop.trial import Json

BUILT_IN = Path(__file__).parent.parent / "trainer"
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("name", "description", "editable", "instructions", "seed"), str),
    **dict.fromkeys(("budget", "text", "weak_audit"), str),
    **dict.fromkeys(("command", "setup", "reads", "audit", "model", "imports", "warm"), list),
    **dict.fromkeys(("metric", "fixed", "knobs", "profiles", "files", "start"), dict),
    **dict.fromkeys(("variants", "data"), dict),
    **dict.fromkeys(("timeout_s", "smoke_s", "threads", "vram_mb"), (int, float)),
}
TIMEOUT_S = 600.0  # Karpathy's program.md ends a run of a 300 s budget after ten minutes


@dataclass(frozen=True)
class Target:
    """A target as it will be run. `inferred`: one phrase for each thing nobody wrote down."""

    name: str
    folder: Path
    editable: str
    command: tuple[str, ...]
    metric: str
    direction: str = "min"
    metric_from: str = "stdout"
    instructions: str = ""
    fixed: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    audit: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    smoke_s: float = 0.0
    weak_audit: str = ""
    seed: str = "none"
    timeout_s: float = TIMEOUT_S
    budget: Budget | None = None
    threads: int = 0
    vram_mb: int = 0
    reads: tuple[str, ...] = ()
    audit_reads: tuple[str, ...] = ()
    test_reads: tuple[str, ...] = ()
    knobs: dict[str, Knob] = field(default_factory=dict)
    start: dict[str, str] = field(default_factory=dict)
    profile: str = ""
    variant: str = ""
    inferred: tuple[str, ...] = ()

    def environment(self, budget: Budget | None, seed: int) -> dict[str, str]:
        """What an experiment is told through its environment."""
        env = {"AUTORESEARCH_CACHE": str(cache_folder())}
        if self.profile:
            env |= {"AUTORESEARCH_PROFILE": self.profile, "AUTORESEARCH_VARIANT": self.variant}
        if budget is not None:
            env["AUTORESEARCH_BUDGET"] = str(budget)
        if self.threads:
            env |= {"AUTORESEARCH_THREADS": str(self.threads)}
            env |= {"OMP_NUM_THREADS": str(self.threads)}
        if self.seed.startswith("env:"):
            env[self.seed.removeprefix("env:")] = str(seed)
        return env

    def values(self, source: str) -> dict[str, Value]:
        """The knobs of `source`, its editable file, that have a space to move in."""
        if not self.knobs or not self.editable.endswith(".py"):
            return {}
        present = knobs.read(source)
        return {name: present[name] for name in self.knobs if name in present}


def cache_folder() -> Path:
    """Where texts and models are kept: $AUTORESEARCH_CACHE or ~/.cache/autoresearch."""
    return Path(os.environ.get("AUTORESEARCH_CACHE", "~/.cache/autoresearch")).expanduser()


def load(folder: Path, profile: str = "", variant: str = "") -> Target:
    """The target in `folder`, by its target.toml or by Karpathy's conventions.

    Raises TargetError for what cannot be understood, UsageError for an unknown profile or variant.
    """
    if not folder.is_dir():
        raise TargetError(f"no folder {folder}; name the folder of a target with --target")
    path = folder / "target.toml"
    if not path.exists():
        if profile or variant:
            raise TargetError(f"{folder} has no target.toml; leave out --profile and --variant")
        return infer(folder)
    spec = _read_toml(path)
    _check_kinds(path, spec)
    layer: Json = {}
    if names := spec.get("profiles", {}):
        profile = choose("profile", profile or next(iter(names)), list(names))
        layer = _read_toml(folder / str(names[profile]))
        _check_kinds(folder / str(names[profile]), layer)
        variants = layer.get("variants", {})
        if variants or variant:
            variant = choose("variant", variant or next(iter(variants), ""), list(variants))
            layer = _overlay(layer, variants[variant])
    elif profile or variant:
        raise TargetError(f"{path} has no profiles; leave out --profile and --variant")
    return _build(folder, path, _overlay(spec, layer), profile, variant)


def infer(folder: Path) -> Target:
    """A target that follows Karpathy's conventions and says nothing about itself.

    train.py is edited, prepare.py (and every other tracked file) is fixed, program.md instructs,
    and a line `val_bpb:` of the output is the metric. Raises TargetError if that cannot be.
    """
    if not (folder / "train.py").is_file():
        raise TargetError(
            f"{folder} has neither target.toml nor train.py; write a target.toml "
            "(see README, 'Your own target')"
        )
    said = ["no target.toml: train.py is edited", "the metric is the printed line val_bpb: (min)"]
    fixed = tuple(sorted(p.name for p in folder.glob("*.py") if p.name != "train.py"))
    if fixed:
        said.append(f"fixed: {', '.join(fixed)}")
    python = folder / ".venv" / "bin" / "python"
    command = (str(python.absolute()) if python.exists() else "{python}", "train.py")
    said.append(f"the command is {' '.join(command)}")
    train = folder / "train.py"
    spaces = knobs.infer(_knobs(train, _text(train)))
    said.append(f"{len(spaces)} knobs: numbers in ALL_CAPS, each may halve and double")
    said.append("no seed is known: only the machine's own noise can be seen")
    reads = tuple(str(p) for p in [Path("~/.cache/autoresearch").expanduser()] if p.exists())
    program = folder / "program.md"
    return Target(
        name=folder.resolve().name,
        folder=folder,
        editable="train.py",
        command=command,
        metric="val_bpb",
        instructions=_text(program) if program.exists() else "",
        fixed=fixed,
        reads=reads,
        knobs=spaces,
        inferred=tuple(said),
    )


def _build(folder: Path, path: Path, spec: Json, profile: str, variant: str) -> Target:
    _check_kinds(path, spec)
    editable = _need(path, spec, "editable", str)
    command = _need(path, spec, "command", list)
    metric = _need(path, spec, "metric", dict)
    name = _need(path, metric, "name", str)
    direction = choose("metric.direction", metric.get("direction", "min"), ["min", "max"])
    source_of = choose("metric.from", metric.get("from", "stdout"), ["stdout", "result.json"])
    for inside in (editable, *spec.get("fixed", {})):
        if Path(inside).is_absolute() or str(Path(inside)) != inside or ".." in Path(inside).parts:
            raise TargetError(f"{path}: {inside} is not a plain path inside the target's folder")
    source = _text(folder / editable)
    _verify(folder, path, spec.get("fixed", {}))
    instructions = spec.get("instructions", "")
    spaces = {key: knobs.parse(key, value) for key, value in spec.get("knobs", {}).items()}
    if editable.endswith(".py"):
        _check_spaces(folder / editable, source, spaces)
    if bool(spec.get("audit")) != bool(spec.get("model")):
        raise TargetError(f"{path}: audit and model are two ends of a pipe; write both or neither")
    files = spec.get("files", {})
    places = {"cache": str(cache_folder()), "text": str(spec.get("text", ""))}
    try:
        budget = Budget.parse(str(spec["budget"])) if "budget" in spec else None
    except ValueError as error:
        raise TargetError(f"{path}: {error}") from None
    return Target(
        name=spec.get("name", folder.resolve().name),
        folder=folder,
        editable=editable,
        command=tuple(command),
        metric=name,
        direction=direction,
        metric_from=source_of,
        instructions=_text(folder / instructions) if instructions else "",
        fixed=tuple(spec.get("fixed", {})),
        setup=tuple(spec.get("setup", ())),
        audit=tuple(spec.get("audit", ())),
        model=tuple(spec.get("model", ())),
        imports=tuple(spec.get("imports", ())),
        warm=tuple(spec.get("warm", ())),
        smoke_s=float(spec.get("smoke_s", 0.0)),
        weak_audit=spec.get("weak_audit", ""),
        seed=_seed(path, spec.get("seed", "none")),
        timeout_s=float(spec.get("timeout_s", TIMEOUT_S)),
        budget=budget,
        threads=int(spec.get("threads", 0)),
        vram_mb=int(spec.get("vram_mb", 0)),
        reads=_places(path, [*spec.get("reads", ()), *files.get("train", ())], places),
        audit_reads=_places(path, files.get("audit", ()), places),
        test_reads=_places(path, files.get("test", ()), places),
        knobs=spaces,
        start={key: repr(value) for key, value in spec.get("start", {}).items()},
        profile=profile,
        variant=variant,
    )


def argv(command: tuple[str, ...]) -> list[str]:
    """`command` with `{python}` replaced by this interpreter."""
    return [part.replace("{python}", sys.executable) for part in command]


def to_toml(target: Target) -> Json:
    """For run.toml: the target as understood, in values that TOML has."""
    body = {k: v for k, v in vars(target).items() if v not in ("", (), {}, None)}
    body |= {"folder": str(target.folder), "knobs": _plain(target.knobs)}
    if target.budget is not None:
        body["budget"] = str(target.budget)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in body.items()}


def from_toml(body: Json) -> Target:
    """The inverse of `to_toml`."""
    spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
    spec["folder"] = Path(body["folder"])
    spec["knobs"] = {k: knobs.parse(k, v) for k, v in body.get("knobs", {}).items()}
    if "budget" in body:
        spec["budget"] = Budget.parse(body["budget"])
    return Target(**spec)


def _plain(spaces: dict[str, Knob]) -> Json:
    return {
        name: {"choices": [list(c) if isinstance(c, tuple) else c for c in knob.choices]}
        if knob.choices
        else {k: v for k, v in dataclasses.asdict(knob).items() if k not in ("name", "choices")}
        for name, knob in spaces.items()
    }


def _read_toml(path: Path) -> Json:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise TargetError(f"cannot read {path}: {error.strerror}") from None


def _overlay(under: Json, over: Json) -> Json:
    """`over` laid on `under`, tables merged one level deep."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _need(path: Path, spec: Json, key: str, kind: type[Any]) -> Any:
    if not isinstance(spec.get(key), kind) or not spec[key]:
        raise TargetError(f"{path}: {key} is missing or not a {kind.__name__}")
    return spec[key]


def _seed(path: Path, seed: str) -> str:
    kind, _, name = seed.partition(":")
    if seed == "none" or (kind in ("env", "knob") and name):
        return seed
    raise TargetError(f"{path}: seed is '{seed}'; write env:NAME, knob:NAME or none")


def _verify(folder: Path, path: Path, fixed: dict[str, str]) -> None:
    for name, expected in fixed.items():
        try:
            actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise TargetError(f"{path}: fixed file {name}: {error.strerror}") from None
        if expected and actual != expected:
            raise TargetError(
                f"{path}: fixed file {name} has sha256 {actual}, not the one written there; "
                "restore the file, or write the new hash if you meant to change it"
            )


def _places(path: Path, paths: Any, places: dict[str, str]) -> tuple[str, ...]:
    try:
        return tuple(str(Path(str(p).format(**places)).expanduser()) for p in paths)
    except (KeyError, ValueError, IndexError):
        known = ", ".join(f"{{{name}}}" for name in places)
        raise TargetError(f"{path}: a path names a place that is not one of {known}") from None


def _check_kinds(path: Path, spec: Json) -> None:
    """Every key is known and holds the kind of value it should."""
    for key, value in spec.items():
        choose("key in target.toml", key, list(_KINDS))
        items = value if isinstance(value, list) else ()
        if not isinstance(value, _KINDS[key]) or not all(isinstance(item, str) for item in items):
            kinds = {list: "a list of strings", dict: "a table", str: "a string"}
            kind = kinds.get(_KINDS[key], "a number")
            raise TargetError(f"{path}: {key} is {value!r}, not {kind}")


def _check_spaces(path: Path, source: str, spaces: dict[str, Knob]) -> None:
    """The file parses, and a range belongs to a number."""
    for name, value in _knobs(path, source).items():
        if name in spaces and not spaces[name].choices and not isinstance(value, int | float):
            raise TargetError(f"knob {name}: its space is a range, its value in {path} {value!r}")


def _knobs(path: Path, source: str) -> dict[str, knobs.Value]:
    try:
        return knobs.read(source)
    except SyntaxError as error:
        raise TargetError(f"{path} line {error.lineno or '?'}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise TargetError(f"{path} is not Python: {error}") from None


def _text(path: Path) -> str:
    """Read as git has it: line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise TargetError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TargetError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
