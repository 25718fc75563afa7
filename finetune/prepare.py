"""What is to be done, checked: everything that can be wrong, before a weight is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import adapter, base, build, memory, rows
from finetune.recipe import METHODS, PRECISIONS, PRESETS, Recipe
from loop.errors import UsageError
from loop.flags import flag

Json = dict[str, Any]


@dataclass(frozen=True)
class FinetuneArgs:
    """Rows of a corpus -> an adapter for one strategy."""

    rows: Path = flag(help="a folder that collect --render wrote", positional=True)
    out: Path = flag(help="the adapter, a new folder")
    method: str = flag("sft", "how to learn", choices=METHODS)
    preset: str = flag("", "recipe; default by the machine", choices=tuple(PRESETS))
    base: str = flag("", "hub id, folder, .gguf or smollm2-135m; default: the preset's")
    precision: str = flag("", "of the frozen base; default: the preset's", choices=PRECISIONS)
    start: Path | None = flag(None, "an adapter to go on from; kto needs one, made by sft")
    strategy: str = flag("", "refuse rows of any other", choices=("menu", "bare", "pointwise"))
    epochs: float | None = flag(None, "instead of the recipe's")
    max_steps: int = flag(0, "stop after so many steps; 0: by epochs")
    learning_rate: float | None = flag(None, "instead of the recipe's")
    rank: int | None = flag(None, "of LoRA, alpha in proportion; instead of the recipe's")
    max_length: int | None = flag(None, "tokens of the longest row; instead of the recipe's")
    seed: int = flag(0, "of the adapter's start and the order of rows")
    held_out: str = flag("validation", "rows to judge by", choices=("validation", "test", "none"))
    held_out_rows: int = flag(32, "at most so many of them")
    replies: int = flag(8, "held-out prompts that the model answers itself")
    licence: str = flag("", "of the adapter; default: its base's")
    resume: bool = flag(False, "go on with an interrupted training")
    wandb: str = flag("off", "log to W&B", choices=("off", "offline", "online"))

    def __post_init__(self) -> None:
        numbers = (self.epochs, self.learning_rate, self.rank, self.max_length)
        if any(n is not None and n <= 0 for n in numbers) or self.max_steps < 0:
            raise UsageError("--epochs, --learning-rate, --rank and --max-length are above 0")
        if self.method == "kto" and self.start is None:
            raise UsageError("kto goes on from an adapter made by sft: --start ADAPTER")
        if self.start is not None and self.rank is not None:
            raise UsageError("--start brings its own rank: leave --rank out")
        if self.held_out_rows < 1 or self.replies < 0:
            raise UsageError("--held-out-rows is 1 or more, --replies 0 or more")


@dataclass(frozen=True)
class Work:
    """A training that can begin. `kto_weights`: of the two classes, empty for other methods."""

    args: FinetuneArgs
    recipe: Recipe
    rows: rows.Rows
    base: base.Base
    start: Json | None
    tokenizer: Any
    examples: build.Examples
    held_out: list[Json]
    kto_weights: Json

    @property
    def folder(self) -> Path:
        """Where checkpoints lie until the adapter is whole."""
        return self.args.out.with_name(f".{self.args.out.name}.training")


def prepare(args: FinetuneArgs, say: Callable[[str], None]) -> Work:
    """`args` -> Work, cheapest checks first. Raises UsageError and AutoresearchError."""
    found = rows.look(args.rows, args.method, args.strategy)
    train = rows.read(found, "train")
    weights = rows.kto_weights(train) if args.method == "kto" else {}
    held_out = [] if args.held_out == "none" else rows.read(found, args.held_out)
    recipe = _recipe(args)
    start = _start(args, found)
    where = base.find(recipe.base)
    if start is not None:
        if start["base"]["digest"] != where.digest:
            raise UsageError(
                f"{args.start} was trained on {start['base']['name']}, not on this {where.name}: "
                "name that with --base"
            )
        recipe = replace(recipe, rank=start["recipe"]["rank"], alpha=start["recipe"]["alpha"])
    tokenizer = base.tokenizer(where)
    build.check_template(tokenizer, where.name)
    examples = build.build(train, args.method, tokenizer, recipe.max_length)
    kind = base.device().partition(":")[0]
    needed = memory.estimate(where.folder, recipe, args.method, examples.longest, kind)
    free = memory.available(kind)
    memory.check(needed, free, recipe, examples.longest)
    say(
        f"{args.method} for {found.strategy} on {where.name} in {recipe.precision}: "
        f"{len(examples.kept):,} rows of up to {examples.longest:,} tokens, "
        f"{examples.supervised:,} tokens to learn"
    )
    if examples.left_out:
        say(f"! {len(examples.left_out):,} rows are longer than {recipe.max_length:,} tokens and "
             f"left out, such as {examples.left_out[0]}")  # fmt: skip
    say(f"memory: about {needed} of {free / memory.GB:.1f} GB free")
    return Work(args, recipe, found, where, start, tokenizer, examples,
                _thinned(held_out, args.held_out_rows), weights)  # fmt: skip


def _recipe(args: FinetuneArgs) -> Recipe:
    """The preset with what the command line changes."""
    import torch

    recipe = PRESETS[args.preset or ("4b-24gb" if torch.cuda.is_available() else "smollm2-cpu")]
    if args.base and "qwen3.5" in args.base.lower():
        recipe = replace(recipe, precision="bf16")  # its makers advise against 4 bits
    changes: Json = {
        "base": args.base or None, "precision": args.precision or None, "epochs": args.epochs,
        "rank": args.rank, "max_length": args.max_length,
        "alpha": args.rank and max(1, args.rank * recipe.alpha // recipe.rank),
    }  # fmt: skip
    recipe = replace(recipe, **{k: v for k, v in changes.items() if v is not None})
    rate = args.learning_rate
    return recipe if rate is None else recipe.with_rate(args.method, rate)


def _start(args: FinetuneArgs, found: rows.Rows) -> Json | None:
    if args.start is None:
        return None
    start = adapter.read(args.start)
    if start["strategy"] != found.strategy:
        raise UsageError(
            f"{args.start} was trained for {start['strategy']}, the rows are for "
            f"{found.strategy}: render them for the same strategy"
        )
    if args.method == "kto" and start["method"] != "sft":
        raise UsageError(f"{args.start} was made by {start['method']}: kto goes on from sft")
    return start


def _thinned(found: list[Json], most: int) -> list[Json]:
    """At most `most` rows, evenly from all: rows stand in an order that means something."""
    step = max(1.0, len(found) / most)
    return [found[int(i * step)] for i in range(min(most, len(found)))]
