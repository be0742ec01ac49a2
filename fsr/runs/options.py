"""How to compute (never what), one process at a time per run, and data read once."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from fsr import data, files, hardware
from fsr.config import Run, run_id
from fsr.files import Busy, CorruptFile, FSRError, Interrupted, TimeUp, UsageError, load_json, write_bytes
from fsr.train import distributed

log = logging.getLogger("fsr")


def never() -> bool:
    """False: nothing interrupts."""
    return False


def ignore(*_) -> None:
    """Report to nobody."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute, never what: none of it is part of a run's id.

    switches: as for Trainer; deadline: time.monotonic() to stop at; interrupted: polled between batches; report:
    called with (run id, what, done, of), and by executors with (run id, "done", 1, 1) when a run needs nothing more.
    """

    device: str | None = None
    switches: tuple[tuple[str, bool], ...] = ()
    deadline: float | None = None
    interrupted: Callable[[], bool] = never
    report: Callable[[str, str, int, int], None] = ignore
    tensorboard: bool = False
    lock_seconds: float = 24 * 3600.0

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return hardware.device_named(self.device)

    def late(self) -> bool:
        """Is the time limit reached?"""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def check(self) -> None:
        """Raise TimeUp or Interrupted when it is time."""
        if self.interrupted():
            raise Interrupted("stopped by a signal; the same command goes on from here")
        if self.late():
            raise TimeUp("the time limit is reached; the same command goes on from here")


@contextlib.contextmanager
def locked(run: Run, options: Options, part: str = "") -> Iterator[None]:
    """Only one process at a time trains a run, or computes the same part of it; another one waits, and says so.

    part: file-name safe, "" for the run's weights. A part's holder may take the weights' lock, never the reverse.
    In a group of processes (fsr.train.distributed) rank 0 holds the lock for all.
    """
    if distributed.rank():
        yield
        return
    folder = files.results() / ".locks"
    if not (folder / ".gitignore").exists():
        write_bytes(folder / ".gitignore", b"*\n")
    lock = FileLock(folder / f"{run_id(run)}{part and '.'}{part}.lock")
    try:
        _acquire(lock, options)
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}); give another --root DIR") from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, options: Options) -> None:
    name, until = Path(lock.lock_file).stem, time.monotonic() + options.lock_seconds
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
        return
    log.warning("%s is being computed by another process: waiting", name)
    while time.monotonic() < until:
        options.check()
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=1.0, poll_interval=0.25)
            return
    raise Busy(f"{name} is still being computed by another process; try again later")


@contextlib.contextmanager
def memory_explained(run: Run) -> Iterator[None]:
    """Turn running out of memory, on a GPU or not, into one line that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if type(error) is RuntimeError and "can't allocate memory" not in text and "out of memory" not in text:
            raise
        advice = "precision bf16, " if run.precision == "float32" else ""
        raise FSRError(
            f"out of memory at batch {run.batch}, {run.precision}: try a smaller batch, {advice}a narrower width or "
            f"fewer --workers ({text.strip()[:80]})"
        ) from None


def load_partial(path: Path, identity: dict) -> dict:
    """What an interrupted call wrote, {} when there is nothing or it belongs to something else than `identity`.

    identity: fields and values that the file must hold, such as the weights' digest. A damaged file is renamed.
    """
    if not path.exists():
        return {}
    try:
        record = load_json(path)
    except CorruptFile as error:
        aside = path.replace(path.with_name(path.name + ".damaged"))
        log.warning("%s; this part starts again, the file is kept as %s", str(error).split(";")[0], aside.name)
        return {}
    return record if all(record.get(name) == value for name, value in identity.items()) else {}


@functools.lru_cache(maxsize=2)
def _data(key: Run, device: str) -> data.Data:
    return data.load(key, device)


def data_of(run: Run, device: torch.device | str = "cpu") -> data.Data:
    """The data of a run on a device, read once per process."""
    fields = ("dataset", "train_size", "test_size", "holdout", "image_size")
    with distributed.first_alone():
        return _data(Run(**{name: getattr(run, name) for name in fields}), str(device))
