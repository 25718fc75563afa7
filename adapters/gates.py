"""The gates between training and serving: what is served must be what was trained.

a  effect     (served with adapter - served base) is (torch with adapter - torch base), in
              log-probabilities, for the adapter and for a random one that is heavy on q and k
b  prompt     the rendered prompt is the training prompt, token by token
c  alive      the served adapter differs from the served base, unless it is zero in torch too
d  versions   what took part is recent enough, and the base is the one that was adapted
"""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import Base
from adapters.peft_folder import CONFIG, WEIGHTS, Adapter, read
from loop.trial import Json

Write = Callable[[Adapter, Base, Path], None]
Array = NDArray[np.float32]

PROBABLE = 1e-3
"""Tokens count where torch gives them at least this, with or without the adapter: the tail of a
distribution has no say in what is sampled and most of the rounding."""

ROUNDING, SHARE = 0.2, 0.15
"""Root mean square of the error allowed, in nats: ROUNDING + SHARE * that of the change. llama.cpp
rounds activations to 8 bits and a merge rounds weights (figures: docs/adapters.md); a missing
permutation or a wrong scale gives errors as large as the change itself."""

TILT, SIGMAS = 0.1, 3.0
"""The slope of the served on the trained change may be off 1 by TILT and SIGMAS standard errors."""

QK, OTHER = 0.5, 0.05
"""The random adapter's size, as shares of the weights' own root mean square."""

NEEDED = {"torch": "2.11", "transformers": "5.17", "peft": "0.17", "gguf": "0.17", "xllamacpp": ""}

CONVERSATIONS: tuple[tuple[list[Json], str], ...] = (
    ([{"role": "user", "content": "Which knob should change?\n\n1. DEPTH = 2\n2. WIDTH = 64\n"}],
     '{"move": 2}'),
    ([{"role": "system", "content": "You improve a training script."},
      {"role": "user", "content": "val_bpb 1.2345 -> 1.2001. Answer with one line, KNOB = value."}],
     "LR = 0.0123"),
    ([{"role": "user", "content": "The capital of France is"}], "Paris."),
    ([{"role": "user", "content": "def rms(x):\n\treturn (x**2).mean() ** 0.5\n\nWhat is 12 * 3?"},
      {"role": "assistant", "content": "36"},
      {"role": "user", "content": "  And 144 / 12?  "}],
     "12"),
    ([{"role": "user", "content": "Grüße, naïve 你好 🎉 — it's \"quoted\" <tag> & 50%\r\nend"}],
     "Hello"),
)  # fmt: skip
"""(conversation, beginning of an answer): what a loop says, and what tokenizers stumble over."""

TOP = 20
"""Likely tokens that are compared with a server that gives no more."""

ANSWERED = 3
"""Tokens of each answer after which the next one is asked for, beside the first."""


