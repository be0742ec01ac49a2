"""Progress of several tasks at once: bars on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fsr.files import duration

LOG_SECONDS = 20.0  # a log file gets a line per run at most this often


class _Lines:
    """Plain lines for a pipe or a file: what, how far, and an estimate of what is left."""

    def __init__(self, total: int):
        self.total = total
        self.seen: dict[str, int] = {}
        self.last: dict[str, float] = {}
        self.begun: dict[tuple[str, str], tuple[float, int]] = {}

    def __call__(self, name: str, what: str, done: int, of: int) -> None:
        if what == "done":
            return
        now = time.monotonic()
        kind = "epoch" if what.startswith("epoch") else what
        first, from_done = self.begun.setdefault((name, kind), (now, done))
        if name not in self.seen:
            self.seen[name] = len(self.seen) + 1
        elif now - self.last.get(name, 0.0) < LOG_SECONDS:
            return
        self.last[name] = now
        left = (now - first) / (done - from_done) * (of - done) if done > from_done else None
        rest = f", {duration(left)} left" if left else ""
        print(f"[{self.seen[name]}/{self.total}] {name}: {what} {done}/{of}{rest}", file=sys.stderr, flush=True)


class _Bars:
    """One bar for all runs, which counts those that are done, and one for each under way."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total = progress, total
        self.rows: dict[str, tuple] = {}
        self.finished: set[str] = set()
        self.all = progress.add_task("all", total=total)

    def __call__(self, name: str, what: str, done: int, of: int) -> None:
        if what == "done":
            self._finish(name)
        elif name not in self.finished:  # news of a worker may come behind its result
            self._show(name, what, done, of)

    def _finish(self, name: str) -> None:
        self.finished.add(name)
        if name in self.rows:
            self.progress.remove_task(self.rows.pop(name)[0])
        self.progress.update(self.all, completed=len(self.finished))

    def _show(self, name: str, what: str, done: int, of: int) -> None:
        key = "epoch" if what.startswith("epoch") else what
        row, known = self.rows.get(name, (None, None))
        if known != key:
            if row is not None:
                self.progress.remove_task(row)
            row = self.progress.add_task(name, total=of)
            self.rows[name] = (row, key)
        self.progress.update(row, completed=done, total=of, description=f"{name[-44:]}  {what}")
        if done >= of:
            self.progress.update(row, visible=False)


@contextmanager
def live(tasks: Iterable):
    """A `report(name, what, done, of)` for executors, showing itself on stderr; what is "done" when all of a run is."""
    total = len({task.name for task in tasks})
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress, total)
