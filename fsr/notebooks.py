"""Execute the numbered notebooks by papermill: strictly, never over the sources, not twice."""

import ast
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from unittest import mock

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from fsr import experiments, files, reference
from fsr.config import run_id
from fsr.files import FSRError, UsageError, did_you_mean, write_bytes

CELL_SECONDS = 6 * 3600
LIBRARIES = ("torch", "numpy", "pandas", "matplotlib", "seaborn", "scikit-learn")  # they decide what cells print


def numbered(only: str | None = None) -> list[str]:
    """Notebook names in order; only: comma-separated numbers or names (05,09-settings), unknown ones refused."""
    known = list(experiments.NOTEBOOKS)
    parts = known if only is None else [part.strip() for part in only.split(",") if part.strip()] or [only]
    found = {part: [n for n in known if n == part or n.split("-")[0] in (part, f"0{part}")] for part in parts}
    for part in (part for part, names in found.items() if not names):
        raise UsageError(f"unknown notebook {part!r}{did_you_mean(part, known)}; choose from {', '.join(known)}")
    return [name for name in known if any(name in names for names in found.values())]


def source(name: str) -> Path:
    """The source of a notebook; UsageError when there is none."""
    path = files.repository() / "notebooks" / f"{name}.ipynb"
    if name not in experiments.NOTEBOOKS or not path.is_file():
        raise UsageError(f"no notebook {path}; the sources are {', '.join(experiments.NOTEBOOKS)}")
    return path


def key(name: str, profile: str) -> str:
    """Hash of what an executed notebook depends on: source, package, library versions, the paper's cells, records."""
    experiments.profile_of(profile)
    package = Path(__file__).resolve().parent
    code = [path for path in sorted(package.rglob("*")) if path.suffix in (".py", ".csv", ".toml")]
    parts, sets = [source(name), reference.paper_file(), *code], experiments.SETS
    needed = [sets[profile][kind] for kind in experiments.NEEDS[name]]
    if name in ("00-setup", "15-verdict"):  # they say what every profile found
        needed = [each["all"] for each in sets.values()]
    for run in sorted({run_id(run) for runs in needed for run in runs}):
        parts += [p for p in sorted(files.run_dir(run).rglob("*")) if p.suffix in (".json", ".csv")]
    versions = {library: metadata.version(library).split(".")[:2] for library in LIBRARIES}
    total = hashlib.sha256(json.dumps([profile, sys.version_info[:2], versions]).encode())
    for path in parts:
        total.update(path.name.encode() + (path.read_bytes() if path.exists() else b""))
    return total.hexdigest()


def parameters_of(book: nbformat.NotebookNode) -> list[str]:
    """Names that the cell tagged `parameters` assigns; papermill's own parser misses `x: int | None = None`."""
    cells = [ast.parse(cell.source) for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    names = [node for cell in cells for node in ast.walk(cell) if isinstance(node, ast.Name)]
    return [node.id for node in names if isinstance(node.ctx, ast.Store)]


@contextmanager
def _environment(compute: bool) -> Iterator[None]:
    """What kernels inherit: this package, root and data, this interpreter, and whether to compute what is missing."""
    with tempfile.TemporaryDirectory() as folder:
        spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
        write_bytes(Path(folder, "kernels/python3/kernel.json"), json.dumps(spec).encode())
        first = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "JUPYTER_PATH": folder}
        changes = {k: os.pathsep.join(filter(None, (v, os.environ.get(k)))) for k, v in first.items()}
        changes |= {"FSR_ROOT": str(files.root()), "FSR_DATA": str(files.data()), "FSR_COMPUTE": str(int(compute))}
        with mock.patch.dict(os.environ, changes | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}):
            yield


def run_notebook(name: str, profile: str, **parameters) -> Path:
    """Execute one notebook into results/notebooks/<profile>; a failure (FSRError) is kept under results/.failed.

    sys.exit is a failure; an unknown parameter, about which papermill only warns, is refused.
    """
    known = parameters_of(nbformat.read(source(name), as_version=4))
    if unknown := sorted(parameters.keys() - set(known)):
        raise UsageError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    mark, scratch = key(name, profile), files.results() / ".failed" / profile / f"{name}.ipynb"
    write_bytes(scratch.parent.parent / ".gitignore", b"*\n")
    scratch.parent.mkdir(exist_ok=True)
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source(name), scratch)]  # it fills {names}
    options: dict = {"progress_bar": False, "kernel_name": "python3", "execution_timeout": CELL_SECONDS}
    options |= {"cwd": str(source(name).parent), "extra_arguments": ["--IPKernelApp.log_level=50"]}
    try:
        papermill.execute_notebook(*paths, {"profile": profile, **parameters}, **options)
    except PapermillExecutionError as error:
        raise FSRError(f"{name}: {error.ename}: {str(error.evalue)[:300]} (see {scratch})") from None
    book = nbformat.read(scratch, as_version=4)
    if any(out.get("ename") == "SystemExit" for cell in book.cells for out in cell.get("outputs", ())):
        raise FSRError(f"{name}: a cell called sys.exit; the cells behind it were not executed (see {scratch})")
    book.metadata["fsr"] = {"key": mark}
    for field in ("input_path", "output_path", "environment_variables"):  # paths of this machine say nothing elsewhere
        book.metadata["papermill"].pop(field, None)
    target = files.executed(profile) / f"{name}.ipynb"
    write_bytes(target, nbformat.writes(book).encode())
    scratch.unlink()
    return target


def execute(
    names: list[str], profile: str, *, force=False, compute=True, workers=1, report=print, interrupted=lambda: False
) -> list[str]:
    """Execute the notebooks that are not current, until interrupted(); returns a line per failure, the others run."""

    def one(name: str) -> tuple[str, bool]:
        with suppress(OSError, ValueError, KeyError):  # none was executed, or it is damaged
            book = json.loads((files.executed(profile) / f"{name}.ipynb").read_bytes())
            if book["metadata"]["fsr"]["key"] == key(name, profile) and not force:
                return f"{name}: unchanged", True
        if interrupted():
            return f"{name}: left out", True
        try:
            run_notebook(name, profile)
            return f"{name}: executed", True
        except (FSRError, nbformat.ValidationError, OSError, RuntimeError, ValueError, KeyError) as error:
            return f"{name}: {str(error).removeprefix(f'{name}: ')}", False

    failed: list[str] = []
    # in the sources' folder: papermill changes this process's folder and back, which threads would mix up
    with _environment(compute), chdir(files.repository() / "notebooks"), ThreadPoolExecutor(workers) as pool:
        for line, good in pool.map(one, names):
            report(line)
            failed += () if good else (line,)
    return failed
