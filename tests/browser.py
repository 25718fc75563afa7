"""A page as a real browser sees it."""

import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom",
)  # fmt: skip


def dom(address: str, profile: Path, milliseconds: int = 2000) -> str:
    """The document at `address` after so much of its own time; skips where there is no chromium."""
    time = f"--virtual-time-budget={milliseconds}"
    command = [required(), *FLAGS, f"--user-data-dir={profile}", time, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


def required() -> str:
    """Chromium; skips the test where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here to open the page in")
    return browser
