"""What all our pages share: the template engine, the style sheet, and a policy that loads nothing.

Whatever a template prints is foreign until shown otherwise: it is escaped, in attributes as well,
and what hides is made visible (`eval.words.visible`). Our own files are let through as they are.
"""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import words
from loop.errors import AutoresearchError
from loop.files import write_atomic

if TYPE_CHECKING:
    from eval.live import Live

TEMPLATES = Path(__file__).parent / "templates"
FILTERS: dict[str, Callable[..., Any]] = {
    "measure": words.measure,
    "number": words.number,
    "signed": words.signed,
    "duration": words.duration,
    "listed": words.listed,
    "plain": words.plain,
    "count": words.count,
    "short": words.short,
    "percent": words.percent,
    "interval": words.interval,
    "fenced": words.fenced,
}


def html(
    template: str,
    styles: tuple[str, ...],
    tidy: Callable[[str], str],
    live: "Live | None" = None,
    **data: Any,
) -> str:
    """`template` filled with `data`; `tidy` is applied to every text before it is escaped.

    With `live` the page follows what it shows, by a script and under a policy that allows that
    script and nothing else. The same data give the same page.
    """
    from markupsafe import Markup

    style = "".join(map(_own, (*styles, *(("live.css",) if live else ()))))
    script = _own("live.js") if live else ""
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'"
    )
    if live:
        policy += f"; script-src '{_digest(script)}'; connect-src 'self'"
    ours = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}
    return _render(template, tidy, True, live=live, **ours, **data)


def markdown(template: str, tidy: Callable[[str], str], **data: Any) -> str:
    """`template` filled with `data` as Markdown. `tidy` is to disarm what stands in foreign text;
    what is in a fence (the filter `fenced`) is left as it is."""
    return _render(template, tidy, False, **data)


def write(path: Path, text: str) -> None:
    """Write `text`, whole or not at all. Raises AutoresearchError: it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise AutoresearchError(
            f"cannot write {path}: {error.strerror}; name another file with --out"
        ) from None


def _render(template: str, tidy: Callable[[str], str], escape: bool, **data: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,
        finalize=lambda value: tidy(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters |= FILTERS
    return env.get_template(template).render(**data)


def _own(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a content security policy calls an inline sheet or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
