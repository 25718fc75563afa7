"""Flags of a verb from its frozen dataclass: one field, one flag, its type and its help.

A field made with `flag(default, "help")` becomes `--field-name`; one with `positional=True` an
argument. Standard library only; every room may use it.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from loop.errors import AutoresearchError

T = TypeVar("T")
_REQUIRED: Any = object()


def flag(
    default: Any = _REQUIRED,
    help: str = "",
    *,
    choices: Sequence[str] = (),
    positional: bool = False,
) -> Any:
    """A dataclass field that knows how to be a flag."""
    metadata = {"help": help, "choices": choices, "positional": positional}
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(verb: str, kind: type[T], argv: Sequence[str]) -> T:
    """`argv` as an instance of the dataclass `kind`. Exits with status 2 on wrong usage."""
    assert dataclasses.is_dataclass(kind)
    parser = _Parser(
        f"autoresearch {verb}", description=(kind.__doc__ or "").strip(), allow_abbrev=False
    )
    hints = typing.get_type_hints(kind)
    for spec in dataclasses.fields(kind):
        _add(parser, spec, hints[spec.name])
    try:
        return kind(**vars(parser.parse_args(argv)))
    except AutoresearchError as error:  # a check in the dataclass's own __post_init__
        parser.error(str(error))


def given(kind: type[Any], argv: Sequence[str]) -> set[str]:
    """The fields of `kind` that `argv` names, whatever their values."""
    names = {part.partition("=")[0] for part in argv if part.startswith("--")}
    return {f.name for f in dataclasses.fields(kind) if f"--{f.name.replace('_', '-')}" in names}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; the usage is for those who ask."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _add(parser: argparse.ArgumentParser, spec: dataclasses.Field[Any], hint: Any) -> None:
    options: dict[str, Any] = {"help": spec.metadata.get("help", "")}
    required = spec.default is dataclasses.MISSING
    if choices := spec.metadata.get("choices"):
        options["choices"] = choices
    many, kind = _element(hint)
    if spec.metadata.get("positional"):
        if many:
            options["nargs"] = "+" if required else "*"
        elif not required:
            options["nargs"] = "?"
        if not required:
            options["default"] = spec.default
        parser.add_argument(spec.name, type=kind, **options)
        return
    name = f"--{spec.name.replace('_', '-')}"
    if kind is bool:
        parser.add_argument(name, action="store_true", **options)
        return
    if not required:
        options["default"] = spec.default
        if spec.default not in ("", None, ()):
            options["help"] += f" ({str(spec.default).replace('%', '%%')})"
    options["metavar"] = "|".join(filter(None, choices)) if choices else spec.name.upper()
    parser.add_argument(name, type=kind, required=required, **options)


def _element(hint: Any) -> tuple[bool, Any]:
    """(is it a tuple, type of one element) of an annotation; `X | None` counts as X."""
    if typing.get_origin(hint) is tuple:
        return True, typing.get_args(hint)[0]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return False, next(a for a in typing.get_args(hint) if a is not type(None))
    return False, hint
