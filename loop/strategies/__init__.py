"""The strategies by name: the arms that ask a brain, and the controls that do not."""

from collections.abc import Sequence
from importlib import import_module
from typing import cast

from loop.brain import Brain
from loop.errors import UsageError, choose
from loop.strategies.experience import Experience
from loop.strategies.sampling import Sampling
from loop.strategy import Strategy

ARMS = {
    "bare": "loop.strategies.bare:Bare",
    "cot": "loop.strategies.cot:Cot",
    "re2": "loop.strategies.re2:Re2",
    "re2_cot": "loop.strategies.cot:Re2Cot",
    "self_consistency": "loop.strategies.self_consistency:SelfConsistency",
    "hybrid": "loop.strategies.hybrid:Hybrid",
    "menu": "loop.strategies.menu:Menu",
    "few_shot": "loop.strategies.few_shot:FewShot",
    "pointwise": "loop.strategies.pointwise:Pointwise",
    "pointwise_few_shot": "loop.strategies.pointwise:PointwiseFewShot",
}
CONTROLS = {
    "random_search": "loop.strategies.random_search:RandomSearch",
    "random_edit": "loop.strategies.random_edit:RandomEdit",
    "tpe": "loop.strategies.tpe:Tpe",
    "no_effect": "loop.strategies.no_effect:NoEffect",
    "replay": "loop.strategies.replay:Replay",
}
EXPERIENCED = ("few_shot", "pointwise_few_shot", "replay")
"""Those that are given what moves gained elsewhere."""


def build(
    name: str, brain: Brain | None, sampling: Sampling, experience: Sequence[Experience] = ()
) -> Strategy:
    """The strategy `name`, asking `brain` if it is one that asks. Raises UsageError."""
    choose("strategy", name, [*ARMS, *CONTROLS])
    module, _, cls = (ARMS | CONTROLS)[name].partition(":")
    factory = getattr(import_module(module), cls)
    more = (experience,) if name in EXPERIENCED else ()
    if more and not experience:
        raise UsageError(f"strategy '{name}' repeats what helped elsewhere: --experience FILE")
    if name in CONTROLS:
        return cast(Strategy, factory(*more))
    if brain is None:
        raise UsageError(f"strategy '{name}' asks a brain; name one with --brain provider:model")
    return cast(Strategy, factory(brain, sampling, *more))
