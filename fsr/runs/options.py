"""How to compute (never what), one process at a time per run, and data read once."""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from filelock import FileLock, Timeout

from fsr import data, files, hardware
from fsr.config import Run, run_id
from fsr.files import FSRError, Interrupted, TimeUp, UsageError
from fsr.train import distributed

log = logging.getLogger("fsr")
LOCK_SECONDS = 24 * 3600.0  # that another process is waited for


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute, never what: none of it is part of a run's id.

    deadline: time.monotonic() to stop at; interrupted: polled between batches; report: called with (run id, what,
    done, of), and by executors with (run id, "done", 1, 1) when a run needs nothing more.
    """

    device: str | None = None
    deadline: float | None = None
    interrupted: Callable[[], bool] = lambda: False
    report: Callable[[str, str, int, int], None] = lambda *_: None
    tensorboard: bool = False

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


@contextmanager
def locked(run: Run, options: Options, part: str = "") -> Iterator[None]:
    """Only one process at a time trains a run, or computes the same part of it; another one waits, and says so.

    part: file-name safe, "" for the run's weights. A part's holder may take the weights' lock, never the reverse.
    In a group of processes (fsr.train.distributed) rank 0 holds the lock for all.
    """
    if distributed.rank():
        yield
        return
    folder, name, began = files.results() / ".locks", f"{run_id(run)}{part and '.'}{part}", time.monotonic()
    if not (folder / ".gitignore").exists():
        files.write_bytes(folder / ".gitignore", b"*\n")
    lock, waited = FileLock(folder / f"{name}.lock"), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=min(waited, 1), poll_interval=0.25)
        except Timeout:
            if not waited:
                log.warning("%s is being computed by another process: waiting", name)
            options.check()
            waited = time.monotonic() - began + 0.1
            if waited > LOCK_SECONDS:
                raise FSRError(f"{name} is still being computed by another process; try again later") from None
        except OSError as error:
            raise UsageError(f"cannot write to {folder} ({error.strerror}); give another --root DIR") from None
    try:
        yield
    finally:
        lock.release()


def once(run: Run, options: Options, done: Callable[[], bool], compute: Callable[[], object], part: str = "") -> None:
    """Compute under the lock unless it is done, or is done by the time the lock is free; rank 0 decides for a group."""
    if not distributed.decide(done()):
        with locked(run, options, part):
            if not distributed.decide(done()):
                if not distributed.together():  # in a group all stop at the same batch
                    options.check()
                compute()


@functools.lru_cache(maxsize=2)
def _data(key: Run, device: str) -> data.Data:
    return data.load(key, device)


def data_of(run: Run, device: torch.device | str = "cpu") -> data.Data:
    """The data of a run on a device, read once per process."""
    fields = ("dataset", "train_size", "test_size", "holdout", "image_size")
    with distributed.first_alone():
        return _data(Run(**{name: getattr(run, name) for name in fields}), str(device))
