"""Brains by name: `provider:model`. A provider's file is imported when it is asked for."""

import importlib
import inspect
from typing import Any, cast

from loop.brain import Brain
from loop.errors import UsageError, choose

PROVIDERS = {
    "llamacpp": "loop.brains.llamacpp:load",
    "scripted": "loop.brains.scripted:load",
    "ollama": "loop.brains.ollama:load",
    "openai": "loop.brains.openai_api:load",
    "anthropic": "loop.brains.anthropic_api:load",
}
"""Provider -> "module:factory". A factory takes the model's name and its own keyword options."""


def connect(name: str, *, start: int = 0, **options: Any) -> Brain:
    """`provider:model` -> a Brain that is ready to be asked.

    `options` go to the provider; None and False mean "not given", so that a command line can pass
    all of its flags. `start`: replies that a resumed run has already consumed, which only a brain
    that replays wants to know. Raises UsageError for an unknown provider or an option that the
    provider does not take, and BrainError when the model cannot be loaded or reached.
    """
    provider, _, model = name.partition(":")
    module, _, factory = PROVIDERS[choose("brain", provider, list(PROVIDERS))].partition(":")
    if not model:
        raise UsageError(f"brain '{name}' names no model: write {provider}:MODEL")
    load = getattr(importlib.import_module(module), factory)
    known = [p for p in inspect.signature(load).parameters if p != "model"]
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    for option in given:
        choose(f"option of {provider} brains", option, [p for p in known if p != "start"])
    if "start" in known:
        given["start"] = start
    return cast(Brain, load(model, **given))
