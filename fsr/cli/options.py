"""What commands share: which runs and tasks are meant, the options of `Setting`, executors, progress on stderr."""

import functools
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fsr import experiments, files, hardware, runs, store
from fsr.config import DATASETS, Analysis, Evaluation, Run, replace, run_id
from fsr.data.readers import SOURCES, read
from fsr.files import MissingData, UsageError, did_you_mean
from fsr.runs import local, ray
from fsr.train import distributed

log = logging.getLogger("fsr")
LOG_SECONDS = 20.0  # a run says how far it is at most this often
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default a GPU when there is one.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the data sets; default: data/ below the root.")]
Root = Annotated[Path | None, typer.Option(help="Results and figures lie below it; default: this repository.")]
Executor = StrEnum("Executor", ["local", "inline", "ray"])


def runs_of(which: str, profile: str | None = None) -> tuple[Run, ...]:
    """The runs of a profile's set, or the one run with this id, of any plan or recorded here; UsageError for others."""
    sets = experiments.SETS[experiments.profile_of(profile).name] if profile else {}
    every = {run_id(run): (run,) for plan in experiments.SETS.values() for run in plan["all"]} | sets
    try:
        return every[which] if which in every else (store.config_of(which),)
    except UsageError:
        choices = did_you_mean(which, every) + f"; choose one of {', '.join(sets)}" * bool(sets)
        raise UsageError(f"no set or run {which!r}{choices}; `python -m fsr status` lists runs") from None


def plan_tasks(profile: str, which: str, *, train_only: bool = False) -> list:
    """Tasks of a set or of one run; a run outside the plan gets the columns of T1 on its last weights."""
    chosen, sets = runs_of(which, profile), experiments.SETS[profile]
    if set(chosen) <= set(sets["all"]):
        tasks = runs.tasks(profile, (which if which in sets else "all",), train_only=train_only)
        return [task for task in tasks if task.run in chosen]
    columns = [e for e in experiments.columns(profile, "whitebox").values() if e.attack != "ensemble"]
    folder = _test_images(chosen[0]) is None  # of any size: all of it
    some = tuple(replace(e, checkpoint="last", images=None if folder else at_most(e.images, chosen)) for e in columns)
    return [runs.Task(run=chosen[0], parts=() if train_only else some)]


def _test_images(run: Run) -> int | None:
    """How many test images a run has; None where only its folder says."""
    return DATASETS[run.dataset].test if run.test_size is None and run.dataset in DATASETS else run.test_size


def at_most(images: int | None, chosen: Iterable[Run]) -> int | None:
    """This many test images, or None, which is all, where a run has fewer."""
    return None if any((images or 0) > (_test_images(run) or float("inf")) for run in chosen) else images


def tasks_of(chosen: Iterable[Run], part: Evaluation | Analysis) -> list:
    """One part of each run as tasks; UsageError for what would fail only once the run is trained."""
    for run in chosen:
        there, kinds = _test_images(run), ["last"] if run.imported else ["last", "ema"] + ["best"] * bool(run.holdout)
        if there is not None and (part.images or 0) > there:
            raise UsageError(f"{run_id(run)} has {there} test images; give --images of at most {there}")
        if part.checkpoint not in kinds:
            raise UsageError(f"no {part.checkpoint!r} weights of {run_id(run)}; --checkpoint is {' or '.join(kinds)}")
    return [runs.Task(run=run, parts=(part,)) for run in chosen]


def progress_of(tasks: Iterable) -> Callable[[str, str, int, int], None]:
    """A `report(name, what, done, of)` for executors: now and then a line in the log for each run under way."""
    total, said, finished = len({task.name for task in tasks}), dict[str, float](), set[str]()

    def report(name: str, what: str, done: int, of: int) -> None:
        finished.update([name] * (what == "done"))
        if what == "done" or time.monotonic() - said.get(name, -LOG_SECONDS) >= LOG_SECONDS:
            said[name] = time.monotonic()
            log.info("[%d of %d runs done] %s: %s %d/%d", len(finished), total, name, what, done, of)

    return report


@dataclass(kw_only=True)
class Setting:
    """The common options of run-all, train, evaluate and audit; making one sets $FSR_ROOT and $FSR_DATA."""

    device: Device = None
    data: DataDir = None
    root: Root = None
    limit_minutes: Annotated[float | None, typer.Option(min=0, help="Stop cleanly then; run it again to go on.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be computed.")] = False
    workers: Annotated[int | None, typer.Option(min=1, help="Processes side by side; default: what fits.")] = None
    executor: Annotated[Executor, typer.Option(help="Worker processes, this process alone, or Ray.")] = Executor.local
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto"
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit-identical where torch can.")] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")] = False

    def __post_init__(self):
        files.use(root=self.root, data=self.data)
        if self.executor is not Executor.ray:  # its driver needs no GPU
            hardware.device_named(self.device)
        deadline = None if self.limit_minutes is None else time.monotonic() + 60 * self.limit_minutes
        switches = {"tensorboard": self.tensorboard, "deterministic": self.deterministic}
        self.options = runs.Options(device=self.device, deadline=deadline, **switches)

    def do(self, tasks: list) -> None:
        """Compute what these tasks lack, or only say what it is; Exit with 1 when one failed."""
        todo = [task for task in tasks if task.missing()]
        if self.dry_run:
            typer.echo("\n".join(f"{one.name}: {', '.join(one.missing(gone=True))}" for one in todo) or "nothing to do")
        elif todo or distributed.requested():  # rank 0's list holds for all processes
            conclude(self.compute(todo))
        else:
            log.info("nothing to do")

    def compute(self, tasks: list) -> list[str]:
        """Hand the tasks to the executor; returns what failed. Under torchrun all processes train together."""
        files.writable()  # or fail at once, not after hours
        options = replace(self.options, report=progress_of(tasks))
        if distributed.requested():
            return local.run_inline(tasks, options)
        if self.executor is Executor.ray:
            return ray.run_tasks(tasks, options, address=self.address)
        for name in sorted((every := {task.run.dataset for task in tasks}) & SOURCES.keys()):  # once, before workers
            with suppress(*[MissingData] * (len(every) > 1)):  # the tasks of one that is missing say so
                read(Run(dataset=name))
        if self.executor is Executor.inline:
            return local.run_inline(tasks, options)
        return local.run_tasks(tasks, options, workers=self.workers)


def conclude(failed: list[str]) -> None:
    """Print failures; with any the exit code is 1."""
    for line in failed:
        typer.echo(f"failed: {line}", err=True)
    if failed:
        raise typer.Exit(1)


def with_setting(command: Callable) -> Callable:
    """The command with the options of `Setting` in place of its first parameter."""
    shared, (_, *own) = (inspect.signature(part).parameters.values() for part in (Setting, command))

    @functools.wraps(command)
    def typed(**given):
        if distributed.requested() and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UsageError("WORLD_SIZE and RANK are set, but torchrun did not start this: `unset WORLD_SIZE RANK`")
        if distributed.requested() and command.__name__ != "train":
            raise UsageError("torchrun is for `python -m fsr train`; type the other commands without it")
        return command(Setting(**{p.name: given.pop(p.name) for p in shared}), **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
    vars(typed)["__signature__"] = inspect.Signature(parameters)  # what typer reads
    return typed
