"""Process trees: what multiplies without end is held by the kernel, and ended."""

import os
import sys
import time
from pathlib import Path

import pytest

from loop import supervise
from loop.sandbox import Box, working_bwrap
from loop.supervise import Limits, Part

BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


@pytest.mark.slow
@pytest.mark.skipif(
    os.getuid() != 0 or supervise._delegated() is None,
    reason="an unbounded bomb is let loose only where a control group can be made",
)
@pytest.mark.parametrize("box", [Box(working_bwrap()), Box()], ids=["bwrap", "none"])
def test_an_unbounded_fork_bomb_is_ended_though_root_runs_it(box: Box, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"]}
    group = supervise._delegated()
    assert group is not None
    command = box.wrap([sys.executable, "-c", BOMB], tmp_path, reads=(), fixed=(), env=env)
    began = time.monotonic()
    ended = supervise.supervise(
        [Part(command, tmp_path)], env, tmp_path / "log", Limits(30, processes=40),
        boxed=bool(box.bwrap),
    )  # fmt: skip
    assert ended.cap == "processes"
    assert time.monotonic() - began < 30, "the cap on processes ended it, not the one on time"
    assert not list(group.glob(f"autoresearch-{os.getpid()}-*")), "the group is gone with it"
