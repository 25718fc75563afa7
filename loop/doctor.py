"""`doctor`: what this machine can do, and what to do about each lack."""

import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loop import autopsy, flags
from loop.flags import flag
from loop.sandbox import bwrap_advice, working_bwrap
from loop.target import cache_folder

SHOWN = 20
FREE_GB = 2
GPU_MEMORY_GB = 24
OLLAMA_ADAPTERS = "0.30.0 to 0.34.0 serve adapters; every version serves merged models"


@dataclass(frozen=True)
class DoctorArgs:
    """What this machine can do, and what to do about each lack; of a run: what failed silently."""

    run: Path | None = flag(None, "folder of a run to examine instead", positional=True)


@dataclass(frozen=True)
class Finding:
    """One line. `level`: ok, note (something works less well) or lack (a run cannot start)."""

    what: str
    level: str
    found: str
    advice: str = ""


def run(argv: Sequence[str]) -> int:
    """The verb `doctor`. Returns 1 when something without which nothing runs is lacking."""
    args = flags.parse("doctor", DoctorArgs, argv)
    if args.run is not None:
        return _examine(args.run)
    findings = [finding for check in CHECKS for finding in check()]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    style = {"ok": "green", "note": "yellow", "lack": "bold red"}
    for finding in findings:
        body = Text(finding.found)
        if finding.advice:
            body.append(f"\n→ {finding.advice}", "yellow")
        table.add_row(finding.what, Text(finding.level, style[finding.level]), body)
    Console().print(table)
    return 1 if any(finding.level == "lack" for finding in findings) else 0


def _examine(folder: Path) -> int:
    """Print what failed silently in a run. Raises LedgerError for what is none."""
    console, symptoms = Console(), autopsy.examine(folder)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for symptom in symptoms:
        shown = ", ".join(map(str, symptom.trials[:SHOWN]))
        more = f" and {len(symptom.trials) - SHOWN} more" if len(symptom.trials) > SHOWN else ""
        body = Text(f"{symptom.what}\ntrials {shown}{more}")
        table.add_row(Text(symptom.name, "yellow"), str(len(symptom.trials)), body)
    console.print(table if symptoms else "nothing failed silently, as far as the ledger tells")
    return 0


def _system() -> Iterator[Finding]:
    name = platform.platform()
    if sys.platform == "linux":
        yield Finding("system", "ok", f"{name}, Python {platform.python_version()}")
    else:
        yield Finding("system", "lack", name, "runs are made on Linux (or WSL2 on Windows)")


def _git() -> Iterator[Finding]:
    if path := shutil.which("git"):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        yield Finding("git", "ok", said.stdout.strip())
    else:
        yield Finding("git", "lack", "not on PATH", "install git (apt install git)")


def _machine() -> Iterator[Finding]:
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    yield Finding("processor", "ok", f"{cores} cores, {memory:.0f} GB of memory")


def _gpu() -> Iterator[Finding]:
    nvidia = shutil.which("nvidia-smi")
    if nvidia is None:
        advice = "the cpu profile and the embedded model work without one"
        yield Finding("GPU", "note", "no NVIDIA driver", advice)
        return
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    said = subprocess.run([nvidia, *query], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        yield Finding("GPU", "note", said.stdout.strip() or "nvidia-smi fails", "mend the driver")
        return
    for line in said.stdout.strip().splitlines():
        name, total, free = (part.strip() for part in line.split(","))
        enough = float(total) / 1024 >= GPU_MEMORY_GB - 1
        advice = "" if enough else f"the 24gb profile wants {GPU_MEMORY_GB} GB"
        found = f"{name}, {float(total) / 1024:.0f} GB, {float(free) / 1024:.0f} GB free"
        yield Finding("GPU", "ok" if enough else "note", found, advice)


def _sandbox() -> Iterator[Finding]:
    if path := working_bwrap():
        yield Finding("sandbox", "ok", f"bubblewrap at {path}")
    else:
        yield Finding("sandbox", "lack", "bubblewrap does not work here", bwrap_advice())


def _disk() -> Iterator[Finding]:
    for what, folder in (("disk here", Path.cwd()), ("disk of cache", cache_folder())):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free / 2**30
        level = "ok" if free >= FREE_GB else "note"
        advice = "" if free >= FREE_GB else "a night of trials wants a few GB"
        yield Finding(what, level, f"{free:.1f} GB free at {there}", advice)


def _models() -> Iterator[Finding]:
    found = sorted(path.stem for path in (cache_folder() / "models").glob("*.gguf"))
    advice = "" if found else "fetched by itself on first use (about 100 MB)"
    yield Finding("embedded model", "ok" if found else "note", ", ".join(found) or "none", advice)


def _ollama() -> Iterator[Finding]:
    host = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")
    base = host if "://" in host else f"http://{host}"
    try:
        version = _get(f"{base}/api/version")["version"]
        models = [model["name"] for model in _get(f"{base}/api/tags")["models"]]
    except (OSError, ValueError, KeyError, TypeError):
        advice = "install Ollama and start it (ollama serve) to use ollama: brains"
        yield Finding("Ollama", "note", f"nothing answers at {base}", advice)
        return
    advice = "" if models else "ollama pull qwen3:4b"
    listed = ", ".join(models) or "no models"
    yield Finding("Ollama", "ok", f"{version} ({OLLAMA_ADAPTERS}): {listed}", advice)


def _packages() -> Iterator[Finding]:
    for name, why in (("torch", "the built-in target"), ("xllamacpp", "the embedded brain")):
        if util.find_spec(name) is None:
            yield Finding(name, "lack", "not installed", f"{why} needs it: make setup")
        else:
            yield Finding(name, "ok", "installed")
    if util.find_spec("wandb") is None:
        yield Finding("wandb", "note", "not installed", "only --wandb needs it")


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=2) as answer:
        return json.load(answer)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _system,
    _git,
    _machine,
    _gpu,
    _sandbox,
    _disk,
    _packages,
    _models,
    _ollama,
)
