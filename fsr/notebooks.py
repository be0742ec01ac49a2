"""Execute the numbered notebooks as JupyterLab would: strictly, never over the sources, not twice."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from papermill.exceptions import PapermillExecutionError

from fsr import experiments, files, reference
from fsr.config import run_id
from fsr.files import FSRError, UsageError, did_you_mean, write_bytes

log = logging.getLogger("fsr")
CELL_SECONDS = 6 * 3600


def numbered(only: str | None = None) -> list[str]:
    """Notebook names in order; only: comma-separated numbers or names (05,09-settings), unknown ones refused."""
    names = list(experiments.NOTEBOOKS)
    if only is None:
        return names
    chosen = []
    for part in (p.strip() for p in only.split(",") if p.strip()):
        found = [n for n in names if n == part or n.split("-")[0] == part.zfill(2)]
        if not found:
            raise UsageError(f"unknown notebook {part!r}{did_you_mean(part, names)}; choose from {', '.join(names)}")
        chosen += found
    if not chosen:
        raise UsageError("--only names no notebook; for example --only 05,09")
    return [n for n in names if n in chosen]


def source(name: str) -> Path:
    """The source of a notebook; UsageError when there is none."""
    path = files.sources() / f"{name}.ipynb"
    if name not in experiments.NOTEBOOKS or not path.is_file():
        raise UsageError(f"no notebook {path}; the sources are {', '.join(experiments.NOTEBOOKS)}")
    return path


def key(name: str, profile: str) -> str:
    """Hash of what an executed notebook depends on: its source, the package, the paper's cells and its records."""
    experiments.profile_of(profile)
    package = Path(__file__).resolve().parent
    parts = [source(name), *(path for kind in ("*.py", "*.c", "*.csv") for path in sorted(package.rglob(kind)))]
    parts += [path for path in (reference.paper_file(),) if path.exists()]
    runs = {run_id(r) for s in experiments.NEEDS[name] for r in experiments.SETS[profile][s]}
    for each in sorted(runs):
        folder = files.run_dir(each)
        parts += [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".csv")]
    total = hashlib.sha256(profile.encode())
    for path in parts:
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def is_current(name: str, profile: str) -> bool:
    """Was this notebook executed with exactly this source, package and records?"""
    path = files.executed(profile) / f"{name}.ipynb"
    try:
        return json.loads(path.read_bytes())["metadata"].get("fsr", {}).get("key") == key(name, profile)
    except (OSError, ValueError, KeyError):
        return False


def check_parameters(name: str, parameters: dict) -> None:
    """papermill only warns about an unknown parameter; here it is refused."""
    known = papermill.inspect_notebook(_verbatim(source(name)))
    unknown = sorted(parameters.keys() - known.keys())
    if unknown:
        raise UsageError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")


def _in_front(name: str, folder: Path | str) -> str:
    """The folder in front of those that a path variable of the user names."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get(name)])])


def _verbatim(path: Path) -> str:
    """A path as papermill takes it, which would fill in {names}."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _environment(profile: str, compute: bool):
    """What a kernel inherits: this interpreter and package, root, profile, whether to compute what is missing."""
    with TemporaryDirectory() as folder:
        write_kernel_spec(Path(folder) / "kernels" / "python3")  # a site may have another interpreter of that name
        with _variables(profile, compute, folder):
            yield


@contextmanager
def _variables(profile: str, compute: bool, folder: str):
    changes = {
        "FSR_PROFILE": profile,
        "FSR_ROOT": str(files.root()),
        "FSR_DATA": str(files.data()),
        "FSR_COMPUTE": "1" if compute else "0",
        "PYTHONPATH": _in_front("PYTHONPATH", Path(__file__).resolve().parent.parent),
        "JUPYTER_PATH": _in_front("JUPYTER_PATH", folder),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_notebook(name: str, profile: str, **parameters) -> Path:
    """Execute one notebook into results/notebooks/<profile>; FSRError names it and its last error when it fails.

    A failed execution is kept under results/.failed and never replaces a good one.
    """
    check_parameters(name, parameters)
    target = files.executed(profile) / f"{name}.ipynb"
    scratch = files.results() / ".failed" / profile / f"{name}.ipynb"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(scratch.parent.parent / ".gitignore", b"*\n")
    mark = key(name, profile)
    try:
        papermill.execute_notebook(
            _verbatim(source(name)), _verbatim(scratch), {"profile": profile, **parameters}, cwd=str(files.sources()),
            progress_bar=False, kernel_name="python3", execution_timeout=CELL_SECONDS, log_output=False,
            extra_arguments=["--IPKernelApp.log_level=50"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise FSRError(f"{name}: {error.ename}: {str(error.evalue)[:300]} (see {scratch})") from None
    book = nbformat.read(scratch, as_version=4)
    book.metadata["fsr"] = {"key": mark}
    for field in ("input_path", "output_path", "environment_variables"):  # paths of this machine say nothing elsewhere
        book.metadata.get("papermill", {}).pop(field, None)
    write_bytes(target, nbformat.writes(book).encode())
    scratch.unlink()
    return target


def execute(
    names: list[str],
    profile: str,
    *,
    force: bool = False,
    compute: bool = True,
    workers: int = 1,
    report: Callable[[str], object] = print,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Execute the notebooks that are not current, `workers` at once; returns a line per failure, the others still run.

    All of them in the sources' folder: papermill changes this process's folder and back, which threads would mix up.
    Once interrupted() is true none begins; those that run, seconds each, are finished.
    """
    failed: list[str] = []

    def one(name: str) -> tuple[str, bool]:
        if not force and is_current(name, profile):
            return f"{name}: unchanged", True
        if interrupted():
            return f"{name}: left out", True
        try:
            run_notebook(name, profile)
        except (FSRError, nbformat.ValidationError, OSError, RuntimeError, ValueError, KeyError) as error:
            return f"{name}: {error}" if not str(error).startswith(name) else str(error), False
        return f"{name}: executed", True

    with _environment(profile, compute), chdir(files.sources()), ThreadPoolExecutor(workers) as pool:
        for line, good in pool.map(one, names):  # in the notebooks' order
            report(line)
            failed += () if good else (line,)
    return failed
