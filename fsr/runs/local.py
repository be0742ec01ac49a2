"""Tasks on this machine: in worker processes, in this process, or one after the other by torchrun's processes."""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from fsr import hardware
from fsr.data.readers import fetch
from fsr.files import FSRError, Interrupted, MissingData, TimeUp
from fsr.runs.options import Options
from fsr.runs.tasks import Task, perform
from fsr.train import distributed

log = logging.getLogger("fsr")
STOP_SECONDS = 300.0  # for running tasks to save their checkpoints once the command was stopped


@dataclass
class Summary:
    """What came of a list of tasks: failures as lines, and what stopped it early: time, signal or None."""

    failed: list[str] = field(default_factory=list)
    stopped: str | None = None

    def add(self, one: "Summary", task: Task, left: list[Task], report: Callable) -> None:
        self.failed, self.stopped = self.failed + one.failed, self.stopped or one.stopped
        for line in one.failed if left else ():  # the others can take hours
            log.warning("failed, the others go on: %s", line)
        if not one.stopped and all(other.name != task.name for other in left):
            report(task.name, "done", 1, 1)


def need_data(tasks: Iterable[Task]) -> None:
    """Raise one MissingData when no data set of these tasks can be had, instead of a failure per task."""
    names, missing = sorted({task.run.dataset for task in tasks}), list[str]()
    for name in names:
        try:
            fetch(name)
        except MissingData as error:
            missing.append(str(error))
    if names and len(missing) == len(names):
        raise MissingData("; ".join(missing))


