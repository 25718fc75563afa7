"""Peak memory and speed of a training step: the recipe `4b-24gb` against trl's plain defaults.

    python benchmarks/finetune_gpu.py                   4B shape, random weights, one CUDA card
    python benchmarks/finetune_gpu.py --tiny            the same on a CPU, to see that it runs
    python benchmarks/finetune_gpu.py --base smollm2-135m --preset smollm2-cpu --lengths 248

Random weights of the published shape take the memory and the time of trained ones, and need no hub.
The process is capped (--cap) as a smaller card would cap it; what does not fit says so. Seconds of
the processor stand beside those of the clock, for machines that do other things as well.
"""

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from finetune import base, memory, trainer
from finetune.recipe import PRESETS, Recipe

QWEN3_4B = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "tie_word_embeddings": True, "max_position_embeddings": 40960,
}  # fmt: skip
"""Source: config.json of Qwen/Qwen3-4B."""
TINY = QWEN3_4B | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
                   "num_hidden_layers": 2, "num_attention_heads": 4,
                   "num_key_value_heads": 2}  # fmt: skip
ANSWER = 64
"""Tokens of an example that are learned from, as in rows for `menu`."""


def build(folder: Path, shape: dict[str, Any]) -> base.Base:
    """A model of `shape` with random weights, and a tokenizer of bytes, in `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    with torch.device(base.device()):
        config = Qwen3Config(**shape)
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, eos_token="<e>", pad_token="<e>"
    )
    tokenizer.save_pretrained(folder)
    return base.Base("random", folder, "", "")


def measure(
    where: base.Base, recipe: Recipe, plain: bool, length: int, steps: int, cap: float
) -> dict[str, Any]:
    """One training of `steps` optimiser steps after one to warm up, at `length` tokens a row."""
    import torch
    from datasets import Dataset

    cuda = torch.cuda.is_available()
    model = base.load(where, recipe.precision)
    needed = memory.of_model(model, recipe, "sft", length, "cuda" if cuda else "cpu")
    config = trainer.options(recipe, "sft", 0)
    if plain:
        kept = ("max_length", "use_cpu", "disable_tqdm", "include_num_input_tokens_seen")
        config = {name: config[name] for name in kept}
    clock = Clock()
    config |= {"output_dir": tempfile.mkdtemp(), "save_strategy": "no", "report_to": "none",
               "max_steps": steps + 1}  # fmt: skip
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(256, min(vocabulary, 100_000), (64, length), generator=generator).tolist()
    learned = length if plain else min(ANSWER, length - 1)
    mask = [0] * (length - learned) + [1] * learned
    examples = Dataset.from_dict({"input_ids": ids, "completion_mask": [mask] * len(ids)})
    from peft import LoraConfig

    adapted = LoraConfig(task_type="CAUSAL_LM") if plain else trainer.lora(recipe)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    made = trainer.make(
        "sft", config, model, adapted, examples, base.tokenizer(where), [clock.callback()]
    )
    batch = made.args.per_device_train_batch_size * made.args.gradient_accumulation_steps
    found: dict[str, Any] = {
        "recipe": "plain trl" if plain else "ours", "precision": recipe.precision,
        "length": length, "examples_a_step": batch, "estimate_gb": round(needed.total / 1e9, 2),
    }  # fmt: skip
    try:
        made.train()
    except RuntimeError as error:  # torch's own out-of-memory error is one
        if "out of memory" not in str(error):
            raise
        return found | {"peak_gb": f"does not fit {cap:g} GB"}
    tokens = batch * length * steps
    peak = torch.cuda.max_memory_reserved() if cuda else 1024 * resource.getrusage(0).ru_maxrss
    return found | {
        "peak_gb": round(peak / 1e9, 2),
        "tokens_per_second": round(tokens / clock.wall, 1),
        "tokens_per_processor_second": round(tokens / clock.processor, 1),
    }


class Clock:
    """Seconds from the end of the first step to the end of the last, of the clock and of us."""

    wall = processor = 0.0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Timing(TrainerCallback):  # type: ignore[misc,unused-ignore]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                now = time.perf_counter(), time.process_time()
                if state.global_step == 1:
                    self.began = now
                clock.wall, clock.processor = (a - b for a, b in zip(now, self.began, strict=True))

        return Timing()


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers")
    parser.add_argument("--base", default="", help="a real base instead of random weights")
    parser.add_argument("--preset", default="4b-24gb", choices=tuple(PRESETS))
    parser.add_argument("--precisions", default="nf4,bf16")
    parser.add_argument("--lengths", default="4096,8192", help="tokens a row")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cap", type=float, default=22.0, help="GB that this process may use")
    parser.add_argument("--no-plain", action="store_true", help="leave out trl's defaults")
    args = parser.parse_args()
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.cap * 1e9 / total))
    elif not (args.tiny or args.base):
        sys.exit("no CUDA device: --tiny runs on a CPU, --base MODEL measures a small one there")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "cap_gb": args.cap}))
    with tempfile.TemporaryDirectory() as place:
        shape = TINY if args.tiny else QWEN3_4B
        where = base.find(args.base) if args.base else build(Path(place), shape)
        lengths = [128] if args.tiny else [int(n) for n in args.lengths.split(",")]
        for length in lengths:
            for precision in args.precisions.split(","):
                recipe = replace(PRESETS[args.preset], precision=precision)
                print(json.dumps(measure(where, recipe, False, length, args.steps, args.cap)))
                sys.stdout.flush()
                gc.collect()
            if not args.no_plain:
                recipe = replace(PRESETS[args.preset], precision="bf16")
                print(json.dumps(measure(where, recipe, True, length, args.steps, args.cap)))
                gc.collect()


if __name__ == "__main__":
    main()
