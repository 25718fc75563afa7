"""Begin or resume a run: from the flags to a loop that is ready to turn.

A new run folder appears whole or not at all. `run.toml` holds what is needed to repeat the run; a
resumed run reads it and takes from the command line only what does not change the experiment.
"""

import dataclasses
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import tomli_w

from loop import ahead, brains, flags, gpu, knobs, prices, strategies, target
from loop.brain import Brain
from loop.budget import Budget
from loop.caps import Caps
from loop.errors import AutoresearchError, LedgerError, TargetError, UsageError, choose
from loop.files import write_atomic
from loop.flags import flag
from loop.gpu import GPU
from loop.judge import Judge, Naive
from loop.ledger import LEDGER
from loop.noise_aware import NoiseAware
from loop.position import Settings
from loop.sandbox import SANDBOXES
from loop.strategies import experience
from loop.strategies.sampling import Sampling
from loop.strategy import Strategy
from loop.target import BUILT_IN, Target
from loop.trial import Json
from loop.workspace import Workspace

RUN_TOML = "run.toml"
LORA = "lora.gguf"
"""In the folder of an adapter that was exported as lora-gguf (docs/adapters.md)."""
JUDGES = ("noise-aware", "naive")
LEAST_FREE_MB = 200
_MAY_CHANGE = {
    *("trials", "resume", "repair", "sandbox", "wandb", "timeout", "memory_mb", "threads"),
    *("base_url", "out", "brain_timeout", "patience", "gpu"),
    *("final_seeds", "max_dollars", "max_tokens", "max_hours"),
}