@contextmanager
def stoppable():
    """A flag that SIGINT and SIGTERM set instead of killing; a second signal kills as usual."""
    flag = threading.Event()

    def handle(number, _frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shape(tasks: Iterable[Task], device: torch.device, workers: int | None = None) -> tuple[int, int]:
    """(processes, threads each): never more threads than cores, or than $OMP_NUM_THREADS in a process."""
    cores, tasks = hardware.cores(), list(tasks)
    # two threads on tiny tensors can be 40 times slower beside another process
    small = device.type == "cpu" and all(t.run.precision == "float32" and (t.run.width or 64) < 16 for t in tasks)
    most = min(len(tasks), cores) if device.type == "cpu" else len(tasks)
    count = max(1, min(workers or (cores if small else 1), most))
    share = max(1, cores // count)
    return count, 1 if small else min(share, hardware.REQUESTED_THREADS or share)


def ended(error: Exception, who: str) -> Summary:
    """The Summary of tasks that this error ended: the time limit, a signal, or whatever failed, in one line."""
    if isinstance(error, (TimeUp, Interrupted)) and not isinstance(error, distributed.Lost):
        return Summary(stopped="time" if isinstance(error, TimeUp) else "signal")
    if isinstance(error, FSRError):
        return Summary([f"{who}: {error}"])
    log.debug("a task failed", exc_info=error)
    text = (str(error).strip().splitlines() or [""])[-1]
    return Summary([f"{who}: {type(error).__name__}: {text} (-v shows where)"])


def attempt(task: Task, options: Options) -> Summary:
    """Do a task whatever it raises, so that the others are not lost."""
    try:
        return Summary(perform(task, options))
    except Exception as error:
        return ended(error, task.name)


def run_inline(tasks: Iterable[Task], options: Options) -> Summary:
    """One task after the other in this process."""
    left, total = list(tasks), Summary()
    torch.set_num_threads(shape(left, options.torch_device, 1)[1])
    with stoppable() as flag:
        options = replace(options, interrupted=flag.is_set)
        while left and not total.stopped:
            task = left.pop(0)
            total.add(attempt(task, options), task, left, options.report)
    return total


def run_together(tasks: Iterable[Task], options: Options) -> Summary:
    """One training after the other, each by all of torchrun's processes; one that fails ends them all."""
    try:
        with stoppable() as flag, distributed.group(options.device) as device:
            tasks = distributed.decide(list(tasks))
            report = (lambda *_: None) if distributed.rank() else options.report
            options = replace(options, device=device, interrupted=flag.is_set, report=report)
            for task in tasks:
                if failed := perform(task, options):
                    raise FSRError("; ".join(failed))
                report(task.name, "done", 1, 1)
    except FSRError as error:
        return ended(error, f"process {os.environ.get('RANK', '0')}")
    return Summary()


def follow(tasks: Iterable[Task], options: Options, start: Callable, hear: Callable, stop: Callable) -> Summary:
    """Do all tasks elsewhere; after a signal or the time limit none begins. start(task): a Future, or None: no room."""
    todo, total, busy, end = list(tasks), Summary(), dict[Future, Task](), float("inf")
    with stoppable() as flag:
        while (busy or (todo and not total.stopped)) and time.monotonic() < end:
            while todo and not total.stopped and (future := start(todo[0])):
                busy[future] = todo.pop(0)
            done, _ = wait(busy, timeout=0.2, return_when=FIRST_COMPLETED)
            for event in hear():
                options.report(*event)
            for future in done:
                task, error = busy.pop(future), future.exception()
                lost = f"its worker process died ({type(error).__name__}: killed, or out of memory)"
                text = f"{task.name}: {lost}; the same command goes on from its last checkpoint"
                one = Summary([text]) if error else future.result()  # a lost worker cannot end a night's work
                total.add(one, task, [*busy.values(), *todo], options.report)
            if end == float("inf") and (flag.is_set() or options.late()):
                total.stopped, end = "signal" if flag.is_set() else "time", time.monotonic() + STOP_SECONDS
                stop()
    return total


_WORKER: dict[str, Any] = {}  # of a worker process: where it reports, the stop flag, its parent


def _start_worker(reports, stop, parent: int, threads: int, deterministic: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: locks and work must not outlive the parent
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides and sets `stop`
    torch.set_num_threads(threads)
    if deterministic:
        hardware.make_deterministic()
    _WORKER.update(reports=reports, stop=stop, parent=parent, next=0.0)
    _stopped()


def _stopped() -> bool:
    if os.getppid() != _WORKER["parent"]:
        os._exit(1)
    return bool(_WORKER["stop"].value)


def _report(*event) -> None:
    if event[2] >= event[3] or time.monotonic() > _WORKER["next"]:
        _WORKER["next"] = time.monotonic() + 0.2
        _WORKER["reports"].send(event)  # whole or not at all: a pipe takes so few bytes at once


def run_tasks(
    tasks: Iterable[Task], options: Options, *, workers: int | None = None, deterministic: bool = False
) -> Summary:
    """In worker processes on this machine; one that is killed costs its own task, and the others go on."""
    tasks, context = list(tasks), multiprocessing.get_context("spawn")
    count, threads = shape(tasks, options.torch_device, workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    stopped, (events, reports) = context.RawValue("b", 0), context.Pipe(duplex=False)  # no lock that a kill could keep
    setting = (reports, stopped, os.getpid(), threads, deterministic)
    sent = replace(options, interrupted=_stopped, report=_report, deadline=None)  # one clock: ours
    # a pool of one process for each worker: one that is killed breaks its own pool
    slots: list[tuple[ProcessPoolExecutor | None, Future | None]] = [(None, None)] * count

    def start(task: Task) -> Future | None:
        place = next((i for i, (_, last) in enumerate(slots) if last is None or last.done()), None)
        if place is None:
            return None
        pool, last = slots[place]
        if pool is None or (last and last.exception()):
            pool = ProcessPoolExecutor(1, context, _start_worker, setting)
        slots[place] = pool, last = pool, pool.submit(attempt, task, sent)
        return last

    stop = partial(setattr, stopped, "value", 1)
    try:
        return follow(tasks, options, start, lambda: [events.recv() for _ in iter(events.poll, False)], stop)
    finally:
        stop()
        for pool in filter(None, (pool for pool, _ in slots)):
            pool.shutdown()
