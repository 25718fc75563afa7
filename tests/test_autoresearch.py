"""The command: bad input is one line with what to try next, and leaves nothing half-written."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PLAIN, TRAIN, Cli, git

Script = Callable[..., Path]


def one_line(done: "subprocess.CompletedProcess[str]", status: int, said: str) -> None:
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


def test_without_a_verb_it_shows_them(run_cli: Cli) -> None:
    done = run_cli()
    assert done.returncode == 2 and "doctor" in done.stdout and "run" in done.stdout
    assert run_cli("--help").returncode == 0


def test_an_unknown_verb_lists_those_there_are(run_cli: Cli) -> None:
    one_line(run_cli("walk"), 2, "unknown verb 'walk'; there are: ")


def test_help_names_every_flag(run_cli: Cli) -> None:
    done = run_cli("run", "--help")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--brain", "--strategy", "--resume", "--failsafe"))


FLAGS = [
    (("--brain", "nope:x"), 2, "unknown brain 'nope'; there are: "),
    (("--brain", "scripted"), 2, "names no model"),
    (("--brain", "scripted:/no/such/file"), 2, "cannot read the script /no/such/file"),
    ((), 2, "strategy 'bare' asks a brain"),
    (("--strategy", "nope"), 2, "unknown strategy 'nope'; there are: bare"),
    (("--profile", "cpu"), 1, "has no target.toml; leave out --profile"),
    (("--variant", "cold"), 1, "has no target.toml; leave out --profile"),
    (("--budget", "5m"), 2, "budget '5m' is neither seconds"),
    (("--sandbox", "jail"), 2, "invalid choice: 'jail'"),
    (("--judge", "me"), 2, "invalid choice: 'me'"),
    (("--trials", "-1"), 2, "--trials is -1, below 0"),
    (("--trials", "many"), 2, "invalid int value: 'many'"),
    (("--colour", "red"), 2, "unrecognized arguments: --colour red"),
    (("--target", "/no/such/folder"), 1, "no folder /no/such/folder"),
]


@pytest.mark.parametrize(("flags", "status", "said"), FLAGS, ids=[said for *_, said in FLAGS])
def test_wrong_flags(
    toy: Path, tmp_path: Path, scripted: Script, run_cli: Cli,
    flags: tuple[str, ...], status: int, said: str,
) -> None:  # fmt: skip
    given = {"--target": str(toy), "--sandbox": "none", "--out": str(tmp_path / "r")}
    if flags:
        given["--brain"] = f"scripted:{scripted('LR = 0.2')}"
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    one_line(run_cli("run", *(part for pair in given.items() for part in pair)), status, said)
    assert not (tmp_path / "r").exists(), "nothing half-written"


@pytest.fixture
def loop(
    toy: Path, tmp_path: Path, run_cli: Cli
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`autoresearch run` on the toy with a control, no sandbox, into tmp_path/r."""
    common = (*PLAIN, "--strategy", "random_edit", "--trials", 1, "--target", toy)
    return lambda *more, **env: run_cli("run", *common, "--out", tmp_path / "r", *more, **env)


TARGETS = [
    (lambda toy: (toy / "train.py").unlink(), "neither target.toml nor train.py"),
    (lambda toy: (toy / "train.py").write_text("LR = ("), "train.py line 1: "),
    (lambda toy: (toy / "target.toml").write_text("[["), "is not TOML"),
    (lambda toy: (toy / "target.toml").write_text("x = 1"), "unknown key in target.toml 'x'"),
]


@pytest.mark.parametrize(("spoil", "said"), TARGETS, ids=[said for _, said in TARGETS])
def test_a_wrong_target(
    toy: Path, tmp_path: Path, loop: Callable[..., "subprocess.CompletedProcess[str]"],
    spoil: Callable[[Path], object], said: str,
) -> None:  # fmt: skip
    spoil(toy)
    done = loop()
    one_line(done, done.returncode, said)
    assert done.returncode in (1, 2)
    assert not (tmp_path / "r").exists()


def test_a_dirty_repository(toy: Path, tmp_path: Path, loop: Cli) -> None:
    git(toy, "init", "-q")
    git(toy, "add", "-A")
    git(toy, "commit", "-q", "-m", "x")
    (toy / "train.py").write_text(TRAIN + "# more\n")
    one_line(loop(), 1, "uncommitted changes (train.py, ...); commit or stash them")
    assert not (tmp_path / "r").exists()


def test_no_git(tmp_path: Path, loop: Cli) -> None:
    one_line(loop(PATH=str(tmp_path)), 1, "git is not on PATH; install git")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('hello')", "gives no val_bpb (metric_missing)"),
        ("print('val_bpb: nan')", "gives no val_bpb (metric_not_finite)"),
        ("raise SystemExit(1)", "gives no val_bpb (exception)"),
    ],
)
def test_a_baseline_without_a_score(
    toy: Path, tmp_path: Path, run_loop: Cli, code: str, said: str
) -> None:
    (toy / "train.py").write_text(code)
    done = run_loop("--strategy", "random_edit", "--target", toy, "--out", tmp_path / "r")
    one_line(done, 1, said)
    assert "0.log and run its command by hand" in done.stderr
    assert (tmp_path / "r" / "logs" / "0.log").exists()


def test_a_folder_that_is_taken(tmp_path: Path, loop: Cli) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("x")
    one_line(loop(), 2, "is not empty; add --resume, or name another --out")
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["thesis.tex"]
    one_line(loop("--resume"), 1, "is not a run")
    one_line(loop("--out", tmp_path / "r" / "thesis.tex" / "r"), 1, "cannot make")


def test_a_run_that_is_there_is_not_begun_again(tmp_path: Path, loop: Cli) -> None:
    assert loop().returncode == 0
    before = (tmp_path / "r" / "ledger.jsonl").read_bytes()
    one_line(loop(), 2, "is a run; add --resume")
    assert (tmp_path / "r" / "ledger.jsonl").read_bytes() == before


def test_a_corrupt_ledger_line_is_refused_by_number_until_repair(
    tmp_path: Path, run_loop: Cli, loop: Cli
) -> None:
    assert loop().returncode == 0
    path = tmp_path / "r" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = lines[0] + b"{half a line\n" + lines[1]
    path.write_bytes(spoilt)
    one_line(run_loop("--resume", "--out", tmp_path / "r"), 1, "line 2 is corrupt")
    assert path.read_bytes() == spoilt
    done = run_loop("--resume", "--repair", "--trials", 2, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(lines[0] + lines[1])
    assert path.with_name("ledger.jsonl.corrupt").read_bytes() == b"{half a line\n"


def test_a_run_without_its_work_folder(tmp_path: Path, run_loop: Cli, loop: Cli) -> None:
    assert loop().returncode == 0
    (tmp_path / "r" / "work").rename(tmp_path / "elsewhere")
    one_line(run_loop("--resume", "--out", tmp_path / "r"), 1, "work is gone")
    (tmp_path / "r" / "run.toml").write_text("name = 1\n")
    one_line(run_loop("--resume", "--out", tmp_path / "r"), 1, "run.toml lacks args, target")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_no_disk(small_disk: Path, loop: Cli) -> None:
    one_line(loop("--out", small_disk / "r"), 1, "make room or name another --out")
    assert list(small_disk.iterdir()) == []


def test_no_sandbox_beside_a_key(tmp_path: Path, loop: Cli) -> None:
    done = loop(OPENAI_API_KEY="hush")
    one_line(done, 1, "refused while OPENAI_API_KEY is in the environment")
    assert "hush" not in done.stderr and not (tmp_path / "r").exists()
