"""Rooms import from lower floors only, and what rebuilds tables imports no torch."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import fsr

PACKAGE = Path(fsr.__file__).parent
FLOORS = (
    "files statistics",
    "config hardware",
    "store reference experiments data models attacks",
    "tables train audit analyse",
    "plots evaluate",
    "report runs",
    "explore notebooks",
    "cli",
    "__main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms.split()}
WITHOUT_TORCH = ("files", "config", "statistics", "reference", "experiments", "store", "tables", "plots", "report")
TREES = {p: ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"}


def _modules(node: ast.AST) -> list[str]:
    """What an import statement names, as fsr.room or package.module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"fsr.{alias.name}" for alias in node.names] if node.module == "fsr" else [node.module]
    return []


@pytest.mark.parametrize("path", TREES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    names = [name.split(".") for node in TREES[path].body for name in _modules(node)]
    wrong = {name[1] for name in names if name[0] == "fsr" and name[1:] and FLOOR[name[1]] >= FLOOR[room]} - {room}
    assert not wrong, f"{path.name} (floor {FLOOR[room]}) imports {wrong}"


def test_no_torch_is_needed_to_rebuild_a_table():
    """One room after the other: the first that brings torch, or scikit-learn, which is slow to import, is named."""
    code = "import importlib, sys\nfor room in ROOMS:\n    importlib.import_module(f'fsr.{room}')\n"
    code += "    loaded = {'torch', 'sklearn'} & sys.modules.keys()\n"
    code += "    assert not loaded, f'{room} imports {loaded}'\n"
    code = code.replace("ROOMS", repr(WITHOUT_TORCH))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_imported_that_is_not_declared_and_nothing_hides_what_it_does():
    """Imports by name, wherever in a file; Ray alone is an extra. No star imports, bare excepts or eval."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lines, provided = project["dependencies"] + project["optional-dependencies"]["cluster"], packages_distributions()
    declared = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in lines}
    for path, node in ((path, node) for path, tree in TREES.items() for node in ast.walk(tree)):
        for name in {name.split(".")[0] for name in _modules(node)} - sys.stdlib_module_names - {"fsr"}:
            assert declared & {one.lower() for one in provided.get(name, [name])}, f"{path} imports {name}"
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), path
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path
        assert getattr(getattr(node, "func", None), "id", None) not in ("eval", "exec"), path
