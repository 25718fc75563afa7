"""An adapter -> a file or an Ollama model, which appears only after its gates have passed."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from adapters import chatml, gates, lora_gguf, merge
from adapters.base import OLLAMA, Base, open_base, token
from adapters.gates import Gate
from adapters.ollama import Server, parameters
from adapters.peft_folder import WEIGHTS, Adapter
from adapters.publish import unfinished
from loop.brains import models
from loop.errors import AutoresearchError, UsageError
from loop.files import write_atomic
from loop.trial import Json

FORMS: dict[str, tuple[gates.Write, bool]] = {
    "lora-gguf": (lora_gguf.write, True),
    "merged-gguf": (merge.write, False),
}
"""Name of a file's form -> its writer, and whether it needs its base beside it."""
RECORD = "exports.jsonl"
WINDOW = 8192

Told = Callable[[Gate], None]


def base_of(adapter: Adapter, name: str = "") -> Base:
    """The served base called `name`, else the one that the adapter names. Raises UsageError where
    that is no GGUF, AutoresearchError where it is not the one that was adapted."""
    card = adapter.card
    was_gguf = card.base in models.WHEELS or card.base.endswith(".gguf")
    if not name and not was_gguf:
        raise UsageError(
            f"{adapter.path} adapts {card.base}, which is no GGUF: name the one that is served, "
            f"--base FILE.gguf or --base {OLLAMA}MODEL"
        )
    base = open_base(name or card.base)
    if was_gguf and card.base_digest and card.base_digest != base.digest:
        raise AutoresearchError(
            f"{adapter.path} adapts {card.base} ({card.base_digest[:12]}), not {base.path} "
            f"({base.digest[:12]}): name that one with --base, or train on this one"
        )
    return base


def check(adapter: Adapter, base: Base, form: str, told: Told) -> None:
    """Make `form` in a scratch file and tell every gate. Raises AutoresearchError: one failed."""
    with _scratch(adapter.path) as file:
        _make(adapter, base, form, file, told, unchecked=False)


def to_file(
    adapter: Adapter, base: Base, form: str, out: Path, told: Told, *, unchecked: bool = False
) -> None:
    """Write `out` in `form`. What was there stays until every gate has passed."""
    with unfinished(out) as beside:
        found = _make(adapter, base, form, beside, told, unchecked=unchecked)
    _record(adapter, form, str(out), models.sha256(out), found)


def to_ollama(
    adapter: Adapter,
    base: Base,
    model: str,
    told: Told,
    *,
    form: str = "merged-gguf",
    template: str = "",
    window: int | None = None,
    unchecked: bool = False,
) -> None:
    """Have Ollama serve the adapter as `model`. A model of that name is replaced at the end, at
    once; raises AutoresearchError before that, if anything is wrong."""
    server = Server()
    if FORMS[form][1] and not server.takes_adapters():
        raise AutoresearchError(
            f"Ollama {server.version} serves no GGUF LoRA (0.30.0 to 0.34.0 do): export the merged "
            "form"
        )
    with _scratch(adapter.path) as file:
        found = _make(adapter, base, form, file, told, unchecked=unchecked)
        parts = _parts(server, base, form, file, template, window)
        with server.replacing(model) as side:
            server.create(side, **parts)
            if not unchecked:
                found += _all_passed(_ask_ollama(server, side, adapter, base, form, file), told)
        _record(adapter, f"ollama {server.version}, {form}", model, models.sha256(file), found)


def check_ollama(adapter: Adapter, base: Base, model: str, form: str, told: Told) -> None:
    """Tell the gates of a model that Ollama serves. Raises AutoresearchError: one failed."""
    server = Server()
    server.shown(model)
    with _scratch(adapter.path) as file:
        _make(adapter, base, form, file, told, unchecked=False)
        _all_passed(_ask_ollama(server, model, adapter, base, form, file), told)


