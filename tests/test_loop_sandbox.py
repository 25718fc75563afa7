"""The box: found by running it, refused where it would be a lie."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop import sandbox
from loop.errors import SandboxError, UsageError
from loop.sandbox import Box, keys_in_environment, open_box, working_bwrap


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in keys_in_environment():
        monkeypatch.delenv(name)


@pytest.fixture
def bad_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The only bubblewrap on this machine is there and does not work."""
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho no permissions >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "path", [])
    working_bwrap.cache_clear()
    yield
    working_bwrap.cache_clear()


def test_an_unknown_kind_lists_what_exists() -> None:
    with pytest.raises(UsageError, match="unknown sandbox 'docker'; there are: auto, bwrap, none"):
        open_box("docker")


@pytest.mark.parametrize("kind", ["auto", "bwrap"])
def test_a_bubblewrap_that_does_not_run_names_the_ways_out(kind: str, bad_bwrap: None) -> None:
    with pytest.raises(SandboxError, match=r"does not work here; .*, or type --sandbox none"):
        open_box(kind)


def test_none_runs_the_command_as_it_is(no_keys: None, tmp_path: Path) -> None:
    box = open_box("none")
    assert box == Box() and box.name == "none"
    assert box.wrap(["true"], tmp_path, reads=(), fixed=(), env={}) == ["true"]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"])
def test_none_is_refused_beside_a_key_and_never_shows_it(
    no_keys: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "hush-hush")
    with pytest.raises(SandboxError, match=f"refused while {name} is") as caught:
        open_box("none")
    assert "hush" not in str(caught.value)


def test_an_empty_key_is_none(no_keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert open_box("none") == Box()


def test_the_home_folder_is_never_opened_for_the_sake_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    bound = sandbox._interpreter(str(tool))
    assert str(tmp_path) not in bound and "/" not in bound


def test_a_program_that_is_nowhere_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandbox._interpreter("no-such-program") == ()
    assert sandbox._interpreter("./no-such-program") == ()


@pytest.mark.skipif(not working_bwrap(), reason="no bubblewrap here")
def test_auto_takes_a_bubblewrap_that_works() -> None:
    assert open_box("auto") == open_box("bwrap") == Box(working_bwrap())
    assert open_box("auto").name == "bwrap"
