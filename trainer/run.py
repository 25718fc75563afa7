"""The experiment as train.py sees it: batches until the budget is spent, then the result.

    run = Run()
    for x, y in run.batches(sequences):   # [sequences, seq_len] int64, on run.device
        ...one optimiser step; run.progress in [0, 1] drives a schedule...
        run.log(loss)
    run.finish(model, depth)

Fixed: it owns the budget, the data and the evaluation.
"""

# mypy: allow-untyped-calls

import contextlib
import copy
import json
import os
import resource
import secrets
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from evaluate import bits_per_byte
from flops import FlopCounter
from settings import read_settings
from tokens import read_manifest, read_rows, replacing

RECOUNT_EVERY = 32  # steps, on average; a model that changes is charged for what it became
CURVE_POINTS = 20
IMPORTED = time.perf_counter()


class Run:
    """One experiment: `device`, `vocab_size`, `seq_len`, and `progress` in [0, 1]."""

    def __init__(self) -> None:
        self.settings = read_settings()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        torch.manual_seed(self.settings.seed)
        torch.set_float32_matmul_precision("high")
        if self.settings.smoke:
            torch.compiler.set_stance("force_eager")
        self.manifest = read_manifest(self.settings.folder)
        self.vocab_size = self.manifest.vocab_size
        self.seq_len = self.settings.seq_len
        self.flops = self.steps = self.tokens = 0
        self.seconds = 0.0
        self.uncounted: list[float] = []  # CPU seconds of the steps whose work was taken on trust
        self.curve: list[tuple[float, float]] = []

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        budget = self.settings.budget
        spent = self.flops if budget.unit == "flops" else self.seconds
        return min(1.0, spent / budget.amount)

    def batches(self, sequences: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield x, y [sequences, seq_len] int64 until the budget is spent; one yield is one step.

        Only the time between two yields counts, and the first `warmup_steps` of the profile are
        free of a wall-clock budget (compiling, first launches), though not of a FLOPs budget.
        """
        rows = self._rows(sequences)
        shape_flops: dict[torch.Size, int] = {}
        self.startup_seconds = process_age()
        while self.progress < 1.0 and not (self.settings.smoke and self.steps == 2):
            batch = next(rows).to(self.device, non_blocking=True).long()
            x, y = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
            counted = x.shape not in shape_flops or self._recounts()
            begin, busy = self._now(), time.process_time()
            if counted and self._counts_steps:
                with self._eager(), FlopCounter() as counter:
                    yield x, y
                shape_flops[x.shape] = max(counter.total, shape_flops.get(x.shape, 0))
            else:
                yield x, y
                self.uncounted.append(time.process_time() - busy)
            elapsed = self._now() - begin
            self.flops += shape_flops.get(x.shape, 0)
            self.tokens += x.numel()
            self.steps += 1
            if self.steps > self.settings.warmup_steps:
                self.seconds += elapsed
            if self.settings.budget.unit == "flops" and not self.flops:
                raise SystemExit("a step without any matrix product: nothing was trained")

    def log(self, loss: Tensor | float) -> None:
        """Note the training loss (nats a token); one that is not finite ends the experiment."""
        value = float(loss)
        if not value - value == 0.0:
            raise SystemExit(f"the training loss is {value} at step {self.steps}: it diverged")
        if not self.curve or self.progress >= self.curve[-1][0] + 1 / CURVE_POINTS:
            self.curve.append((round(self.progress, 4), round(value, 5)))
            print(f"progress {self.progress:.2f} step {self.steps} loss {value:.4f}", flush=True)

    def finish(self, model: nn.Module, depth: int) -> None:
        """Save weights.safetensors, evaluate val_bpb, write result.json, print the summary."""
        settings, begin = self.settings, time.perf_counter()
        settings.out.mkdir(parents=True, exist_ok=True)
        weights = {name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}
        write_atomically(settings.out / "weights.safetensors", safetensors.torch.save(weights))
        val_bpb, _ = bits_per_byte(model, settings, "val", self.device)
        flops = self.flops or self._flops_of_a_row(model) * self.tokens // self.seq_len
        timed = max(0, self.steps - settings.warmup_steps) / self.steps
        peak = (settings.peak_flops or 0) * self.seconds
        measured: dict[str, Any] = {
            "val_bpb": val_bpb,
            "training_seconds": self.seconds,
            "total_seconds": process_age(),
            "peak_vram_mb": torch.cuda.max_memory_allocated() / 2**20 if self._cuda else 0.0,
            "mfu_percent": 100 * flops * timed / peak if peak else 0.0,
            "total_tokens_M": self.tokens / 1e6,
            "num_steps": self.steps,
            "num_params_M": sum(p.numel() for p in model.parameters()) / 1e6,
            "depth": depth,
        }
        more = {
            "flops": flops,
            "startup_seconds": self.startup_seconds,
            "eval_seconds": time.perf_counter() - begin,
            "peak_ram_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "profile": settings.profile,
            "variant": settings.variant,
            "budget": str(settings.budget),
            "uneven": uneven(self.uncounted),
            "seed": settings.seed,
            "curve": self.curve,
        }
        result = {"metric": {"val_bpb": val_bpb}, "measurements": {**measured, **more}}
        write_atomically(settings.out / "result.json", json.dumps(result, indent=1).encode())
        print("---")
        for key, value in measured.items():
            digits = 6 if key == "val_bpb" else 3 if key.endswith("_M") else 1
            print(f"{key + ':':<18}{value if isinstance(value, int) else f'{value:.{digits}f}'}")

    @property
    def _cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def _counts_steps(self) -> bool:
        # On a GPU a counted step cannot be compiled; under a wall-clock budget that would be
        # time and memory lost, so FLOPs are then estimated at the end.
        return self.settings.budget.unit == "flops" or not self._cuda

    def _recounts(self) -> bool:
        """Nobody can know on a CPU which steps are counted. On a GPU those cannot be compiled, and
        would move the result with them."""
        if self._cuda:
            return self.steps % RECOUNT_EVERY == 0
        return secrets.randbelow(RECOUNT_EVERY) == 0

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _eager(self) -> contextlib.AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self._cuda else contextlib.nullcontext()

    def _rows(self, sequences: int) -> Iterator[Tensor]:
        """Rows of seq_len + 1 tokens: any windows of a stream, packed rows in their order."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        rows = read_rows(self.manifest, "train", self.seq_len, stride=1)
        position = int(torch.randint(len(rows), (1,), generator=generator))
        while True:
            if self.manifest.row_tokens is None:
                yield rows[torch.randint(len(rows), (sequences,), generator=generator)]
            else:
                yield rows[torch.arange(position, position + sequences) % len(rows)]
                position += sequences

    def _flops_of_a_row(self, model: nn.Module) -> float:
        """Forward and backward of one sequence on the meta device; no optimiser, no arithmetic."""
        model = copy.deepcopy(model).to("meta").train()
        x = torch.zeros(1, self.seq_len, dtype=torch.long, device="meta")
        with FlopCounter() as counter:
            model(x).float().square().sum().backward()
        return float(counter.total)


def uneven(seconds: list[float]) -> float:
    """Mean over median: about 1, and far above if work hides in some of the steps."""
    return statistics.fmean(seconds) / statistics.median(seconds) if len(seconds) > 7 else 1.0


def write_atomically(path: Path, data: bytes) -> None:
    with replacing(path) as beside:
        beside.write_bytes(data)


def process_age() -> float:
    """Seconds since this process began, its imports included (proc(5): stat, field 22)."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:  # a box without /proc
        return time.perf_counter() - IMPORTED
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return now - int(fields[19]) / os.sysconf("SC_CLK_TCK")