def recorded(folder: Path) -> list[Json]:
    """The exports of an adapter, oldest first."""
    try:
        lines = (folder / RECORD).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise AutoresearchError(
            f"cannot read {folder / RECORD} ({error}): remove it; it only lists exports"
        ) from None


def _make(
    adapter: Adapter, base: Base, form: str, file: Path, told: Told, *, unchecked: bool
) -> list[Gate]:
    write, lora = FORMS[form]
    write(adapter, base, file)
    if unchecked:
        told(Gate("all", None, "not measured: --unchecked"))
        return []
    return _all_passed(gates.check(adapter, base, write, file, lora, file), told)


def _all_passed(found: Sequence[Gate], told: Told) -> list[Gate]:
    for gate in found:
        told(gate)
    if failed := [gate.name for gate in found if gate.passed is False]:
        raise AutoresearchError(
            f"gate failed: {', '.join(failed)}; nothing was exported, and what was served before "
            "still is"
        )
    return list(found)


def _ask_ollama(
    server: Server, model: str, adapter: Adapter, base: Base, form: str, file: Path
) -> list[Gate]:
    """The gates of the second link: what Ollama serves is what the embedded llama.cpp serves."""
    from adapters.served import serve
    from adapters.trained import Rendering

    lora = FORMS[form][1]
    rendering = Rendering(adapter.path, adapter.card, base)
    with serve(base, *((base.path, file) if lora else (file,))) as engine:
        return [
            gates.ollama_effect_gate(
                lambda prompt: server.logprobs(model, prompt),
                lambda prompt, most: engine.texts(engine.tokens(prompt), most),
                rendering.render,
            ),
            gates.ollama_prompt_gate(
                lambda messages: server.render(model, messages), engine.tokens, rendering
            ),
            Gate("d versions (Ollama)", True, f"Ollama {server.version}"),
        ]


def _parts(
    server: Server, base: Base, form: str, file: Path, template: str, window: int | None
) -> Json:
    """What Ollama's `create` is told."""
    shown: Json = {}
    digest = server.send(file)
    if base.name.startswith(OLLAMA):
        shown = server.shown(base.name.removeprefix(OLLAMA))
    if not FORMS[form][1]:
        parts: Json = {"files": {"model.gguf": digest}}
    elif shown:
        parts = {"from_": base.name.removeprefix(OLLAMA), "adapters": {"adapter.gguf": digest}}
    else:
        held = server.send(base.path)
        parts = {"files": {"model.gguf": held}, "adapters": {"adapter.gguf": digest}}
    template = template or str(shown.get("template") or "") or (_chatml(base) or "")
    settings = parameters(shown) | {"num_ctx": window or min(WINDOW, base.window)}
    if stop := list(settings.get("stop") or chatml.stops(template, token(base, "eos"))):
        settings["stop"] = stop
    texts = {"template": template, "system": str(shown.get("system") or "")}
    return parts | {"parameters": settings} | {k: text for k, text in texts.items() if text}


def _chatml(base: Base) -> str | None:
    from adapters.served import serve

    with serve(base, base.path) as engine:
        return chatml.from_rendering(engine.render([{"role": "user", "content": chatml.PROBE}]))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A file beside the adapter that is gone afterwards."""
    path = folder / f".scratch.{os.getpid()}.gguf"
    try:
        yield path
    except OSError as error:
        raise AutoresearchError(
            f"cannot write into {folder}: {error.strerror or error}; make room there"
        ) from None
    finally:
        path.unlink(missing_ok=True)


def _record(adapter: Adapter, form: str, where: str, digest: str, found: Sequence[Gate]) -> None:
    line = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "form": form,
        "where": where,
        "sha256": digest,
        "weights": hashlib.sha256((adapter.path / WEIGHTS).read_bytes()).hexdigest(),
        "gates": {gate.name: gate.figures | {"said": gate.said} for gate in found},
    }
    before = "".join(json.dumps(known) + "\n" for known in recorded(adapter.path))
    write_atomic(adapter.path / RECORD, (before + json.dumps(line) + "\n").encode())
