"""Who may know whom: the imports of every room, read from its source."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("loop", "trainer", "data_collection", "finetune", "adapters", "eval")
HEAVY = {
    "torch", "transformers", "trl", "peft", "datasets", "ray", "plotly", "wandb", "xllamacpp",
    "optuna", "jinja2", "huggingface_hub", "openai", "anthropic", "ollama", "pyarrow", "scipy",
    "pandas", "inspect_ai", "bitsandbytes", "accelerate",
}  # fmt: skip
FLOOR = {"loop", "loop.trial", "loop.errors", "loop.files", "loop.flags", "loop.rate"}
READ = FLOOR | {
    "loop.ledger",
    "loop.edit",
    "loop.context",
    "loop.git",
    "loop.knobs",
    "loop.moves",
    "loop.target",
}


def modules(room: str) -> dict[str, Path]:
    """Dotted name -> file of every module of a room."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / room).rglob("*.py"))
    }


def imports(path: Path, *, top: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; `top`: only while it is being imported itself."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if top and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield full_name(node.module or "", alias.name)
        todo += ast.iter_child_nodes(node)


def full_name(module: str, name: str) -> str:
    """`from loop import edit` imports the module loop.edit, `from loop.edit import x` loop.edit."""
    inner = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if inner.is_dir() or inner.with_suffix(".py").exists() else module


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in (*ROOMS, "autoresearch")}


EVERYWHERE = [(name, path) for room in ROOMS for name, path in modules(room).items()]


def test_there_is_something_to_walk() -> None:
    assert len(EVERYWHERE) > 30
    assert "loop.edit" in ours(ROOT / "loop" / "run.py")


def test_the_record_stands_on_the_standard_library_alone() -> None:
    names = {name.split(".")[0] for name in imports(ROOT / "loop" / "trial.py")}
    assert names <= sys.stdlib_module_names


def test_the_loop_knows_no_implementation_of_what_it_is_given() -> None:
    known = ours(ROOT / "loop" / "run.py")
    forbidden = ("loop.brains", "loop.strategies", "loop.noise", "loop.start", "loop.__main__")
    assert not {name for name in known if name.startswith(forbidden)}
    assert "loop.judge" in known, "its protocol"


@pytest.mark.parametrize("module", ["loop.brain", "loop.strategy", "loop.judge", "loop.context"])
def test_a_protocol_knows_no_implementation(module: str) -> None:
    known = ours(ROOT / f"{module.replace('.', '/')}.py")
    assert not {n for n in known if n.startswith(("loop.brains", "loop.strategies", "loop.run"))}


def test_the_loop_knows_no_other_room() -> None:
    for name, path in modules("loop").items():
        assert all(n.split(".")[0] == "loop" for n in ours(path)), name


def test_a_brain_knows_no_strategy_no_judge_and_no_loop() -> None:
    for name, path in modules("loop/brains").items():
        known = ours(path)
        forbidden = ("loop.strategies", "loop.strategy", "loop.judge", "loop.run", "loop.target")
        assert not {n for n in known if n.startswith(forbidden)}, name


def test_the_trainer_is_an_island() -> None:
    own = {path.stem for path in (ROOT / "trainer").glob("*.py")}
    for name, path in modules("trainer").items():
        foreign = {n.split(".")[0] for n in imports(path)} - own
        assert not foreign & {*ROOMS, "autoresearch", "tests"}, name
    for name, path in EVERYWHERE:
        if not name.startswith("trainer"):
            assert not {n for n in ours(path) if n.startswith("trainer")}, name


def test_no_room_knows_the_benchmarks_and_they_know_the_trainer_as_a_process() -> None:
    for name, path in EVERYWHERE:
        assert not {n for n in imports(path) if n.split(".")[0] == "benchmarks"}, name
    for name, path in modules("benchmarks").items():
        assert not {n for n in ours(path) if n.startswith("trainer")}, name


@pytest.mark.parametrize("room", ["data_collection", "finetune", "adapters"])
def test_only_eval_drives_the_loop(room: str) -> None:
    for name, path in modules(room).items():
        assert not {"loop.run", "loop.__main__", "loop.start"} & ours(path), name


def test_within_the_loop_only_those_who_watch_or_compose_it_import_it() -> None:
    importers = {n for n, p in modules("loop").items() if "loop.run" in ours(p)}
    assert importers <= {"loop.__main__", "loop.progress", "loop.tracking", "loop.optimiser"}


def test_finetune_knows_no_other_room() -> None:
    for name, path in modules("finetune").items():
        assert {n for n in ours(path) if not n.startswith("finetune")} <= FLOOR, name


def test_other_rooms_read_only_the_record_and_what_explains_it() -> None:
    for name, path in modules("data_collection").items():
        known = {n for n in ours(path) if n.startswith("loop")}
        assert {n for n in known if not n.startswith("loop.strategies")} <= READ, name


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    for name, path in EVERYWHERE:
        if not name.startswith("trainer"):  # a script, which is run as a process
            assert not {n.split(".")[0] for n in imports(path, top=True)} & HEAVY, name


def test_the_command_imports_its_rooms_when_they_are_asked_for() -> None:
    top = set(imports(ROOT / "autoresearch.py", top=True))
    assert not {n for n in top if n.split(".")[0] in ROOMS}


@pytest.mark.parametrize("room", ["loop", "trainer", "eval"])
def test_a_room_is_imported_from_this_tree(room: str) -> None:
    spec = importlib.util.find_spec(room)
    assert spec is not None
    places = [Path(p).resolve() for p in spec.submodule_search_locations or ()]
    assert places[0] == (ROOT / room).resolve()
