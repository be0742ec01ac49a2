"""Where things are: one root, everything below it."""

import functools
import os
from pathlib import Path

from fsr.errors import UsageError

MARK = Path("notebooks") / "00-setup.ipynb"


def repository() -> Path:
    """The folder that holds `notebooks/00-setup.ipynb`: nearest parent of the working directory or of the package."""
    return _repository_of(Path.cwd())


@functools.lru_cache(maxsize=16)
def _repository_of(working: Path) -> Path:
    """`repository` as seen from a working directory: asked for thousands of times by one table."""
    for folder in (working, *working.parents, Path(__file__).resolve().parent.parent):
        if (folder / MARK).is_file():
            return folder
    raise UsageError(
        "no notebooks/00-setup.ipynb in this folder or above it; go into the repository or give --root DIR"
    )


def _folder(text: str, option: str) -> Path:
    """An absolute path, of a folder if it is there; UsageError otherwise."""
    try:
        path = Path(text).expanduser().resolve()
        a_file = path.exists() and not path.is_dir()
    except (RuntimeError, OSError, ValueError) as error:  # an unknown user's ~, a name too long, a null character
        raise UsageError(f"{option} {text[:80]!r} is not a path ({str(error)[:80]}); give a folder") from None
    if a_file:
        raise UsageError(f"{option} {text} is a file; give a folder")
    return path


@functools.lru_cache(maxsize=16)
def _seen(text: str, working: str) -> Path:
    """`_folder` of a --root as seen from a working directory."""
    return _folder(text, "--root")


def root() -> Path:
    """Results and figures lie below it: $FSR_ROOT (set by --root), else the repository."""
    explicit = os.environ.get("FSR_ROOT")
    return _seen(explicit, os.getcwd()) if explicit else repository()


def data() -> Path:
    """Data sets lie below it: $FSR_DATA (set by --data), else data/ below the root."""
    explicit = os.environ.get("FSR_DATA")
    return _folder(explicit, "--data") if explicit else root() / "data"


def use(*, root: Path | str | None = None, data: Path | str | None = None) -> None:
    """Make --root and --data hold for this process and every process it starts."""
    for name, value in (("FSR_ROOT", root), ("FSR_DATA", data)):
        if value is not None:
            os.environ[name] = str(_folder(str(value), "--root" if name == "FSR_ROOT" else "--data"))


def existing() -> None:
    """UsageError when the root is not there: what only reads makes none."""
    if not root().is_dir():
        raise UsageError(f"no folder {root()}; give an existing --root DIR, or type `python -m fsr run-all` to fill it")


def writable(folder: Path, option: str) -> None:
    """Make the folder and write to it; UsageError that names the option where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}); give another {option} DIR") from None


def results() -> Path:
    """All records, tables, executed notebooks and reports."""
    return root() / "results"


def _inside(parent: Path, name: str) -> Path:
    """A child of parent; a name that would escape it is refused."""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise UsageError(f"{name!r} is not a run id; `python -m fsr status` lists them")
    return parent / name


def run_dir(run_id: str) -> Path:
    """results/runs/<id>: config.json, env.json, history.csv, evals/, analyses/."""
    return _inside(results() / "runs", run_id)


def checkpoint_dir(run_id: str) -> Path:
    """results/checkpoints/<id>: last, best and ema weights, optimiser and RNG state."""
    return _inside(results() / "checkpoints", run_id)


def tables(profile: str) -> Path:
    """results/tables/<profile>."""
    return _inside(results() / "tables", profile)


def figures(profile: str) -> Path:
    """figures/<profile>."""
    return _inside(root() / "figures", profile)


def executed(profile: str) -> Path:
    """results/notebooks/<profile>: executed notebooks; the sources are never written."""
    return _inside(results() / "notebooks", profile)


def report(profile: str) -> Path:
    """results/report/<profile>.html."""
    return _inside(results() / "report", profile + ".html")


def sources() -> Path:
    """The folder of the notebooks' sources."""
    return repository() / "notebooks"
