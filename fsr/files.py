"""Errors that a user sees, paths, files written all or nothing and hashed, and where their code came from."""

import difflib
import hashlib
import io
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1  # of every record; a newer one is refused, an older one read
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "pyautoattack", "safetensors")


class FSRError(Exception):
    """Something failed; what succeeded is kept and the next call goes on from there."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:  # IPython's: a notebook shows the line alone
        return [f"{type(self).__name__}: {self}"]


class UsageError(FSRError):
    """Wrong use: the message is one line that says what is wrong and what to type."""

    exit_code = 2


class MissingData(UsageError):
    """A data set is not where it should be, or not whole."""


class CorruptFile(FSRError):
    """A checkpoint, record, history or outcomes file does not match its hash or cannot be read."""


class MissingRecord(FSRError):
    """A record that a reader needs is not there; the message names the command that makes it."""


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
    raise UsageError("no notebooks/00-setup.ipynb here or above; go into a clone, or give --root DIR (not to run-all)")


def _folder(option: str) -> Path | None:
    """The folder that $FSR_ROOT or $FSR_DATA names, absolute; None where it is not set."""
    text = os.environ.get(f"FSR_{option.upper()}")
    return Path(os.path.realpath(os.path.expanduser(text))) if text else None


def root() -> Path:
    """Results and figures lie below it: $FSR_ROOT (set by --root), else the repository."""
    return _folder("root") or repository()


def data() -> Path:
    """Data sets lie below it: $FSR_DATA (set by --data), else data/ below the root."""
    return _folder("data") or root() / "data"


def use(*, existing: bool = False, **folders: Path | str | None) -> None:
    """Make root= and data= hold for this process and every process it starts; existing: UsageError for a new root."""
    for name, folder in folders.items():
        if folder is not None:
            os.environ[f"FSR_{name.upper()}"] = os.path.realpath(os.path.expanduser(folder))  # absolute
    if existing and not os.path.isdir(root()):
        raise UsageError(f"no folder {root()}; give an existing --root DIR, or type `python -m fsr run-all` to fill it")


def results() -> Path:
    """All records, tables, executed notebooks and reports."""
    return root() / "results"


def writable() -> None:
    """UsageError unless the results can be written: a command fails at once and not after hours."""
    write_bytes(results() / ".locks" / ".gitignore", b"*\n")


def _place(folder: str, name: str, suffix: str = "") -> Path:
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):  # it would leave its folder
        raise UsageError(f"{name!r} is not a run id; `python -m fsr status` lists them")
    return root() / folder / (name + suffix)


run_dir = partial(_place, "results/runs")  # of a run id: config.json, env.json, history.csv, evals/, analyses/
checkpoint_dir = partial(_place, "results/checkpoints")  # of a run id: last, best and ema weights, and what resumes
tables = partial(_place, "results/tables")  # of a profile
executed = partial(_place, "results/notebooks")  # of a profile: executed notebooks; the sources are never written
report = partial(_place, "results/report", suffix=".html")  # of a profile
figures = partial(_place, "figures")  # of a profile


def did_you_mean(word: str, choices: Collection[str]) -> str:
    """` (did you mean 'x'?)` when something known begins with word or is close to it, else an empty string."""
    close = [name for name in choices if name.startswith(word or " ")] or difflib.get_close_matches(word, choices, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def choose(what: str, name: str, choices: Mapping[str, Any]) -> Any:
    """The choice of this name; UsageError for an unknown name lists the known ones. what: `attack`, `profile` ..."""
    if name not in choices:
        meant = did_you_mean(str(name), choices)
        raise UsageError(f"unknown {what} {name!r}{meant}; choose one of {', '.join(choices)}")
    return choices[name]


def write_bytes(path: Path, data: bytes) -> None:
    """All of it or nothing: a killed job or a full disk never leaves half a file under the final name."""
    temporary = path.with_name(f".{path.name[:40]}{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; earlier results are whole; make room or give another --root DIR"
        raise (FSRError if os.path.exists(temporary) else UsageError)(text) from None
    finally:
        with suppress(OSError):  # gone already unless something failed
            temporary.unlink()


def write_changed(path: Path, content: str | bytes) -> Path:
    """Write a text or bytes; a file that holds the same is left alone."""
    data = content.encode() if isinstance(content, str) else content
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)
    return path


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path, digest: str | None = None) -> bytes:
    """A file's bytes; MissingRecord when it is not there, CorruptFile when its sha256 is not digest."""
    if digest is None and not path.exists():
        raise MissingRecord(f"no {path}; `python -m fsr run-all` makes what is missing")
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror}") from None
    if digest not in (None, sha256(data)):
        raise CorruptFile(f"{path} is damaged or gone; move its json away and type `python -m fsr run-all`")
    return data


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
    if record.get("schema", 0) not in range(SCHEMA + 1):
        raise CorruptFile(f"{path} was written by a newer version (schema {record['schema']}); update this package")
    return record


def npz_bytes(**arrays) -> bytes:
    """The arrays as one compressed npz; the same arrays always give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def load_npz(path: Path, digest: str) -> dict[str, np.ndarray]:
    """Arrays of an npz (an npy as `array`), no pickles; CorruptFile when its bytes have another digest."""
    loaded = np.load(io.BytesIO(read_bytes(path, digest)), allow_pickle=False)
    return {"array": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)


@cache
def provenance() -> dict:
    """Commit, whether fsr/ had changes, None where unknown, and versions, read once. $FSR_COMMIT, $FSR_DIRTY win."""
    commit, dirty = os.environ.get("FSR_COMMIT"), {"0": False, "1": True}.get(os.environ.get("FSR_DIRTY", ""))
    if not commit:
        commit, dirty, here = None, None, Path(__file__).resolve()
        ask = partial(subprocess.check_output, cwd=here.parent, stderr=subprocess.DEVNULL, text=True, timeout=20)
        with suppress(OSError, subprocess.SubprocessError):  # of git, also where another repository is around this code
            commit = ask(["git", "rev-parse", "HEAD", f"HEAD:./{here.name}"]).split()[0]
            dirty = bool(ask(["git", "status", "--porcelain", "--", "."]))
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"commit": commit, "dirty": dirty, "python": platform.python_version(), "versions": versions}
