"""Files written all or nothing and hashed, and where they came from."""

import contextlib
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
from importlib import metadata
from pathlib import Path

import numpy as np

from fsr.errors import CorruptFile, FSRError, MissingRecord, UsageError

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
