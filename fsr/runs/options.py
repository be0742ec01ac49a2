"""How to compute (never what), one process at a time per run, and data read once."""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from filelock import FileLock, Timeout

from fsr import data, files, hardware
from fsr.config import Run, run_id
from fsr.files import FSRError, Interrupted, TimeUp
from fsr.train import distributed

log = logging.getLogger("fsr")
LOCK_SECONDS = 24 * 3600.0  # that another process is waited for


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute, never what: none of it is part of a run's id."""

    device: str | None = None
    deadline: float | None = None  # time.monotonic() to stop at
    interrupted: Callable[[], bool] = lambda: False  # polled between batches
    # called with (run id, what, done, of), and by executors with (run id, "done", 1, 1) when a run needs nothing more
    report: Callable[[str, str, int, int], None] = lambda *_: None
    tensorboard: bool = False

    @property
    def torch_device(self) -> torch.device:
        return hardware.device_named(self.device)

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def check(self) -> None:
        if self.interrupted():
            raise Interrupted("stopped by a signal; the same command goes on from here")
        if self.late():
            raise TimeUp("the time limit is reached; the same command goes on from here")


def once(run: Run, options: Options, done: Callable[[], bool], compute: Callable[[], object], part: str = "") -> None:
    """Compute unless it is done: one process at a time a run's weights, or a part of it; another waits, and says so."""
    if distributed.decide(done()):
        return
    folder, name = files.results() / ".locks", f"{run_id(run)}{part and '.'}{part}"
    files.write_bytes(folder / ".gitignore", b"*\n")
    lock, wait, until = FileLock(folder / f"{name}.lock"), 0.0, time.monotonic() + LOCK_SECONDS
    while not (distributed.rank() or lock.is_locked):
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            if not wait:
                log.warning("%s is being computed by another process: waiting", name)
            elif time.monotonic() > until:
                raise FSRError(f"{name} is still being computed by another process; try again later") from None
            options.check()
            wait = 0.25
    try:
        if not distributed.decide(done()):
            if distributed.size() == 1:  # in a group all stop at the same batch
                options.check()
            compute()
    finally:
        lock.release()


_data = functools.lru_cache(maxsize=2)(data.load)


def data_of(run: Run, device: torch.device | str = "cpu") -> data.Data:
    """The data of a run on a device, read once per process."""
    key = {name: getattr(run, name) for name in ("dataset", "train_size", "test_size", "holdout", "image_size")}
    with distributed.first_alone():
        return _data(Run(**key), str(device))
