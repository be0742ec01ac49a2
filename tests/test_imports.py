"""Rooms import downwards only, and what rebuilds tables imports no torch."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import fsr
from fsr.backbones import BACKBONES

PACKAGE = Path(fsr.__file__).parent
RANK = {
    name: rank
    for rank, names in enumerate(
        (
            "errors losses modes statistics syncnorm words winograd backbones attacks.losses",
            "checks fold",
            "specs",
            "config paths files hardware distributed progress attacks.gradient attacks.slopes attacks.components "
            "models.cost models.insert models.interventions models.official models.peers",
            "store experiments reference recipe readers weights capture models.fsr attacks.ascent attacks.auto "
            "attacks.query attacks.transfer",
            "data models tables compare fastnet attacks attacks.adaptive attacks.distill attacks.latent attacks.unmask",
            "objectives plots analyse audit",
            "fast prose",
            "train evaluate report",
            "runs",
            "executors explore",
            "cluster",
            "notebooks",
            "cli",
            "__main__",
        )
    )
    for name in names.split()
}
RANK |= {f"models.{backbone.code.partition('.')[0]}": 0 for backbone in BACKBONES.values()}
WITHOUT_TORCH = (
    "backbones",
    "config",
    "paths",
    "reference",
    "statistics",
    "experiments",
    "store",
    "tables",
    "plots",
    "prose",
    "report",
)


def _room(module: str) -> str:
    """The entry of RANK that a dotted module below fsr belongs to; in models/ and attacks/ every file is a room."""
    top = module.split(".")[0]
    room = module if top in ("models", "attacks") else top
    assert room in RANK, f"{room} has no rank: add it to RANK"
    return room


def _imported(path: Path) -> set[str]:
    """Dotted fsr modules that a file imports at its top level."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("fsr.") for alias in node.names if alias.name.startswith("fsr.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fsr":
            base = node.module.removeprefix("fsr").lstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / whole.replace(".", "/")).is_dir() or (
                    PACKAGE / (whole.replace(".", "/") + ".py")
                ).is_file()
                if is_module or base:
                    found.add(whole if is_module else base)
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    mine = _room(name)
    for other in _imported(path):
        theirs = _room(other)
        assert theirs == mine or RANK[theirs] < RANK[mine], f"{name} (rank {RANK[mine]}) imports {other}"


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