@dataclass(frozen=True)
class RunArgs:
    """Run the loop: propose, train, keep or discard, and again."""

    out: Path = flag(help="folder of the run")
    brain: str = flag("", "provider:model, e.g. llamacpp:smollm2-135m; a control needs none")
    adapter: str = flag("", "of the brain: folder or GGUF of one exported as lora-gguf")
    strategy: str = flag("bare", f"one of: {', '.join([*strategies.ARMS, *strategies.CONTROLS])}")
    trials: int = flag(0, "how many beside the baseline; 0: until Ctrl-C")
    seed: int = flag(0, "of the proposals and of the training")
    target: Path = flag(BUILT_IN, "folder of the target")
    profile: str = flag("", "of the target, e.g. cpu, 24gb, h100")
    variant: str = flag("", "of the profile")
    start: str = flag("", "knobs that the baseline begins with, e.g. DEPTH=4,HEAD_DIM=16")
    budget: str = flag("", "of one experiment: 300s or 2e12flops; the profile's if left out")
    judge: str = flag("noise-aware", "what decides", choices=JUDGES)
    simplicity: bool = flag(False, "naive judge: also keep what is equal and simpler")
    noise_runs: int = flag(4, "runs of the baseline at the start that show the target's noise")
    replicates: int = flag(40, "most pairs of runs that confirm one candidate")
    error_rate: float = flag(0.05, "share of the kept changes that may be noise, 0 to 1")
    fresh_seeds: bool = flag(False, "train every trial on a seed of its own")
    sandbox: str = flag("auto", "around experiments", choices=SANDBOXES)
    timeout: float = flag(0.0, "seconds after which an experiment is killed; 0: the target's")
    memory_mb: int = flag(0, "an experiment's memory; 0: 80 %% of the machine")
    failsafe: str = flag(
        "incumbent", "after three crashes in a row", choices=("incumbent", "baseline")
    )
    temperature: float = flag(0.7, "of the brain")
    reply_tokens: int = flag(512, "of one reply, at most")
    think: bool = flag(False, "let a brain think that can")
    window: int = flag(0, "tokens a brain reads and writes at most; 0: its own")
    samples: int = flag(3, "votes of self_consistency")
    experience: str = flag("", "of few-shot arms and replay: file of moves and what they gained")
    share: float = flag(0.3, "of the trials in which hybrid asks its brain")
    threads: int = flag(0, "of an embedded brain; 0: all cores")
    base_url: str = flag("", "of an OpenAI-compatible server")
    brain_timeout: float = flag(0.0, "seconds for one answer of a server; 0: 600")
    patience: float = flag(3600.0, "seconds to wait for a brain's server that is down")
    gpu: str = flag("", "one GPU for brain and training: together or in turn", choices=GPU)
    max_dollars: float = flag(0.0, "stop the run then; 0: never")
    max_tokens: int = flag(0, "read and written; stop the run then; 0: never")
    max_hours: float = flag(0.0, "from now; stop the run then; 0: never")
    final_seeds: int = flag(3, "of the check on the untouched text at the end; 0: none")
    ahead: bool = flag(False, "make the next proposal while the experiment runs")
    stop_hopeless: bool = flag(False, "cut trials whose loss lags far behind the incumbent's")
    resume: bool = flag(False, "go on with the run in --out")
    repair: bool = flag(False, "with --resume: set corrupt ledger lines aside")
    wandb: str = flag("off", "also log there", choices=("off", "offline", "online"))

    def __post_init__(self) -> None:
        for name in (
            *("trials", "timeout", "memory_mb", "threads", "window", "brain_timeout", "patience"),
            *("max_dollars", "max_tokens", "max_hours"),
        ):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}, below 0")
        for name in ("noise_runs", "replicates"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        if not 0 < self.error_rate < 1:
            raise UsageError(f"--error-rate is {self.error_rate:g}, not between 0 and 1")


@dataclass(frozen=True)
class Prepared:
    """What the loop is composed of, beside its ledger. `said`: for the person who waits."""

    name: str
    args: RunArgs
    target: Target
    budget: Budget | None
    workspace: Workspace
    said: tuple[str, ...]


def prepare(args: RunArgs) -> Prepared:
    """Make the run folder of `args`, or open the one that is to be resumed.

    Raises UsageError, TargetError or LedgerError; a folder that could not be completed is gone.
    """
    if args.resume:
        return _reopen(args)
    if args.out.exists() and any(args.out.iterdir() if args.out.is_dir() else [args.out]):
        what = "a run" if (args.out / LEDGER).exists() else "not empty"
        raise UsageError(f"{args.out} is {what}; add --resume, or name another --out")
    return _create(args)


def strategy(args: RunArgs, used: int, brain: Brain | None = None) -> tuple[Strategy, Brain | None]:
    """The strategy of `args` and its brain, `used` replies into the run.

    `brain`: one that several runs share, instead of one of its own. Raises UsageError, BrainError.
    """
    choose("strategy", args.strategy, [*strategies.ARMS, *strategies.CONTROLS])
    brain = brain or connect(args, used)
    if brain is not None and args.max_dollars:
        prices.require(brain)
    if brain is not None and args.gpu == "swap":
        gpu.check_swap(brain)
    seen = experience.read(Path(args.experience)) if args.experience else ()
    built = strategies.build(args.strategy, brain, _sampling(args), seen)
    if args.ahead:
        ahead.check(built, args.gpu)
    return built, brain


def connect(args: RunArgs, used: int) -> Brain | None:
    """The brain of `args`; None for a control. Raises UsageError or BrainError."""
    if args.strategy in strategies.CONTROLS or not args.brain:
        return None
    return brains.connect(
        args.brain,
        start=used,
        adapter=_lora(args.adapter) if args.adapter else None,
        base_url=args.base_url or None,
        threads=args.threads or None,
        window=args.window or None,
        think=args.think,
        timeout=args.brain_timeout or None,
    )


def _lora(adapter: str) -> str:
    """The GGUF of an adapter: the one named, or what `adapters export` left in its folder."""
    folder = Path(adapter).expanduser()
    path = folder / LORA if folder.is_dir() else folder
    if not path.is_file():
        raise UsageError(
            f"--adapter: no file {path}; make it with: "
            f"autoresearch adapters export {folder} --to lora-gguf"
        )
    return str(path)


def _sampling(args: RunArgs) -> Sampling:
    return Sampling(args.temperature, args.reply_tokens, args.samples, args.share)


def judge(args: RunArgs, target_: Target, budget: Budget | None) -> Judge:
    """What decides; a budget of work gives the same result on a busy and on an idle machine."""
    if args.judge == "naive":
        return Naive(simplicity=args.simplicity)
    return NoiseAware(
        seed=args.seed,
        rate=args.error_rate,
        replicates=args.replicates,
        noise_runs=args.noise_runs,
        steady=budget is not None and budget.unit == "flops",
        seeded=target_.seed != "none",
    )


def settings(prepared: Prepared) -> Settings:
    """What the loop is asked to do."""
    args = prepared.args
    return Settings(
        run=prepared.name,
        seed=args.seed,
        trials=args.trials,
        budget=prepared.budget,
        failsafe=args.failsafe,
        caps=Caps(args.max_dollars, args.max_tokens, args.max_hours),
        patience=args.patience,
        fresh_seeds=args.fresh_seeds,
        final_seeds=args.final_seeds,
        stop_hopeless=args.stop_hopeless,
    )


def set_up(target_: Target, folder: Path) -> None:
    """Run the target's own preparation (fetching its data) outside the sandbox. TargetError."""
    if not target_.setup:
        return
    command = target.argv(target_.setup)
    env = {**_inherited(), **target_.environment(None, 0)}
    done = subprocess.run(command, cwd=folder, env=env, check=False, text=True, capture_output=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise TargetError(f"preparing the target failed ({' '.join(target_.setup)}): {said}")


def read_run_toml(folder: Path) -> Json:
    """What is recorded of the run in `folder`. Raises LedgerError."""
    import tomllib

    try:
        body = tomllib.loads((folder / RUN_TOML).read_text(encoding="utf-8"))
    except OSError as error:
        raise LedgerError(f"{folder} is not a run ({RUN_TOML}: {error.strerror})") from None
    except ValueError as error:
        raise LedgerError(f"{folder / RUN_TOML} is not TOML: {error}") from None
    return body


def _resumable(folder: Path) -> Json:
    """run.toml of a run of our own: an imported one cannot go on."""
    body = read_run_toml(folder)
    if lacking := {"name", "args", "target"} - set(body):
        raise LedgerError(
            f"{folder / RUN_TOML} lacks {', '.join(sorted(lacking))}: an imported run cannot be "
            "resumed, a damaged one must be restored first"
        )
    return body


def _create(args: RunArgs) -> Prepared:
    _check_room(args.out)
    found = _begun(target.load(args.target, args.profile, args.variant), args.start)
    if args.gpu == "share":
        gpu.check_share(found)
    budget = _budget(args, found)
    name = re.sub(r"[^\w-]+", "-", args.out.resolve().name).strip("-") or "run"  # git takes it
    fresh = not args.out.exists()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        space, said = Workspace.create(found.folder, args.out / "work", name, found.editable)
        found = dataclasses.replace(found, folder=space.folder)
        body = _run_toml(args, found, name, budget, space)
        write_atomic(args.out / RUN_TOML, tomli_w.dumps(body).encode())
        set_up(found, space.folder)
    except BaseException as error:
        shutil.rmtree(args.out / "work", ignore_errors=True)
        with suppress(OSError):
            (args.out / RUN_TOML).unlink()
        if fresh:
            shutil.rmtree(args.out, ignore_errors=True)
        if isinstance(error, OSError):
            raise AutoresearchError(
                f"cannot make {args.out}: {error.strerror}; make room or name another --out"
            ) from None
        raise
    return Prepared(name, args, found, budget, space, (said, *found.inferred, *_audit(found)))


def _begun(found: Target, start: str) -> Target:
    """`found` with the knobs of --start, which win over those of its profile."""
    changes: dict[str, str] = {}
    for pair in filter(None, start.split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        try:
            knobs.literal(value)
        except ValueError:
            equals = ""
        if not equals or name not in found.knobs:
            known = ", ".join(found.knobs) or "none: this target has no knobs"
            raise UsageError(f"--start: {pair!r} is not KNOB=value; knobs are {known}")
        changes[name] = value
    return dataclasses.replace(found, start=found.start | changes)


def _audit(found: Target) -> tuple[str, ...]:
    """What to know of the audit before a run."""
    if not found.audit:
        return ("no audit: the score is what the program says of itself (target.toml: audit)",)
    return (f"the audit is weak: {found.weak_audit}",) if found.weak_audit else ()


def recorded(args: RunArgs, argv: Sequence[str]) -> RunArgs:
    """`args` of a resumed run, completed by what is recorded of it.

    Raises LedgerError if there is no run, UsageError for a flag that would change the experiment.
    """
    recorded = _resumable(args.out)["args"]
    for name in flags.given(RunArgs, argv) - _MAY_CHANGE:
        if str(getattr(args, name)) != str(recorded.get(name)):
            raise UsageError(
                f"the run in {args.out} has --{name.replace('_', '-')} {recorded.get(name)}; leave "
                "the flag out, or begin another run"
            )
    hints = {f.name: f for f in dataclasses.fields(RunArgs)}
    kept = {k: Path(v) if k == "target" else v for k, v in recorded.items() if k in hints}
    changed = {k: getattr(args, k) for k in flags.given(RunArgs, argv) & _MAY_CHANGE}
    return RunArgs(**cast(dict[str, Any], kept | changed | {"out": args.out, "resume": True}))


def _reopen(args: RunArgs) -> Prepared:
    body = _resumable(args.out)
    if not (args.out / "work" / ".git").exists():
        raise LedgerError(f"{args.out / 'work'} is gone, and every commit with it; restore it")
    found = target.from_toml(body["target"])
    found = dataclasses.replace(found, folder=args.out / "work")
    set_up(found, found.folder)
    space = Workspace(args.out / "work", body["name"], found.editable)
    return Prepared(body["name"], args, found, _budget(args, found), space, ())


def _budget(args: RunArgs, found: Target) -> Budget | None:
    try:
        return Budget.parse(args.budget) if args.budget else found.budget
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_room(out: Path) -> None:
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    try:
        free = shutil.disk_usage(there).free // 2**20
    except OSError as error:
        raise AutoresearchError(f"cannot look at {there}: {error.strerror}") from None
    if free < LEAST_FREE_MB:
        raise AutoresearchError(
            f"only {free} MB are free at {there}, a run wants {LEAST_FREE_MB}; "
            "make room or name another --out"
        )


def _run_toml(
    args: RunArgs, found: Target, name: str, budget: Budget | None, space: Workspace
) -> Json:
    recorded = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {
        "name": name,
        "brain": _brain_name(args),
        "strategy": args.strategy,
        "seed": args.seed,
        "trials": args.trials,
        "profile": found.profile,
        "variant": found.variant,
        "budget": str(budget or ""),
        "judge": args.judge,
        "sandbox": args.sandbox,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_commit": space.head(),
        "args": recorded,
        "target": target.to_toml(found),
        "versions": _versions(),
    }


def _brain_name(args: RunArgs) -> str:
    """As reports call it: the adapter belongs to it."""
    if args.strategy in strategies.CONTROLS:
        return ""
    if not args.adapter:
        return args.brain
    path = Path(args.adapter)
    return f"{args.brain} + {(path.parent if path.suffix == '.gguf' else path).name}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("local-autoresearch", "torch", "xllamacpp", "gguf", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _inherited() -> dict[str, str]:
    """Setup is the target's own fixed code and needs the network's settings, but no key."""
    import os

    from loop.sandbox import keys_in_environment

    secret = set(keys_in_environment())
    return {key: value for key, value in os.environ.items() if key not in secret}
