"""Errors that a user sees, paths, files written all or nothing and hashed, and where their code came from."""

import difflib
import functools
import hashlib
import io
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np

SCHEMA = 1  # of every record; a newer one is refused, an older one read
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "pyautoattack", "safetensors")


class FSRError(Exception):
    """Something failed; what succeeded is kept and the next call goes on from there."""

    exit_code = 1


class UsageError(FSRError):
    """Wrong use: the message is one line that says what is wrong and what to type."""

    exit_code = 2


class MissingData(UsageError):
    """A data set is not where it should be, or not whole."""


class CorruptFile(FSRError):
    """A checkpoint, record, history or outcomes file does not match its hash or cannot be read."""


class MissingRecord(FSRError):
    """A record that a reader needs is not there; the message names the command that makes it."""


class Diverged(FSRError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class TimeUp(FSRError):
    """The time limit was reached: the checkpoint is whole and the same command resumes."""


class Interrupted(FSRError):
    """A signal asked to stop: the checkpoint is whole and the same command resumes."""

    exit_code = 130


def repository() -> Path:
    """The folder that holds `notebooks/00-setup.ipynb`: nearest parent of the working directory or of the package."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks" / "00-setup.ipynb").is_file():
            return folder
    raise UsageError("no notebooks/00-setup.ipynb here or above; go into the repository or give --root DIR")


def _folder(text: str, option: str) -> Path:
    try:
        path = Path(text).expanduser().resolve()
        if path.exists() and not path.is_dir():
            raise ValueError("it is a file")
        return path
    except (RuntimeError, OSError, ValueError) as error:  # an unknown user's ~, a name too long, a null character
        raise UsageError(f"{option} {text[:80]!r} is no folder ({str(error)[:80]}); give another DIR") from None


def root() -> Path:
    """Results and figures lie below it: $FSR_ROOT (set by --root), else the repository."""
    return _folder(text, "--root") if (text := os.environ.get("FSR_ROOT")) else repository()


def data() -> Path:
    """Data sets lie below it: $FSR_DATA (set by --data), else data/ below the root."""
    return _folder(text, "--data") if (text := os.environ.get("FSR_DATA")) else root() / "data"


def use(*, root: Path | str | None = None, data: Path | str | None = None) -> None:
    """Make --root and --data hold for this process and every process it starts."""
    for name, value in (("root", root), ("data", data)):
        if value is not None:
            os.environ[f"FSR_{name.upper()}"] = str(_folder(str(value), f"--{name}"))


def existing() -> None:
    """Raise UsageError when the root is not there: commands that only read never make it."""
    if not root().is_dir():
        raise UsageError(f"no folder {root()}; give an existing --root DIR, or type `python -m fsr run-all` to fill it")


def writable(folder: Path, option: str) -> None:
    """Make the folder and write to it; UsageError that names the option where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}); give another {option} DIR") from None


def results() -> Path:
    """All records, tables, executed notebooks and reports."""
    return root() / "results"


def _place(folder: str, suffix: str = "") -> Callable[[str], Path]:
    def path(name: str) -> Path:  # of a run or a profile, whose name must not leave its folder
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise UsageError(f"{name!r} is not a run id; `python -m fsr status` lists them")
        return root() / folder / (name + suffix)

    return path


run_dir = _place("results/runs")  # of a run id: config.json, env.json, history.csv, evals/, analyses/
checkpoint_dir = _place("results/checkpoints")  # of a run id: last, best and ema weights, and what resumes
tables = _place("results/tables")  # of a profile
executed = _place("results/notebooks")  # of a profile: executed notebooks; the sources are never written
report = _place("results/report", ".html")  # of a profile
figures = _place("figures")  # of a profile


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when something known begins with word or is close to it, else an empty string."""
    names = list(known)
    close = [name for name in names if word and name.startswith(word)] or difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def duration(seconds: float) -> str:
    """42 s, 12 min, 3.5 h or 2.1 days."""
    if seconds < 90 * 60:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def write_bytes(path: Path, data: bytes) -> None:
    """All of it or nothing: a killed job or a full disk never leaves half a file under the final name."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="." + path.name[:40], suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; earlier results are whole; make room or give another --root DIR"
        raise (FSRError if temporary else UsageError)(text) from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)  # gone already unless something failed


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path) -> bytes:
    """A file's bytes; MissingRecord when it is not there, CorruptFile when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingRecord(f"no {path}; `python -m fsr run-all` makes what is missing") from None
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror}") from None


def _digest(record: dict) -> str:
    return sha256(json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True).encode())


def save_json(path: Path, record: dict) -> None:
    """Write a record with its schema and the hash of its content."""
    record = json.loads(json.dumps({"schema": SCHEMA, **record}))
    record["sha256"] = _digest(record)
    write_bytes(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def load_json(path: Path) -> dict:
    """Read a record; CorruptFile when its content does not match its hash or its schema is newer than this code."""
    try:
        record = json.loads(read_bytes(path))
        good = isinstance(record, dict) and record.get("sha256") == _digest(record)
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise CorruptFile(f"{path} is damaged (its content does not match its hash); move it away to compute it again")
    if record.get("schema", 0) > SCHEMA:
        raise CorruptFile(f"{path} was written by a newer version (schema {record['schema']}); update this package")
    return record


def npz_bytes(**arrays) -> bytes:
    """The arrays as one compressed npz; the same arrays always give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def load_npz(path: Path, digest: str) -> dict[str, np.ndarray]:
    """Arrays of an npz (an npy as `array`), no pickles; CorruptFile when its bytes have another digest."""
    if sha256(data := read_bytes(path)) != digest:
        raise CorruptFile(f"{path} is damaged (its bytes do not match its record); move it and its json away")
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    return {"array": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)


@functools.cache
def provenance() -> dict:
    """Commit, whether fsr/ had changes, and versions, read once; None where unknown. $FSR_COMMIT, $FSR_DIRTY win."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    commit, dirty = os.environ.get("FSR_COMMIT"), {"0": False, "1": True}.get(os.environ.get("FSR_DIRTY", ""))
    if not commit:
        commit, dirty, here = None, None, Path(__file__).resolve()
        ask = functools.partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, timeout=20, check=True)
        with suppress(OSError, subprocess.SubprocessError):
            ask(["git", "cat-file", "-e", f"HEAD:./{here.name}"])  # fails in another repository around this code
            commit = ask(["git", "rev-parse", "HEAD"]).stdout.strip()
            dirty = bool(ask(["git", "status", "--porcelain", "--", "."]).stdout)
    return {"commit": commit, "dirty": dirty, "python": platform.python_version(), "versions": versions}
