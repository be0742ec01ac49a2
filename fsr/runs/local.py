"""The same tasks inline, in local worker processes, or on a Ray cluster."""

import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from fsr import hardware
from fsr.data.readers import fetch
from fsr.files import FSRError, Interrupted, MissingData, TimeUp
from fsr.runs import Options, Task, perform
from fsr.train import distributed

log = logging.getLogger("fsr")
_WORKER: dict = {}  # of a worker process: its channel to the parent


@dataclass
class Outcome:
    """What came of a list of tasks: failures as lines, and whether it was stopped early (and why)."""

    failed: list[str] = field(default_factory=list)
    stopped: str | None = None  # "time", "signal" or None

    def add(self, failed: list[str], *, last: bool) -> None:
        """Keep a task's failures; where others still run, which can take hours, say so at once."""
        self.failed += failed
        for line in failed if not last else ():
            log.warning("failed, the others go on: %s", line)


def need_data(tasks) -> None:
    """One MissingData when no data set of these tasks is here nor to be had, instead of a failure per task."""
    missing, names = [], list(dict.fromkeys(task.run.dataset for task in tasks))
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
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

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


def shape(tasks: Iterable[Task], device: torch.device, workers: int | None = None) -> tuple[int, int]:
    """(processes, threads each): never more threads than cores, or than $OMP_NUM_THREADS in a process.

    Small float32 nets run one thread per process (two threads on tiny tensors can be 40 times slower beside
    another process); wider ones take all cores. One process per GPU unless `workers` says more.
    """
    cores, tasks = hardware.cores(), list(tasks)
    if device.type == "cuda":
        count = max(1, min(workers or 1, len(tasks)))
        return count, hardware.threads(cores // count)
    small = all(t.run.precision == "float32" and (t.run.width or 64) < 16 for t in tasks)
    count = workers or (cores if small else 1)
    count = max(1, min(count, len(tasks), cores))
    return count, (1 if small else hardware.threads(cores // count))


def inline(tasks: Iterable[Task], options: Options) -> Outcome:
    """One task after the other in this process."""
    tasks, outcome = list(tasks), Outcome()
    torch.set_num_threads(shape(tasks, options.torch_device, 1)[1])
    with stoppable() as flag:
        options = replace(options, interrupted=flag.is_set)
        for number, task in enumerate(tasks, 1):
            try:
                outcome.add(perform(task, options), last=task is tasks[-1])
            except (TimeUp, Interrupted) as error:
                outcome.stopped = "time" if isinstance(error, TimeUp) else "signal"
                break
            except Exception as error:  # whatever one task raises, the others are not lost
                outcome.add([f"{task.name}: {_described(error)}"], last=task is tasks[-1])
            _finished(task, tasks[number:], options.report)
    return outcome


def together(tasks: Iterable[Task], options: Options, show: Callable) -> Outcome:
    """One training after the other, each by all of torchrun's processes; rank 0 decides, shows and writes.

    show: a context manager of the tasks that gives `report`. A task that fails ends them all: torchrun stops the
    other processes, wherever they are.
    """
    outcome, number = Outcome(), os.environ.get("RANK", "0")
    try:
        with stoppable() as flag, distributed.group(options.device) as device:
            tasks = distributed.decide(list(tasks))
            options = replace(options, device=device, interrupted=flag.is_set)
            with show(tasks) if distributed.rank() == 0 else nullcontext(_ignore) as report:
                for task in tasks:
                    failed = perform(task, replace(options, report=report))
                    if failed:
                        raise FSRError("; ".join(failed))
                    report(task.name, "done", 1, 1)
    except distributed.Lost as error:
        outcome.failed.append(f"process {number}: {error}")
    except (TimeUp, Interrupted) as error:
        outcome.stopped = "time" if isinstance(error, TimeUp) else "signal"
    except FSRError as error:
        outcome.failed.append(f"process {number}: {error}")
    return outcome


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed: its locks and this work must not outlive it


def _start_worker(events, stop, threads: int, deterministic: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it sets `stop`
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(threads)
    if deterministic:
        hardware.make_deterministic()
    _WORKER.update(events=events, stop=stop, last=0.0)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _report(name: str, what: str, done: int, of: int) -> None:
    now = time.monotonic()
    if done >= of or now - _WORKER["last"] > 0.2:
        _WORKER["last"] = now
        _WORKER["events"].put((name, what, done, of))


def _work(task: Task, options: Options) -> tuple[list[str], str | None]:
    options = replace(options, interrupted=_WORKER["stop"].is_set, report=_report)
    try:
        return perform(task, options), None
    except TimeUp:
        return [], "time"
    except Interrupted:
        return [], "signal"


def local(tasks: Iterable[Task], options: Options, *, workers: int | None = None, deterministic=False) -> Outcome:
    """In worker processes on this machine; one that is killed ends the call, and the next call goes on from there."""
    tasks, report = list(tasks), options.report
    count, threads = shape(tasks, options.torch_device, workers)
    if not tasks:
        return Outcome()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context, outcome = multiprocessing.get_context("spawn"), Outcome()
    events, stop = context.Queue(), context.Event()
    sharing = max(options.sharing, count if options.torch_device.type == "cuda" else 1)
    plain = replace(options, report=_ignore, interrupted=_never, sharing=sharing)
    start, others = (events, stop, threads, deterministic), set(multiprocessing.active_children())
    with stoppable() as flag, ProcessPoolExecutor(count, context, _start_worker, start) as pool:
        pending, crew = {}, set()
        for task in tasks:
            pending[pool.submit(_work, task, plain)] = task
            crew |= set(multiprocessing.active_children()) - others
        while pending:
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(events, report)
            if flag.is_set() and not stop.is_set():
                stop.set()
                for future in pending:
                    future.cancel()
            _collect(done, pending, outcome, report)
            if any(worker.exitcode is not None for worker in crew) or _broken(done):
                for worker in crew:
                    worker.kill()  # the pool would wait for them, and they ignore its SIGTERM; files are written whole
            pending = {f: t for f, t in pending.items() if not f.cancelled()}
    if flag.is_set():
        outcome.stopped = "signal"
    return outcome


def _broken(done) -> bool:
    return any(isinstance(f.exception(), BrokenProcessPool) for f in done if not f.cancelled())


def _collect(done, pending: dict, outcome: Outcome, report: Callable) -> None:
    """Results of finished tasks; whatever one of them raised is a line, so that the others are not lost."""
    for future in done:
        task = pending.pop(future)
        if future.cancelled():
            continue
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            outcome.failed.append(f"{task.name}: a worker process died (killed, or out of memory); run it again")
        elif error is not None:
            outcome.add([f"{task.name}: {_described(error)}"], last=not pending)
        else:
            failed, stopped = future.result()
            outcome.add(failed, last=not pending)
            outcome.stopped = outcome.stopped or stopped
            if stopped:
                continue
        _finished(task, pending.values(), report)


def _finished(task: Task, left: Iterable[Task], report: Callable) -> None:
    """Report that a run is finished, well or not, once no task of it is left."""
    if all(other.name != task.name for other in left):
        report(task.name, "done", 1, 1)


def _described(error: BaseException) -> str:
    if isinstance(error, FSRError):
        return str(error)
    log.debug("a task failed", exc_info=error)
    last = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {last} (-v shows where)"


def _drain(events, report: Callable) -> None:
    while True:
        try:
            report(*events.get_nowait())
        except queue.Empty:
            return


def _ignore(*_) -> None:
    pass


def _never() -> bool:
    return False
