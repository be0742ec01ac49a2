"""Tasks on this machine: in worker processes, in this process, or one after the other by torchrun's processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch

from fsr import hardware
from fsr.files import FSRError, Interrupted, TimeUp
from fsr.runs.options import Options
from fsr.runs.tasks import Task, failure, perform
from fsr.train import distributed


@contextmanager
def stoppable():
    """A flag that SIGINT and SIGTERM set instead of killing; a second signal kills as usual."""
    flag = threading.Event()

    def handle(number, _frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shape(tasks: list[Task], device: torch.device, workers: int | None = None) -> tuple[int, int]:
    """(processes, threads each): never more threads than cores, or than $OMP_NUM_THREADS in a process."""
    cores = hardware.cores()
    # two threads on tiny tensors can be 40 times slower beside another process
    small = device.type == "cpu" and all((task.run.width or 64) < 16 for task in tasks)
    count = max(1, min(workers or (cores if small else 1), len(tasks)))
    share = max(1, cores // count)
    return count, 1 if small else min(share, hardware.REQUESTED_THREADS or share)


def run_inline(tasks: list[Task], options: Options) -> list[str]:
    """One after the other, under torchrun by all processes; a line for each failure.  May raise TimeUp, Interrupted."""
    failed, alone = list[str](), nullcontext(options.device)
    with stoppable() as flag, distributed.group(options.device) if distributed.requested() else alone as device:
        tasks = distributed.decide(tasks)
        torch.set_num_threads(shape(tasks, options.torch_device, 1)[1])
        for task in tasks:
            failed += perform(task, replace(options, device=device, interrupted=flag.is_set))
            if failed and distributed.size() > 1:
                raise FSRError("; ".join(failed))
            if not distributed.rank():
                options.report(task.name, "done", 1, 1)
    return failed


def follow(tasks: dict[Future, Task], options: Options, hear: Callable, stop: Callable) -> list[str]:
    """Report on tasks that others do, as `run_inline`; after a signal or the time limit they are told to stop."""
    failed, stopped = list[str](), None
    with stoppable() as flag:
        while tasks:
            done, _ = wait(tasks, timeout=0.2, return_when=FIRST_COMPLETED)
            for event in hear():
                options.report(*event)
            for future in done:
                task, error = tasks.pop(future), future.exception()
                if not stopped:  # an error is that of a lost worker, which must not end a night's work
                    failed += [failure(error, task.name)] if error else future.result()
                    options.report(task.name, "done", 1, 1)
            try:
                replace(options, interrupted=flag.is_set).check()
            except (TimeUp, Interrupted) as error:
                stopped = error
                stop()
    if stopped:
        raise type(stopped)("; ".join([str(stopped), *failed]))
    return failed


_CHANNELS: list = []  # of a worker process: where it reports, and the flag that stops it


def _start_worker(reports, stopped, threads: int) -> None:
    def end_with_parent() -> None:  # locks and work must not outlive it
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides and sets `stopped`
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _CHANNELS[:] = reports, stopped


def _work(task: Task, options: Options) -> list[str]:
    reports, stopped = _CHANNELS
    # an event is written whole or not at all: a pipe takes so few bytes at once
    report, interrupted = (lambda *event: reports.send(event)), (lambda: bool(stopped.value))
    return perform(task, replace(options, report=report, interrupted=interrupted))


def run_tasks(tasks: list[Task], options: Options, *, workers: int | None = None) -> list[str]:
    """As `run_inline`, in worker processes; one that is killed costs its own task, and the others go on."""
    context = multiprocessing.get_context("spawn")
    count, threads = shape(tasks, options.torch_device, workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    stopped, (events, reports) = context.RawValue("b", 0), context.Pipe(duplex=False)  # no lock that a kill could keep
    stop, own = partial(setattr, stopped, "value", 1), threading.local()
    sent = replace(options, deadline=None, interrupted=bool, report=print)  # a worker has its own

    def do(task: Task) -> list[str]:  # in a thread with a pool of one process: a killed one breaks its own pool
        if not hasattr(own, "pool"):
            own.pool = pools.enter_context(ProcessPoolExecutor(1, context, _start_worker, (reports, stopped, threads)))
        try:
            return own.pool.submit(_work, task, sent).result()
        except BrokenExecutor:
            del own.pool
            raise

    with ExitStack() as pools, ThreadPoolExecutor(count) as starters:
        try:
            futures = {starters.submit(do, task): task for task in tasks}
            return follow(futures, options, lambda: [events.recv() for _ in iter(events.poll, False)], stop)
        finally:
            stop()