@dataclass(frozen=True)
class Gate:
    """What one gate found. `passed` None: it could not be measured, and `said` tells why."""

    name: str
    passed: bool | None
    said: str
    figures: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What an adapter changes, in nats: [prompts, vocabulary] each, and which entries count."""

    served: Array
    torch: Array
    counts: NDArray[np.bool_]

    @property
    def slope(self) -> tuple[float, float]:
        """What is served of a nat that torch changes, by least squares, and its standard error
        (tokens of one prompt share their errors, so prompts are what is counted). NaN: no change.

        Rounding averages out here, so a wrong scale shows even where the change is as small."""
        torch = np.where(self.counts, self.torch, 0.0).astype(np.float64)
        total = np.sum(torch**2)
        if not total:
            return float("nan"), float("nan")
        slope = np.sum(torch * self.served, where=self.counts) / total
        rest = np.sum(torch * (self.served - slope * torch), axis=1, where=self.counts)
        return float(slope), float(np.sqrt(np.sum(rest**2)) / total)

    @property
    def error(self) -> float:
        return rms((self.served - self.torch)[self.counts])

    @property
    def size(self) -> float:
        return rms(self.torch[self.counts])

    @property
    def size_served(self) -> float:
        return rms(self.served[self.counts])


def rms(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def check(
    adapter: Adapter, base: Base, write: Write, model: Path, lora: bool, scratch: Path
) -> list[Gate]:
    """All gates of a file made of `adapter` by `write`, served by the embedded llama.cpp.

    `model`: that file, a GGUF LoRA if `lora`, else a merged model. `scratch`: an empty path beside
    it, for the random adapter. Raises AutoresearchError where something does not load.
    """
    from adapters.served import serve
    from adapters.trained import Rendering, Trained

    with serve(base, base.path) as engine:
        rendering = prompt_gate(
            engine.render, engine.tokens, Rendering(adapter.path, adapter.card, base)
        )
        prompts = positions(engine.render, engine.tokens)
        plain = np.stack([engine.logprobs(ids) for ids in prompts])

    trained = Trained(base)
    torch_plain = trained.logprobs(prompts)

    def change(folder: Path, file: Path) -> Change:
        with serve(base, *((base.path, file) if lora else (file,))) as engine:
            served = np.stack([engine.logprobs(ids) for ids in prompts])
        with_it = trained.logprobs(prompts, folder)
        counts = np.maximum(torch_plain, with_it) > np.log(PROBABLE)
        return Change(served - plain, with_it - torch_plain, counts)

    own = change(adapter.path, model)
    random = scratch.with_name(f"{scratch.stem}.random")
    random_file = scratch.with_name(f"{scratch.stem}.random.gguf")
    try:
        random_adapter(adapter, base, random)
        write(read(random), base, random_file)
        other = change(random, random_file)
    finally:
        random_file.unlink(missing_ok=True)
        shutil.rmtree(random, ignore_errors=True)
    return [
        effect_gate("a effect", own),
        effect_gate("a effect of a random q/k adapter", other),
        rendering,
        alive_gate(own, adapter.is_zero),
        versions_gate(adapter, base),
    ]


def positions(
    render: Callable[[Sequence[Json]], str], tokens: Callable[[str], list[int]]
) -> list[list[int]]:
    """Token ids of every prompt of the fixed set, each also with the beginning of an answer."""
    prompts = []
    for messages, answer in CONVERSATIONS:
        asked, whole = tokens(render(messages)), tokens(render(messages) + answer)
        ends = range(len(asked), min(len(asked) + ANSWERED, len(whole)) + 1)
        prompts += [whole[:end] for end in ends]
    return prompts


def effect_gate(name: str, change: Change) -> Gate:
    """a: what the adapter changes in serving is what it changes in torch."""
    allowed = ROUNDING + SHARE * change.size
    slope, spread = change.slope
    figures = {
        "error": change.error, "allowed": allowed, "torch": change.size,
        "served": change.size_served, "slope": slope, "slope_error": spread,
        "n": int(change.counts.sum()),
    }  # fmt: skip
    said = (
        f"changes {change.size:.3f} nat in torch, {change.size_served:.3f} served; error "
        f"{change.error:.3f} of {allowed:.3f} allowed (rms, n = {figures['n']}); slope {slope:.2f} "
        f"+- {spread:.2f}"
    )
    off = abs(slope - 1) > TILT + SIGMAS * spread
    return Gate(name, change.error <= allowed and not off, said, figures)


def prompt_gate(
    render: Callable[[Sequence[Json]], str], tokens: Callable[[str], list[int]], rendering: Any
) -> Gate:
    """b: the same tokens, in serving and in training, for every conversation."""
    for number, (messages, _) in enumerate(CONVERSATIONS):
        there, here = tokens(render(messages)), rendering.tokens(rendering.render(messages))
        if there != here:
            pairs = zip(there, here, strict=False)
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(there), len(here)))
            said = (
                f"conversation {number} differs from token {at} on: served {there[at : at + 4]}, "
                f"trained {here[at : at + 4]}"
            )
            return Gate("b prompt", False, said)
    return Gate("b prompt", True, f"{len(CONVERSATIONS)} conversations, the same tokens")


def alive_gate(change: Change, zero: bool) -> Gate:
    """c: the adapter does something where it should, and nothing where it should not."""
    figures = {"served": change.size_served, "torch": change.size}
    if zero:
        passed, said = change.size_served < ROUNDING, "zero in torch, so served like the base"
    else:
        passed = change.size_served > max(1e-3, change.size / 2)
        said = f"served {change.size_served:.3f} nat from the base, {change.size:.3f} in torch"
    return Gate("c alive", passed, said, figures)


def ollama_effect_gate(
    told: Callable[[str], dict[str, float] | None],
    expected: Callable[[str, int], dict[str, float]],
    render: Callable[[Sequence[Json]], str],
) -> Gate:
    """a, second link: Ollama's top log-probabilities are those of the file that was checked. The
    two run the same arithmetic, so that ROUNDING alone is allowed."""
    errors: list[float] = []
    name = "a effect (Ollama)"
    for messages, _ in CONVERSATIONS:
        prompt = render(messages)
        if (top := told(prompt)) is None:
            return Gate(name, None, "not measured: this Ollama tells no log-probabilities")
        top = {text: value for text, value in top.items() if readable(text)}
        known = expected(prompt, 10 * TOP)
        errors += [value - known[text] for text, value in top.items() if text in known]
        if len(top.keys() & known.keys()) < len(top) / 2:
            return Gate(name, False, f"other tokens are likely: {', '.join(map(repr, top))[:120]}")
    if not errors:
        return Gate(name, None, "not measured: no likely token is text")
    error = rms(np.array(errors, np.float32))
    said = f"error {error:.3f} of {ROUNDING:.3f} nat allowed (rms, n = {len(errors)})"
    return Gate(name, error <= ROUNDING, said, {"error": error, "n": len(errors)})


def readable(text: str) -> bool:
    """Whether a token can be told by its text: pieces of a character all look the same."""
    return bool(text) and "\ufffd" not in text


def ollama_prompt_gate(
    render: Callable[[Sequence[Json]], str | None],
    tokens: Callable[[str], list[int]],
    rendering: Any,
) -> Gate:
    """b, second link: what Ollama renders is the training prompt, token by token."""
    name, rendered = "b prompt (Ollama)", {}
    for messages, _ in CONVERSATIONS:
        if (prompt := render(messages)) is None:
            return Gate(name, None, "not measured: this Ollama does not show its prompts")
        rendered[json.dumps(messages)] = prompt
    return replace(prompt_gate(lambda m: rendered[json.dumps(m)], tokens, rendering), name=name)


def versions_gate(adapter: Adapter, base: Base) -> Gate:
    """d: packages recent enough; the base has the digest that was adapted, if that was a GGUF."""
    here = {name: metadata.version(name) for name in NEEDED}
    old = [
        f"{n} {here[n]} < {least}" for n, least in NEEDED.items() if number(here[n]) < number(least)
    ]
    config = json.loads((adapter.path / CONFIG).read_text(encoding="utf-8"))
    trained_by = str(config.get("peft_version") or "0").split("@")[0]
    if number(trained_by)[:2] > number(here["peft"])[:2]:
        old.append(f"peft {here['peft']} < {trained_by}, which wrote the adapter")
    said = ", ".join(old) or ", ".join(f"{name} {version}" for name, version in here.items())
    return Gate("d versions", not old, said, dict(here) | {"base": base.digest})


def number(version: str) -> tuple[int, ...]:
    """`0.34.1-rc0` -> (0, 34, 1), to be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def random_adapter(like: Adapter, base: Base, folder: Path) -> None:
    """Write a PEFT folder with random pairs on q, k and the MLP's last layer of every block.

    Rank 8, the same seed always, sizes relative to the weights: it moves log-probabilities so much
    that rounding does not matter, and mostly by way of q and k.
    """
    from gguf import quants
    from safetensors.numpy import save_file

    rank, generator, weights = 8, np.random.default_rng(0), {}
    parts = {
        "self_attn.q_proj": ("attn_q", QK),
        "self_attn.k_proj": ("attn_k", QK),
        "mlp.down_proj": ("ffn_down", OTHER),
    }
    for block in range(base.blocks):
        for module, (name, share) in parts.items():
            tensor = base.tensors.get(f"blk.{block}.{name}.weight")
            if tensor is None:  # a block with another kind of attention
                continue
            inner, outer = (int(length) for length in tensor.shape)
            size = rms(quants.dequantize(tensor.data, tensor.tensor_type)) * share / rank**0.5
            stem = f"base_model.model.model.layers.{block}.{module}"
            a, b = (
                generator.standard_normal((rank, inner)),
                generator.standard_normal((outer, rank)),
            )
            weights[f"{stem}.lora_A.weight"] = a.astype(np.float32)
            weights[f"{stem}.lora_B.weight"] = (b * size).astype(np.float32)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank,
        "target_modules": [module.rpartition(".")[2] for module in parts],
        "base_model_name_or_path": base.name, "bias": "none", "inference_mode": True,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / "adapter.toml").write_bytes((like.path / "adapter.toml").read_bytes())
