"""Nothing public is in the packages for the tests alone: every function, class and constant of a
module is used by a source module, outside its own definition, or its reason is in UNUSED.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from repository import ROOT

FOLDERS = {
    "mtdit": ROOT,
    "mtdit_export": ROOT / "export",
    "mtdit_runtime": ROOT / "runtime",
    "mtdit_robots": ROOT / "robots",
}
# module.name -> why it stays; motion: the issue on motion makes a command that computes a log again
UNUSED = {
    "mtdit_runtime.recording.run_log.load_log": "motion",
    "mtdit_runtime.recording.run_log.recompute": "motion",
}

Names = set[tuple[str, str]]  # (module, name)


@cache
def sources() -> dict[str, ast.Module]:
    """Module -> its syntax tree, for our four packages."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[module] = ast.parse(path.read_text(), str(path))
    return found


def defined_by(statement: ast.stmt) -> set[str]:
    """The public names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = {statement.name}
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        nodes = [node for target in targets for node in ast.walk(target)]
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
    else:
        names = set[str]()
    return {name for name in names if not name.startswith("_")}


def definitions() -> Names:
    return {
        (module, name)
        for module, tree in sources().items()
        for statement in tree.body
        for name in defined_by(statement)
    }


def imported(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(local name, module, name in it; "" for a module itself) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole in sources()
                where = (whole, "") if is_module else (node.module, alias.name)
                yield alias.asname or alias.name, *where
        elif isinstance(node, ast.Import):
            yield from ((a.asname, a.name, "") for a in node.names if a.asname)


def used_in(module: str, tree: ast.Module) -> Names:
    used: Names = set()
    modules: dict[str, set[str]] = {}  # local name -> modules: each function has its own imports
    for local, source, name in imported(tree):
        if name:
            used.add((source, name))
        else:
            modules.setdefault(local, set()).add(source)
    for statement in tree.body:
        own = defined_by(statement)
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used |= {(module, node.id)} if node.id not in own else set()
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {(source, node.attr) for source in modules.get(node.value.id, ())}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                source, colon, name = node.value.partition(":")  # "package.module:name"
                used |= {(source, name)} if colon else set()
            elif isinstance(node, ast.Dict):  # {"name": "package.module"}: what is exported lazily
                used |= set(lazy(node))
    return used


def lazy(node: ast.Dict) -> Iterator[tuple[str, str]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
            yield str(value.value), str(key.value)


def entry_points() -> Names:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    section = lines[lines.index("[project.scripts]") + 1 :]
    values = [line.split("=")[1].strip(' "') for line in section[: section.index("")]]
    return {(module, name) for module, _, name in (value.partition(":") for value in values)}


def test_every_public_name_is_used() -> None:
    used = entry_points().union(*(used_in(*item) for item in sources().items()))
    unused = {".".join(name) for name in definitions() - used}
    assert sorted(unused - UNUSED.keys()) == [], "delete it, or use it"
    assert sorted(UNUSED.keys() - unused) == [], "it is used now: take it off the list"
    assert all(UNUSED.values()), "each with a word of reason"


def test_the_search_tells_used_from_unused() -> None:
    """On a module that is read by hand: recursion is no use, an attribute and a string are."""
    tree = ast.parse(
        "from mtdit_runtime import text\n"
        "def alone(n): return alone(n - 1)\n"
        "def helper(): return text.printable\n"
        "TABLE = {'run': 'mtdit_runtime.run', 'x': helper}\n"
        "PLACE = 'mtdit_runtime.bench:bench'\n"
    )
    assert used_in("m", tree) >= {
        ("m", "helper"),
        ("mtdit_runtime.text", "printable"),
        ("mtdit_runtime.run", "run"),
        ("mtdit_runtime.bench", "bench"),
    }
    assert ("m", "alone") not in used_in("m", tree)
