"""Files written all or nothing and hashed, and where they came from."""

import contextlib
import difflib
import functools
import glob
import hashlib
import io
import json
import os
import platform
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np


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


class Busy(FSRError):
    """Another process is computing the same thing and did not finish in time."""


class Diverged(FSRError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class TimeUp(FSRError):
    """The time limit was reached: the checkpoint is whole and the same command resumes."""


class Interrupted(FSRError):
    """A signal asked to stop: the checkpoint is whole and the same command resumes."""

    exit_code = 130


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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` when something known begins with word or is close to it, else an empty string."""
    names = list(known)
    begun = [name for name in names if word and name.startswith(word)]
    close = begun or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def duration(seconds: float) -> str:
    """42 s, 12 min, 3.5 h or 2.1 days."""
    for limit, unit, size in ((90, "s", 1), (90 * 60, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.0f} {unit}" if unit != "h" else f"{value:.1f} h"
    return f"{seconds / 86400:.1f} days"


SCHEMA = 1  # of every record; a newer one is refused, an older one read
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "pyautoattack", "safetensors")


def write_bytes(path: Path, data: bytes) -> None:
    """All of it or nothing: a killed job or a full disk never leaves half a file under the final name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix="." + path.name[:40], suffix=".tmp")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another --root DIR") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise FSRError(f"cannot write {path}: {error.strerror}; earlier results are whole") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep(path: Path) -> None:
    """Remove what killed jobs left of writes to this path; only for whoever holds the lock over it."""
    for left in path.parent.glob(f".{glob.escape(path.name[:40])}*.tmp"):
        left.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes; MissingRecord when it is not there, CorruptFile when it cannot be read."""
    try:
        return sha256(path.read_bytes())
    except FileNotFoundError:
        raise MissingRecord(f"no such file: {path}") from None
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror}") from None


def _body(record: dict) -> str:
    return json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True)


def save_json(path: Path, record: dict) -> None:
    """Write a record with its schema and the hash of its content."""
    record = json.loads(json.dumps({"schema": SCHEMA, **record}))
    record["sha256"] = sha256(_body(record).encode())
    write_bytes(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def load_json(path: Path) -> dict:
    """Read a record; CorruptFile when its content does not match its hash or its schema is newer than this code."""
    try:
        record = json.loads(path.read_bytes())
        good = isinstance(record, dict) and record.get("sha256") == sha256(_body(record).encode())
    except FileNotFoundError:
        raise MissingRecord(f"no record {path}") from None
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError, RecursionError):
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


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as one npy, not compressed: the same bytes on every machine."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_npz(path: Path, digest: str) -> dict[str, np.ndarray]:
    """Arrays of an npz whose bytes have this digest; CorruptFile or MissingRecord otherwise, no pickles."""
    with _arrays(path, digest) as arrays:
        return {name: arrays[name] for name in arrays.files}


def load_npy(path: Path, digest: str) -> np.ndarray:
    """The array of an npy whose bytes have this digest; CorruptFile or MissingRecord otherwise, no pickles."""
    with _arrays(path, digest) as array:
        return array


@contextlib.contextmanager
def _arrays(path: Path, digest: str):
    """What numpy reads from a file whose bytes have this digest, closed afterwards."""
    if file_sha256(path) != digest:
        raise CorruptFile(f"{path} is damaged (its bytes do not match its record); move it and its json away")
    try:
        found = np.load(path, allow_pickle=False)
        with found if hasattr(found, "files") else contextlib.nullcontext():
            yield found
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise CorruptFile(f"{path} cannot be read: {error}") from None


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _versions() -> dict:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _origin() -> tuple[str | None, bool | None]:
    """(commit, dirty) of this code; a repository that does not track it, such as one around it, knows nothing of it."""
    if commit := os.environ.get("FSR_COMMIT"):
        return commit, {"0": False, "1": True}.get(os.environ.get("FSR_DIRTY", ""))
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    changes = _git("status", "--porcelain", "--", ".")
    return _git("rev-parse", "HEAD"), None if changes is None else bool(changes)


@functools.cache
def provenance() -> dict:
    """Commit, whether fsr/ had uncommitted changes, and package versions; unknown is None, never "" or False.

    Read once per process, which must be when it begins to compute: the code that is running is the code as it was
    loaded. Where FSR_COMMIT is set, it and
    FSR_DIRTY (0, 1) say both, as on a cluster's nodes, which have no repository.
    """
    commit, dirty = _origin()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "versions": _versions(),
    }
