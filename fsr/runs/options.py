"""How to compute (never what), one process at a time per run, and data read once."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from filelock import FileLock, Timeout

from fsr import data, files, hardware
from fsr.attacks.inputs import own_randomness
from fsr.config import DATASETS, Run, run_id
from fsr.files import Interrupted, MissingData, TimeUp
from fsr.store.weights import digest
from fsr.train import distributed


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compute, never what: none of it is part of a run's id."""

    device: str | None = None
    deadline: float | None = None  # time.monotonic() to stop at
    interrupted: Callable[[], bool] = lambda: False  # polled between batches
    # called with (run id, what, done, of), and by executors with (run id, "done", 1, 1) after a task
    report: Callable[[str, str, int, int], None] = lambda *_: None
    tensorboard: bool = False
    deterministic: bool = False

    @property
    def torch_device(self) -> torch.device:
        return hardware.device_named(self.device)

    def check(self) -> None:
        if self.interrupted():
            raise Interrupted("stopped by a signal; the same command goes on from here")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimeUp("the time limit is reached; the same command goes on from here")


DEFAULT = Options()


def once(run: Run, options: Options, done: Callable[[], bool], compute: Callable[[], object], part: str = "") -> None:
    """Call compute() unless done(); another process that wants the same run and part waits, and finds it done."""
    if distributed.decide(done()):
        return
    files.writable()  # makes the folder of locks
    lock, patience = FileLock(files.results() / ".locks" / f"{run_id(run)}{part and '.'}{part}.lock"), 0.0
    while not (distributed.rank() or lock.is_locked):
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            patience = 0.25
            options.report(run_id(run), f"{part} waits for another process", 0, 1)
            options.check()
    try:
        if not distributed.decide(done()):
            if distributed.size() == 1:  # in a group all stop at the same batch
                options.check()
            if options.deterministic:
                hardware.make_deterministic()
            with own_randomness(0), torch.inference_mode(False), torch.enable_grad():  # whatever the caller has
                compute()
    finally:
        lock.release()


def same_images(run: Run, read: data.Data, *, keep: bool = False) -> data.Data:
    """read; of a folder: set MissingData where it trained on other images; keep: these are those of its training."""
    path = files.run_dir(run_id(run)) / "images.json"
    if run.dataset not in DATASETS and (keep or path.exists()):
        parts = {name: getattr(read, name) for name in ("train_x", "train_y", "held_x", "held_y")}
        images = digest(parts, repr(read.class_names))
        if not path.exists():
            files.save_json(path, {"run_id": run_id(run), "images": images})
        if files.load_json(path)["images"] != images:
            raise MissingData(f"{run.dataset} holds other images or classes than in training; put the former back")
    return read


_data = functools.lru_cache(maxsize=2)(lambda run, device, _folder: data.load(run, device))


def data_of(run: Run, device: torch.device | str = "cpu") -> data.Data:
    """The data of a run on a device, read once per process; MissingData for other images than those of its training."""
    key = {name: getattr(run, name) for name in ("dataset", "train_size", "test_size", "holdout", "image_size")}
    return same_images(run, _data(Run(**key), str(device), files.data()))
