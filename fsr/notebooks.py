"""Execute the numbered notebooks by papermill: strictly, never over the sources, not twice."""

import ast
import hashlib
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, suppress
from importlib import metadata
from pathlib import Path
from unittest import mock

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from papermill.exceptions import PapermillExecutionError

from fsr import experiments, files, reference
from fsr.config import run_id
from fsr.files import FSRError, UsageError, did_you_mean, write_bytes

LIBRARIES = ("torch", "numpy", "pandas", "matplotlib", "seaborn", "scikit-learn")  # they decide what cells print


def numbered(only: str | None = None) -> list[str]:
    """Notebook names in order; only: comma-separated numbers or names (05,09-settings), unknown ones refused."""
    names = {alias: name for name in experiments.NEEDS for alias in (name, name[:2], str(int(name[:2])))}
    chosen = names if only is None else [part.strip() for part in only.split(",")]
    for part in (part for part in chosen if part not in names):
        meant = f"{did_you_mean(part, names)}; choose from {', '.join(experiments.NEEDS)}"
        raise UsageError(f"unknown notebook {part!r}{meant}")
    return sorted({names[part] for part in chosen})


def source(name: str) -> Path:
    """The source of a notebook, which is never written."""
    return files.repository() / "notebooks" / f"{name}.ipynb"


def key(name: str, profile: str) -> str:
    """Hash of what an executed notebook depends on: source, package, library versions, the paper's cells, records."""
    package, sets = Path(__file__).resolve().parent, experiments.SETS
    parts = [source(name), reference.paper_file()]
    parts += [path for path in sorted(package.rglob("*")) if path.suffix in (".py", ".csv", ".toml")]
    needed = [sets[profile][kind] for kind in experiments.NEEDS[name]]
    if name in ("00-setup", "12-training-curves", "15-verdict"):  # they show what other profiles found
        needed = [each["all"] for each in sets.values()]
    for run in sorted({run_id(run) for runs in needed for run in runs}):
        parts += [p for p in sorted(files.run_dir(run).rglob("*")) if p.suffix in (".json", ".csv")]
    versions = {library: metadata.version(library).split(".")[:2] for library in LIBRARIES}
    texts = [path.name.encode() + path.read_bytes() for path in parts if path.exists()]
    return hashlib.sha256(json.dumps([profile, sys.version_info[:2], versions]).encode() + b"".join(texts)).hexdigest()


def parameters_of(book: nbformat.NotebookNode) -> list[str]:
    """Names that the cell tagged `parameters` assigns; papermill's own parser misses `x: int | None = None`."""
    cells = [ast.parse(cell.source) for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    names = [node for cell in cells for node in ast.walk(cell) if isinstance(node, ast.Name)]
    return [node.id for node in names if isinstance(node.ctx, ast.Store)]


def run_notebook(name: str, profile: str, **parameters) -> Path:
    """Execute one notebook into results/notebooks/<profile>; a failure is an FSRError, and kept in results/.failed."""
    names = parameters_of(nbformat.read(source(name), as_version=4))
    if unknown := sorted(parameters.keys() - set(names)):  # papermill only warns
        raise UsageError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(names)}")
    # with this process's number: another command may execute the same notebook
    mark, scratch = key(name, profile), files.results() / ".failed" / profile / f"{name}-{os.getpid()}.ipynb"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source(name), scratch)]  # it fills {names}
    options = {"kernel_name": "python3", "progress_bar": False, "extra_arguments": ["--IPKernelApp.log_level=50"]}
    options |= {"cwd": str(source(name).parent), "start_timeout": 600}  # seconds: of a kernel on a loaded machine
    try:
        book = papermill.execute_notebook(*paths, {"profile": profile, **parameters}, **options)
    except PapermillExecutionError as error:
        raise FSRError(f"{error.ename}: {str(error.evalue)[:300]} (see {scratch})") from None
    if any(out.get("ename") == "SystemExit" for cell in book.cells for out in cell.get("outputs", ())):
        raise FSRError(f"a cell called sys.exit; the cells behind it were not executed (see {scratch})")
    del book.metadata["papermill"]  # paths of this machine
    book.metadata["fsr"] = {"key": "" if parameters else mark}  # with others it does not pass for the usual one
    target = files.executed(profile) / f"{name}.ipynb"
    write_bytes(target, nbformat.writes(book).encode())
    scratch.unlink(missing_ok=True)
    return target


def execute(names: list[str], profile: str, *, workers=1, report=print, check=lambda: None) -> list[str]:
    """Execute the notebooks that are not current; returns a line per failure. check() runs first and raises to stop."""

    def one(name: str) -> str:
        with suppress(OSError, ValueError, KeyError):  # none was executed, or it is damaged
            book = json.loads((files.executed(profile) / f"{name}.ipynb").read_bytes())
            if book["metadata"]["fsr"]["key"] == key(name, profile):
                return "unchanged"
        check()
        try:
            run_notebook(name, profile)
            return "executed"
        except Exception as error:  # also of a damaged source
            return str(error)

    failed = []
    with tempfile.TemporaryDirectory() as folder:  # kernels get this interpreter, package, root and data
        write_kernel_spec(Path(folder, "kernels", "python3"))
        first = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "JUPYTER_PATH": folder}
        changes = {k: os.pathsep.join(filter(None, (v, os.environ.get(k)))) for k, v in first.items()}
        changes |= {"FSR_ROOT": str(files.root()), "FSR_DATA": str(files.data()), "FSR_COMPUTE": "0"}
        changes["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # or every kernel warns
        # in the sources' folder: papermill changes this process's folder and back, which threads would mix up
        with mock.patch.dict(os.environ, changes), chdir(source("").parent), ThreadPoolExecutor(workers) as pool:
            for name, state in zip(names, pool.map(one, names)):
                report(f"{name}: {state}")
                failed += [f"{name}: {state}"] * (state not in ("unchanged", "executed"))
    return failed
