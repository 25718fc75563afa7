"""`autoresearch adapters export|check|list`: serve an adapter, prove it, see what there is."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters import export, peft_folder
from adapters.gates import Gate
from loop import flags
from loop.errors import AutoresearchError, UsageError, choose, ending
from loop.flags import flag

KINDS = ("lora-gguf", "merged-gguf", "ollama")
FORMS = {"merged": "merged-gguf", "adapter": "lora-gguf"}
BASE_HELP = "the GGUF that is served: a file, an embedded model's name, or ollama:MODEL"
MARK = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "yellow")}


@dataclass(frozen=True)
class ExportArgs:
    """Put an adapter where llama.cpp or Ollama can serve it, once its gates have passed."""

    adapter: Path = flag(help="folder that finetune wrote", positional=True)
    to: str = flag("merged-gguf", "what to make", choices=KINDS)
    base: str = flag("", BASE_HELP)
    out: Path | None = flag(None, "file to write (default: in the adapter's folder)")
    name: str = flag("", "the model's name in Ollama (default: that of the folder)")
    form: str = flag("merged", "what Ollama is given", choices=tuple(FORMS))
    window: int | None = flag(None, "num_ctx in Ollama, in tokens (default: 8192, or the base's)")
    template: Path | None = flag(None, "Ollama template to use instead of the base's")
    unchecked: bool = flag(False, "skip the gates: nothing then says that it is what was trained")

    def __post_init__(self) -> None:
        if self.out is not None and self.to == "ollama":
            raise UsageError("--out is for files: an Ollama model has a --name")
        if self.name and self.to != "ollama":
            raise UsageError(f"--name is for --to ollama: {self.to} has an --out")
        if self.form == "adapter" and self.to != "ollama":
            raise UsageError("--form is for --to ollama: write --to lora-gguf for the file")


@dataclass(frozen=True)
class CheckArgs:
    """Prove that what is served is what was trained; writes nothing."""

    adapter: Path = flag(help="folder that finetune wrote", positional=True)
    to: str = flag("merged-gguf", "which form; ollama: the model that is there", choices=KINDS)
    base: str = flag("", BASE_HELP)
    name: str = flag("", "the model's name in Ollama (default: that of the folder)")
    form: str = flag("merged", "what Ollama was given", choices=tuple(FORMS))


@dataclass(frozen=True)
class ListArgs:
    """The adapters below some folders, and what was exported of them."""

    folders: tuple[Path, ...] = flag((Path(),), "where to look (here)", positional=True)


def run(argv: Sequence[str]) -> int:
    """The verb `adapters`. Raises AutoresearchError."""
    if not argv or argv[0] in ("-h", "--help"):
        print("autoresearch adapters export|check|list [--help]")
        return 0 if argv else 2
    verbs = {"export": _export, "check": _check, "list": _list}
    verbs[choose("verb of adapters", argv[0], list(verbs))](argv[1:])
    return 0


def _export(argv: Sequence[str]) -> None:
    args = flags.parse("adapters export", ExportArgs, argv)
    template = _text(args.template) if args.template else ""
    adapter = peft_folder.read(args.adapter)
    base = export.base_of(adapter, args.base)
    console = Console(highlight=False)
    if args.to == "ollama":
        name = args.name or _name(args.adapter)
        export.to_ollama(
            adapter, base, name, _teller(console), form=FORMS[args.form], template=template,
            window=args.window, unchecked=args.unchecked,
        )  # fmt: skip
        console.print(f"served: ollama:{name}", markup=False)
        return
    out = args.out or args.adapter / f"{args.to.partition('-')[0]}.gguf"
    export.to_file(adapter, base, args.to, out, _teller(console), unchecked=args.unchecked)
    console.print(f"written: {out}", markup=False, soft_wrap=True)


def _check(argv: Sequence[str]) -> None:
    args = flags.parse("adapters check", CheckArgs, argv)
    adapter = peft_folder.read(args.adapter)
    base = export.base_of(adapter, args.base)
    tell = _teller(Console(highlight=False))
    if args.to == "ollama":
        name = args.name or _name(args.adapter)
        export.check_ollama(adapter, base, name, FORMS[args.form], tell)
    else:
        export.check(adapter, base, args.to, tell)


def _list(argv: Sequence[str]) -> None:
    args = flags.parse("adapters list", ListArgs, argv)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("adapter", "base", "strategy", "rank", "licence", "exports"):
        table.add_column(title, overflow="fold")
    cards = [path for root in args.folders for path in sorted(root.rglob(peft_folder.CARD))]
    for path in cards:
        folder = path.parent
        try:
            card, (rank, _) = peft_folder.read_card(folder), peft_folder.read_config(folder)
            made = [f"{line['form']}: {line['where']}" for line in export.recorded(folder)]
            cells = (card.base, card.strategy, str(rank), card.licence, "\n".join(made) or "none")
        except AutoresearchError as error:
            cells = ("-", "-", "-", "-", str(error))
        table.add_row(*map(Text, (str(folder), *cells)))
    Console().print(table if cards else "no adapters here; autoresearch finetune makes one")


def _teller(console: Console) -> export.Told:
    def tell(gate: Gate) -> None:
        mark, style = MARK[gate.passed]
        console.print(
            Text.assemble((f"{mark:6s} ", style), f"{gate.name}: {gate.said}"), soft_wrap=True
        )

    return tell


def _name(folder: Path) -> str:
    return folder.resolve().name.lower()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the template {path}: {error}") from None


if __name__ == "__main__":
    sys.exit(ending(run, sys.argv[1:]))
