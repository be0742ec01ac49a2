"""How to compute (never what), one process at a time per run, and data read once."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from filelock import FileLock, Timeout

from fsr import data as data_room
from fsr import distributed, hardware, paths
from fsr.config import Run, run_id
from fsr.errors import Busy, Interrupted, TimeUp
from fsr.files import write_bytes

log = logging.getLogger("fsr")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute, never what: none of it is part of a run's id.

    switches: compile, graphs, channels_last (None: measured defaults); deadline: time.time() at which to
    stop; interrupted: polled between batches; report: called with (run id, what, done, of).
    """

    device: str | None = None
    switches: tuple[tuple[str, bool], ...] = ()
    deadline: float | None = None
    interrupted: Callable[[], bool] = lambda: False
    report: Callable[[str, str, int, int], None] = lambda *_: None
    tensorboard: bool = False
    lock_seconds: float = 24 * 3600.0

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return hardware.device_named(self.device)

    def check(self) -> None:
        """Raise TimeUp or Interrupted when it is time."""
        if self.interrupted():
            raise Interrupted("stopped by a signal; the same command goes on from here")
        if self.deadline is not None and time.time() >= self.deadline:
            raise TimeUp("the time limit is reached; the same command goes on from here")


@contextlib.contextmanager
def locked(run: Run, options: Options, part: str = ""):
    """Only one process at a time trains a run, or computes the same part of it; another one waits, and says so.

    part: file-name safe, "" for the run's weights. A part's holder may take the weights' lock, never the other way
    round, so that nobody waits in a circle. In a group of processes (fsr.distributed) rank 0 holds it for all.
    """
    if distributed.rank():
        yield
        return
    folder = paths.results() / ".locks"
    if not (folder / ".gitignore").exists():
        write_bytes(folder / ".gitignore", b"*\n")
    name = f"{run_id(run)}.{part}" if part else run_id(run)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s is being computed by another process: waiting", name)
        _wait(lock, name, options)
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
