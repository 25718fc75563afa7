"""Targets: what is understood, what is inferred, and what is said about the rest."""

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from loop import target
from loop.errors import AutoresearchError, TargetError, UsageError
from loop.target import from_toml, infer, load, to_toml

TOML = """\
name = "small"
editable = "train.py"
command = ["{python}", "train.py"]
instructions = "program.md"
seed = "env:SEED"
budget = "30s"
reads = ["{cache}/texts"]
[metric]
name = "accuracy"
direction = "max"
from = "result.json"
[fixed]
"prepare.py" = "HASH"
[knobs]
LR = {low = 0.01, high = 1.0}
WIDTH = [4, 8, 16]
[profiles]
cpu = "cpu.toml"
gpu = "gpu.toml"
"""
CPU = """\
timeout_s = 7
budget = "3s"
[knobs]
WIDTH = [1, 2]
[start]
WIDTH = 2
[variants.cold.start]
LR = 0.01
[variants.hot.start]
LR = 1.0
"""


@pytest.fixture
def told(toy: Path) -> Path:
    """The toy with a target.toml and two profiles."""
    digest = hashlib.sha256((toy / "prepare.py").read_bytes()).hexdigest()
    (toy / "target.toml").write_text(TOML.replace("HASH", digest))
    (toy / "cpu.toml").write_text(CPU)
    (toy / "gpu.toml").write_text("threads = 4\n")
    return toy


def test_a_target_is_read_with_its_profile_and_variant(told: Path) -> None:
    found = load(told, "cpu", "hot")
    assert (found.name, found.metric, found.direction) == ("small", "accuracy", "max")
    assert (found.metric_from, found.instructions) == ("result.json", "Make it small.\n")
    assert (found.timeout_s, str(found.budget)) == (7.0, "3s"), "the profile's"
    assert found.knobs["WIDTH"].choices == (1, 2) and found.knobs["LR"].high == 1.0
    assert found.start == {"WIDTH": "2", "LR": "1.0"}, "the variant's on the profile's"
    assert found.fixed == ("prepare.py",)
    assert found.reads == (str(target.cache_folder() / "texts"),)
    assert found.inferred == ()


def test_the_first_profile_and_variant_are_the_default(told: Path) -> None:
    assert (load(told).profile, load(told).variant) == ("cpu", "cold")


def test_an_experiment_is_told_budget_and_seed(told: Path) -> None:
    found = replace(load(told, "gpu"), threads=2)
    env = found.environment(found.budget, 41)
    assert (env["SEED"], env["AUTORESEARCH_BUDGET"], env["OMP_NUM_THREADS"]) == ("41", "30s", "2")
    assert env["AUTORESEARCH_PROFILE"] == "gpu"


