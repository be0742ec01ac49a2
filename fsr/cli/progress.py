"""Progress of several tasks on stderr: bars on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LOG_SECONDS = 20.0  # a log file gets a line per run at most this often


def _lines(total: int) -> Callable[[str, str, int, int], None]:
    """Plain lines for a pipe or a file: which run, what of it, and how far."""
    last: dict[str, float] = {}

    def report(name: str, what: str, done: int, of: int) -> None:
        if what != "done" and time.monotonic() - last.get(name, float("-inf")) >= LOG_SECONDS:
            number = 1 + list(last).index(name) if name in last else 1 + len(last)
            last[name] = time.monotonic()
            print(f"[{number}/{total}] {name}: {what} {done}/{of}", file=sys.stderr, flush=True)

    return report


def _bars(progress: Progress, total: int) -> Callable[[str, str, int, int], None]:
    """A bar that counts the runs that are done, and one for each under way."""
    overall = progress.add_task("runs", total=total)
    rows: dict[str, TaskID] = {}
    finished: set[str] = set()

    def report(name: str, what: str, done: int, of: int) -> None:
        if what == "done":
            finished.add(name)
            progress.update(overall, completed=len(finished))
            if name in rows:
                progress.remove_task(rows.pop(name))
        elif name not in finished:
            if name not in rows:
                rows[name] = progress.add_task(name)
            progress.update(rows[name], completed=done, total=of, description=f"{name[-44:]}  {what}")

    return report


@contextmanager
def show(tasks: Iterable) -> Iterator[Callable[[str, str, int, int], None]]:
    """A `report(name, what, done, of)` for executors; what is "done" when all of a run is. Nothing with --quiet."""
    total, console = len({task.name for task in tasks}), Console(stderr=True)
    if logging.getLogger("fsr").level > logging.INFO:
        yield lambda *_: None
    elif not console.is_terminal:
        yield _lines(total)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            yield _bars(progress, total)
