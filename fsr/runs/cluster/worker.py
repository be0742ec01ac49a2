"""A worker's side: one job, its line to the driver, and the board between the two."""

import contextlib
import socket
import time
from dataclasses import replace
from pathlib import Path

import torch

from fsr import files, hardware
from fsr.files import FSRError, Interrupted, UsageError
from fsr.runs import Options, locked, perform
from fsr.runs.cluster.plan import Job
from fsr.runs.training import ensure_weights

TELL_SECONDS = 0.5  # how often a worker reports


class Board:
    """What workers say and the driver hears; one word goes back: stop.  An actor that needs no core."""

    def __init__(self):
        self.news, self.begun, self.stopping = {}, set(), False

    def tell(self, key: int, event: tuple | None = None) -> bool:
        """A worker has begun job `key`, or got somewhere: (name, what, done, of).  Returns whether to stop."""
        self.begun.add(key)
        if event is not None:
            self.news[event[:2]] = event
        return self.stopping

    def hear(self, stopping: bool) -> tuple[list[tuple], set[int]]:
        """News since the last call, and the jobs begun; `stopping` comes every time, so a restart forgets nothing."""
        news, self.news, self.stopping = list(self.news.values()), {}, stopping
        return news, self.begun


class Line:
    """A worker's line to the board: goes on alone when the board is gone.

    It asks by futures, never by ray.get or ray.wait: a task that waits in one of these lends its core to another task,
    for which Ray starts another process, as it did here 63 times on two cores for the ci profile.
    """

    def __init__(self, board, key: int):
        from ray.exceptions import RayError

        self.lost, self.board, self.key = RayError, board, key
        self.reply, self.told, self.stop = None, 0.0, False

    def report(self, name: str, what: str, done: int, of: int) -> None:
        """Progress, at most every TELL_SECONDS; the last step always."""
        if done >= of or time.monotonic() - self.told > TELL_SECONDS:
            self._tell((name, what, done, of))

    def stopped(self) -> bool:
        """Did the driver ask to stop?"""
        if time.monotonic() - self.told > 2 * TELL_SECONDS:
            self._tell(None)
        return self._listen()

    def begin(self) -> bool:
        """Say that the job has begun, and wait for the answer: was it called off before?"""
        self._tell(None)
        with contextlib.suppress(self.lost, TimeoutError):
            self.stop = self.reply.result(timeout=30)
        return self.stop

    def _tell(self, event: tuple | None) -> None:
        self._listen()
        self.told, self.reply = time.monotonic(), self.board.tell.remote(self.key, event).future()

    def _listen(self) -> bool:
        if self.reply is not None and self.reply.done():
            with contextlib.suppress(self.lost):
                self.stop = self.reply.result() or self.stop
            self.reply = None
        return self.stop


def work(key: int, job: Job, options: Options, board, setting: dict, *needed: list[str] | None) -> list[str] | None:
    """In a worker: do one job; returns a line per failure, None when it was stopped or what it needs is not there.

    needed: what the jobs it needs returned; anything but [] is reported by them.
    """
    line = Line(board, key)
    if line.begin() or any(lines != [] for lines in needed):
        return None
    torch.set_num_threads(setting["threads"])
    if setting["deterministic"]:
        hardware.make_deterministic()
    options = replace(options, report=line.report, interrupted=line.stopped)
    try:
        _see(setting["token"])
        failed = perform(job.task, options)
        if not failed and not job.task.evaluations and not job.task.analyses:
            with locked(job.task.run, options):  # a record without weights gets them back once, before they are read
                ensure_weights(job.task.run, "last", options)
        return failed
    except Interrupted:
        return None
    except FSRError as error:
        return [f"{job.task.name}: {error}"]
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # other processes share the device


def _see(token: str) -> None:
    if not mark(token).exists():
        raise UsageError(
            f"node {socket.gethostname()} does not see the driver's {files.results()}: give a --root DIR that every "
            "node mounts at the same place"
        )


def mark(token: str) -> Path:
    """A file in the results folder, which only who sees the driver's folder sees."""
    return files.results() / ".locks" / f"{token}.shared"