@pytest.mark.parametrize(
    ("profile", "variant", "said"),
    [
        ("tpu", "", "unknown profile 'tpu'; there are: cpu, gpu"),
        ("cpu", "warm", "unknown variant 'warm'; there are: cold, hot"),
        ("gpu", "warm", "unknown variant 'warm'"),
    ],
)
def test_an_unknown_profile_or_variant_lists_what_exists(
    told: Path, profile: str, variant: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        load(told, profile, variant)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[metric]", "[metric", "is not TOML"),
        ('editable = "train.py"', "", "editable is missing"),
        ('command = ["{python}", "train.py"]', "", "command is missing"),
        ('command = ["{python}", "train.py"]', "command = []", "command is missing"),
        ('command = ["{python}", "train.py"]', 'command = "python train.py"', "a list of strings"),
        ('command = ["{python}", "train.py"]', "command = [1]", "a list of strings"),
        ('name = "accuracy"', "", "name is missing"),
        ('direction = "max"', 'direction = "up"', "unknown metric.direction 'up'.*max, min"),
        ('from = "result.json"', 'from = "air"', "unknown metric.from 'air'"),
        ('seed = "env:SEED"', 'seed = "yes"', "seed is 'yes'; write env:NAME"),
        ('seed = "env:SEED"', "seed = 3", "seed is 3, not a string"),
        ('budget = "30s"', 'budget = "30m"', "budget '30m' is neither"),
        ('name = "small"', 'nam = "small"', "unknown key in target.toml 'nam'"),
        ('name = "small"', 'timeout_s = "long"', "timeout_s is 'long', not a number"),
        ('name = "small"', "files = 3", "files is 3, not a table"),
        ('name = "small"', 'setup = "x"', "setup is 'x', not a list"),
        ("program.md", "absent.md", "cannot read .*absent.md: No such file"),
        ("LR = {low = 0.01, high = 1.0}", "LR = 5", "knob LR: 5 is not a space"),
        ("LR = {low = 0.01, high = 1.0}", "NAME = {low = 1, high = 2}", "its space is a range"),
        ("HASH", "0" * 64, "fixed file prepare.py has sha256 .* restore the file"),
        ('"prepare.py" = ', '"absent.py" = ', "fixed file absent.py: No such file"),
        ('"prepare.py" = ', '"../toy/prepare.py" = ', "not a plain path inside"),
        ('editable = "train.py"', 'editable = "/etc/hostname"', "not a plain path inside"),
        ('editable = "train.py"', 'editable = "./train.py"', "not a plain path inside"),
        ('editable = "train.py"', 'editable = "absent.py"', "cannot read .*absent.py"),
        ("{cache}", "{nowhere}", "not one of {cache}, {text}"),
        ('cpu = "cpu.toml"', 'cpu = "absent.toml"', "cannot read .*absent.toml"),
    ],
)
def test_what_is_wrong_with_a_target_toml_is_one_line(
    told: Path, old: str, new: str, said: str
) -> None:
    path = told / "target.toml"
    text = TOML.replace(old, new) if old in ("HASH", '"prepare.py" = ') else path.read_text()
    path.write_text(text.replace(old, new))
    with pytest.raises(AutoresearchError, match=said) as caught:
        load(told, "gpu" if new == 'budget = "30m"' else "")  # the profile cpu has its own budget
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"LR = (\n", "train.py line 1: '\\(' was never closed"),
        (b"LR = '\xe9'\n", "is not UTF-8"),
        (b"LR = 1\x00\n", "null bytes"),
    ],
)
def test_a_file_that_cannot_be_edited_is_refused(toy: Path, content: bytes, said: str) -> None:
    (toy / "train.py").write_bytes(content)
    with pytest.raises(TargetError, match=said):
        load(toy)


def test_a_folder_by_karpathys_conventions_is_inferred_and_said(toy: Path) -> None:
    found = load(toy)
    assert (found.editable, found.command) == ("train.py", ("{python}", "train.py"))
    assert (found.metric, found.direction, found.metric_from) == ("val_bpb", "min", "stdout")
    assert found.fixed == ("prepare.py",)
    assert found.instructions == "Make it small.\n"
    assert set(found.knobs) == {"LR", "WIDTH"}, "numbers only"
    said = " ".join(found.inferred)
    assert all(word in said for word in ("train.py", "val_bpb", "prepare.py", "2 knobs", "seed"))


def test_a_venv_of_the_folder_is_used(toy: Path) -> None:
    python = toy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    assert infer(toy).command[0] == str(python)


def test_windows_line_ends_of_the_instructions_do_not_matter(toy: Path) -> None:
    (toy / "train.py").write_bytes(b"LR = 0.1\r\nprint(LR)\r\n")
    assert set(load(toy).knobs) == {"LR"}


@pytest.mark.parametrize(("profile", "variant"), [("cpu", ""), ("", "cold")])
def test_profiles_and_variants_need_a_target_toml(toy: Path, profile: str, variant: str) -> None:
    with pytest.raises(TargetError, match=r"has no target.toml"):
        load(toy, profile, variant)


def test_a_folder_that_is_no_target_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"neither target.toml nor train.py"):
        load(tmp_path)
    with pytest.raises(TargetError, match="no folder"):
        load(tmp_path / "absent")


def test_a_target_survives_run_toml(told: Path) -> None:
    for found in (load(told, "cpu", "hot"), load(told, "gpu")):
        assert from_toml(tomllib.loads(tomli_w.dumps(to_toml(found)))) == found


def test_an_inferred_target_survives_run_toml(toy: Path) -> None:
    (toy / "train.py").write_text((toy / "train.py").read_text() + "BETAS = (0.9, 0.95)\n")
    found = infer(toy)
    assert from_toml(tomllib.loads(tomli_w.dumps(to_toml(found)))) == found


def test_only_a_python_file_has_knobs(told: Path) -> None:
    found = replace(load(told), editable="conf.yaml")
    assert found.values("rate: [") == {}
