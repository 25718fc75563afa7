"""How every command ends: with a status and at most one line."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

import pytest

from loop.errors import INTERRUPTED, AutoresearchError, UsageError, ending
from tests.conftest import ROOT, outside


@pytest.mark.parametrize(("kind", "status"), [(AutoresearchError, 1), (UsageError, 2)])
def test_a_failure_is_one_line_and_its_status(
    kind: type[AutoresearchError], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(argv: Sequence[str]) -> int:
        raise kind(f"no {argv[0]}; try another")

    assert ending(verb, ["run"]) == status
    assert capsys.readouterr() == ("", "autoresearch: no run; try another\n")


def test_what_a_verb_returns_is_the_status() -> None:
    assert ending(len, ["a", "b", "c"]) == 3


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        ending(lambda argv: 1 // 0, [])


@pytest.mark.parametrize("command", ["autoresearch", "loop", "finetune", "adapters",
                                     "data_collection", "eval", "eval.survey"])  # fmt: skip
def test_every_command_ends_at_ctrl_c_without_a_traceback(command: str) -> None:
    room = importlib.util.find_spec(command)
    assert room is not None
    name = f"{command}.__main__" if room.submodule_search_locations else command
    # Wherever Ctrl-C falls: here at the first thing that the verb does, reading its flags.
    code = (
        "import argparse, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "argparse.ArgumentParser.parse_known_args = lambda *a: signal.raise_signal(signal.SIGINT)\n"
        f"sys.argv = ['x', {'list' if command == 'adapters' else 'run'!r}]\n"
        f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=outside(), check=False,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stderr) == (INTERRUPTED, "")
