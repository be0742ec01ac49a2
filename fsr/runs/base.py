"""How to compute (never what), one process at a time per run, and data read once."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from fsr import data as data_room
from fsr import files, hardware
from fsr.config import Run, run_id
from fsr.files import Busy, CorruptFile, FSRError, Interrupted, TimeUp, UsageError, load_json, write_bytes
from fsr.train import distributed

log = logging.getLogger("fsr")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute, never what: none of it is part of a run's id.

    switches: compile, graphs, channels_last, update (as for Trainer); deadline: time.monotonic() to stop at,
    one clock for all processes of a machine, which no change of the date moves; interrupted: polled between batches;
    report: called with (run id, what, done, of), by executors with (run id, "done", 1, 1) too when a run needs nothing
    more; half: keep a finished training's parameters in float16, so that they travel in half the bytes. Everything
    after the training sees these rounded weights. sharing: computations of one's own on this device at once; with more
    than one the seconds of a training are no measure of speed, and its record says so.
    """

    device: str | None = None
    switches: tuple[tuple[str, bool], ...] = ()
    deadline: float | None = None
    interrupted: Callable[[], bool] = lambda: False
    report: Callable[[str, str, int, int], None] = lambda *_: None
    tensorboard: bool = False
    half: bool = False
    sharing: int = 1
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
def locked(run: Run, options: Options, part: str = ""):
    """Only one process at a time trains a run, or computes the same part of it; another one waits, and says so.

    part: file-name safe, "" for the run's weights. A part's holder may take the weights' lock, never the other way
    round, so that nobody waits in a circle. In a group of processes (fsr.train.distributed) rank 0 holds it for all.
    """
    if distributed.rank():
        yield
        return
    folder = files.results() / ".locks"
    if not (folder / ".gitignore").exists():
        write_bytes(folder / ".gitignore", b"*\n")
    name = f"{run_id(run)}.{part}" if part else run_id(run)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s is being computed by another process: waiting", name)
        _wait(lock, name, options)
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}); give another --root DIR") from None
    try:
        yield
    finally:
        lock.release()


def _wait(lock: FileLock, name: str, options: Options) -> None:
    until = time.monotonic() + options.lock_seconds
    while time.monotonic() < until:
        options.check()
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=1.0, poll_interval=0.25)
            return
    raise Busy(f"{name} is still being computed by another process; try again later")


@contextlib.contextmanager
def memory_explained(run: Run):
    """Running out of memory, on a GPU or not, is one line that says what to change; everything saved stays."""
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


def scratch(path: Path, identity: dict) -> dict:
    """What a stopped call left to go on from, {} without any or where it was made of something else than `identity`.

    identity: what the file must say of itself, such as the digest of the weights; None: it says nothing of it. A
    damaged file is named and kept beside the new one.
    """
    if not path.exists():
        return {}
    try:
        record = load_json(path)
        return record if all(record.get(name) == value for name, value in identity.items()) else {}
    except CorruptFile as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        log.warning("%s; this part starts again, the file is kept as %s", str(error).split(";")[0], aside.name)
        return {}


@functools.lru_cache(maxsize=2)
def _data(key: Run, device: str) -> data_room.Data:
    return data_room.load(key, device)


def data_of(run: Run, device="cpu") -> data_room.Data:
    """The data of a run, read once per process."""
    key = Run(
        dataset=run.dataset,
        train_size=run.train_size,
        test_size=run.test_size,
        holdout=run.holdout,
        image_size=run.image_size,
    )
    with distributed.first_alone():
        return _data(key, str(device))
