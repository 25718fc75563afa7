"""What no edit may add, seen in its syntax tree before anything runs.

Two kinds. Pinning the training seed makes every repeat the same and noise invisible: refused for
every target. Reaching past the contract (another module than the target's `imports`, files, other
processes, names with underscores of foreign modules, attributes of imported modules set anew) is
refused where the target lists its imports. What the file found at the start already did stays
allowed: only what an edit adds counts. This is a cheap first look that catches what small models
write; what it misses meets the box and the audit.
"""

import ast
from collections import Counter
from collections.abc import Iterator

from loop.trial import Reason, Rejected

_SEEDS = {"manual_seed", "manual_seed_all", "seed", "default_rng", "RandomState", "set_rng_state"}
_BUILTINS = {
    *("open", "exec", "eval", "compile", "__import__", "globals", "locals", "vars", "setattr"),
    *("delattr", "getattr", "input", "breakpoint", "memoryview"),
}
_ATTRIBUTES = {
    *(
        "load",
        "save",
        "from_file",
        "library",
        "ops",
        "hub",
        "cpp_extension",
        "compiler",
        "overrides",
    ),
    *("multiprocessing", "package", "export", "serialization", "load_library", "from_blob"),
    *("frombuffer", "fromfile", "tofile", "memmap"),
    *("modules", "settings", "flops", "seconds", "uncounted", "curve", "manifest", "tokens"),
}

_FRAMES = {"gi_frame", "cr_frame", "ag_frame", "tb_frame", "f_back", "f_globals", "f_locals"}


def check(old: str, new: str, imports: tuple[str, ...] = ()) -> Rejected | None:
    """Why the edit from `old` to `new` may not run, or None.

    `imports`: the modules that it may use; none listed: only the training seed is looked after.
    """
    before, after = ast.parse(old), ast.parse(new)
    if pinned := _added(_seedings(before), _seedings(after)):
        if _without_seeds(before) == _without_seeds(after):
            return Rejected(Reason.SEED_ONLY, f"the edit changes the seed alone: {pinned}")
        return Rejected(Reason.FORBIDDEN_EDIT, f"the edit pins the training seed: {pinned}")
    if imports and (reach := _added(_reaches(before, imports), _reaches(after, imports))):
        return Rejected(Reason.FORBIDDEN_EDIT, f"the edit reaches past its file: {reach}")
    return None


def _added(before: Counter[str], after: Counter[str]) -> str:
    return next(iter(after - before), "")


def _seedings(tree: ast.AST) -> Counter[str]:
    """Calls that set a seed, with their arguments, as text."""
    return Counter(ast.unparse(node)[:100] for node in ast.walk(tree) if _seeds(node))


def _seeds(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) in _SEEDS


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _without_seeds(tree: ast.AST) -> str:
    class Blank(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            return ast.Constant("seeding") if _seeds(node) else node

        def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
            return None if _seeds(node.value) else self.generic_visit(node)

    return ast.dump(Blank().visit(ast.parse(ast.unparse(tree))))


def _reaches(tree: ast.AST, imports: tuple[str, ...]) -> Counter[str]:
    """What leaves the file, as text, each as often as it occurs."""
    modules = _imported(tree)
    return Counter(text for node in ast.walk(tree) for text in _reach(node, imports, modules))


def _imported(tree: ast.AST) -> set[str]:
    """The names that imports bind."""
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def _reach(node: ast.AST, imports: tuple[str, ...], modules: set[str]) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"import {a.name}" for a in names if _outside(a.name, imports))
        case ast.ImportFrom(module=module, names=names, level=level):
            for alias in names:
                if level or _outside(f"{module}.{alias.name}", imports):
                    yield f"from {module} import {alias.name}"
        case ast.Name(id=name):
            if name in _BUILTINS or (name.startswith("__") and name != "__name__"):
                yield name
        case ast.Attribute(attr=name):
            owner, text = _first_name(node), ast.unparse(node)[:80]
            foreign = owner in modules or owner == "run"
            own = owner == "self" and not name.startswith("__")
            inner = name in _FRAMES or (_private(name) and not own)
            if inner or (foreign and name in _ATTRIBUTES):
                yield text
            elif foreign and not isinstance(node.ctx, ast.Load) and ".backends." not in text:
                yield f"{text} ="


def _outside(name: str, imports: tuple[str, ...]) -> bool:
    """Is the module outside `imports`, or a private or forbidden part of one of them?"""
    parts = name.split(".")
    return parts[0] not in imports or any(_private(p) or p in _ATTRIBUTES for p in parts[1:])


def _private(name: str) -> bool:
    return name.startswith("_") and name not in ("__init__", "__name__", "__call__")


def _first_name(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
