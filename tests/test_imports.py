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
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def _imported(path: Path) -> set[str]:
    """Rooms of fsr that a file imports at its top level."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fsr.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "fsr":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fsr."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    room = "audit" if path.name == "adaptive.py" else room  # only the audit uses it
    wrong = {other for other in _imported(path) - {room} if FLOOR[other] >= FLOOR[room]}
    assert not wrong, f"{path.name} (floor {FLOOR[room]}) imports {wrong}"


def test_no_torch_is_needed_to_rebuild_a_table():
    """One room after the other: the first that brings torch, or scikit-learn, which is slow to import, is named."""
    code = (
        "import importlib, sys\n"
        f"for room in {WITHOUT_TORCH}:\n"
        "    importlib.import_module(f'fsr.{room}')\n"
        "    found = {'torch', 'sklearn'} & sys.modules.keys()\n"
        "    assert not found, f'{room} imports {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_star_imports_bare_excepts_or_eval():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), path
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            assert called not in ("eval", "exec"), path


def test_everything_imported_is_declared():
    """By name, wherever in a file it is imported; Ray alone is an extra."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["cluster"]
    declared = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in lines}
    provided = packages_distributions()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"fsr"}:
                assert declared & {one.lower() for one in provided.get(name, [name])}, f"{path} imports {name}"
