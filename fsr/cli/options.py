"""What commands share: which runs and tasks are meant, the options of `Setting`, executors, progress on stderr."""

import functools
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fsr import experiments, files
from fsr.config import DATASETS, Evaluation, Run, replace, run_id
from fsr.files import UsageError, did_you_mean, duration

LOG_SECONDS = 20.0  # a log file gets a line per run at most this often
TORCHRUN = "torchrun is for `python -m fsr train`; type the other commands without it"
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default a GPU when there is one.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the data sets; default: data/ below the root.")]
Root = Annotated[Path | None, typer.Option(help="Results and figures lie below it; default: this repository.")]
Executor = StrEnum("Executor", ["local", "inline", "ray"])


def runs_of(which: str, profile: str | None = None) -> tuple[Run, ...]:
    """The runs of a profile's set, or the one run with this id, of any plan or recorded here; UsageError for others."""
    from fsr import store

    sets = experiments.SETS[experiments.profile_of(profile).name] if profile else {}
    known = {run_id(run): (run,) for plan in experiments.SETS.values() for run in plan["all"]} | sets
    recorded = [path.parent.name for path in sorted(files.results().glob("runs/*/config.json"))]
    if which in known or which in recorded:
        return known[which] if which in known else (store.config_of(which),)
    choices = did_you_mean(which, [*known, *recorded]) + f"; choose one of {', '.join(sets)}" * bool(sets)
    raise UsageError(f"no set or run {which!r}{choices}; `python -m fsr status` lists runs")


def planned(profile: str, which: str, *, train_only: bool = False) -> list:
    """Missing tasks of a set or of one run; a run outside the plan gets the columns of T1 on its last weights."""
    from fsr import runs

    chosen, sets = runs_of(which, profile), experiments.SETS[profile]
    if which in sets:
        return runs.missing(profile, (which,), train_only=train_only)
    if chosen[0] in sets["all"]:
        return [task for task in runs.missing(profile, train_only=train_only) if task.name == which]
    columns = [e for e in experiments.columns(profile, "whitebox").values() if e.attack != "ensemble"]
    whole = _test_images(chosen[0]) is None  # a folder of any size
    some = tuple(replace(e, checkpoint="last", images=None if whole else e.images) for e in columns)
    task = runs.Task(run=chosen[0], evaluations=() if train_only else some)
    return [task] if task.missing() else []


def attacked(profile: str, which: str, attack: str, checkpoint: str, images: int | None) -> list:
    """One attack of fsr.attacks.ATTACKS on every run of a set, or on one run: its tasks, done or not."""
    from fsr import runs
    from fsr.attacks import ATTACKS

    alone = [name for name, known in ATTACKS.items() if not known.needs]
    if attack not in alone:
        why = f" needs {', '.join(ATTACKS[attack].needs)}" if attack in ATTACKS else " is unknown"
        raise UsageError(f"attack {attack!r}{why}{did_you_mean(attack, alone)}; choose one of {', '.join(alone)}")
    tasks, usual = [], ATTACKS[attack].images
    for run in runs_of(which, profile):
        fewer = usual if usual and usual < (_test_images(run) or 0) else None
        evaluation = Evaluation(attack=attack, checkpoint=checkpoint, images=images or fewer)
        check_fits(run, attack, checkpoint, images)
        tasks.append(runs.Task(run=run, evaluations=(evaluation,)))
    return tasks


def _test_images(run: Run) -> int | None:
    """How many test images a run has; None where only its folder says."""
    return DATASETS[run.dataset].test if run.test_size is None and run.dataset in DATASETS else run.test_size


def check_fits(run: Run, attack: str, checkpoint: str, images: int | None) -> None:
    """Refuse now what would fail only once the run is trained."""
    there, kinds = _test_images(run), ["last"] if run.imported else ["last", "ema"] + ["best"] * bool(run.holdout)
    if there is not None and (images or 0) > there:
        raise UsageError(f"{run_id(run)} has {there:,} test images; give --images of at most {there}")
    if checkpoint not in kinds:
        raise UsageError(f"{run_id(run)} has no {checkpoint!r} weights; give --checkpoint {' or '.join(kinds)}")
    if attack == "pgd20-joint" and not experiments.has_heads(run):
        raise UsageError(f"pgd20-joint needs auxiliary heads, and {run_id(run)} has none")


def show_plan(todo: list, options) -> None:
    """Print what would be computed, and how long its trainings take by those finished here on such a device."""
    from fsr import runs

    measured, times = runs.seconds_per_epoch(options.torch_device.type), {}
    for task in todo:
        trains = task.trains()  # again: its record is here, its weights are gone
        typer.echo(f"{task.name}: {', '.join(['train again'] * (trains == 'again') + task.missing())}")
        if trains:
            left = task.run.epochs if trains == "again" else None
            times[task.run] = runs.seconds_left(task.run, measured, epochs=left)
    known = [seconds for seconds in times.values() if seconds is not None]
    text = f"{len(times)} trainings, those like finished ones ({len(known)}) about {duration(sum(known))} in all"
    typer.echo(f"{len(todo)} tasks to do: {text}; evaluations and analyses on top" if todo else "nothing to do")


@contextmanager
def progress_of(tasks: Iterable) -> Iterator[Callable[[str, str, int, int], None]]:
    """A `report(name, what, done, of)` for executors; what is "done" when all of a run is. Nothing with --quiet.

    On a terminal a bar counts the runs that are done, and one shows each under way; a log file gets lines now and then.
    """
    console, quiet = Console(stderr=True), logging.getLogger("fsr").level > logging.INFO
    total, finished = len({task.name for task in tasks}), set[str]()
    rows, said = dict[str, TaskID](), dict[str, float]()  # a run's bar, and when it was last in the log

    def report(name: str, what: str, done: int, of: int) -> None:
        if what == "done":
            finished.add(name)
        if name not in rows:
            rows[name] = progress.add_task(name)
        text, under_way = f"{name[-44:]}  {what}", name not in finished
        progress.update(rows[name], completed=done, total=of, description=text, visible=under_way)
        progress.update(overall, completed=len(finished))
        late = time.monotonic() - said.get(name, -LOG_SECONDS) >= LOG_SECONDS
        if late and under_way and not (quiet or console.is_terminal):
            said[name] = time.monotonic()
            print(f"[{rows[name]}/{total}] {name}: {what} {done}/{of}", file=sys.stderr, flush=True)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        overall = progress.add_task("runs", total=total)
        yield report


@dataclass(kw_only=True)
class Setting:
    """The common options of run-all, train, evaluate and audit; --root and --data hold from here on."""

    device: Device = None
    data: DataDir = None
    root: Root = None
    limit_minutes: Annotated[float | None, typer.Option(min=0, help="Stop cleanly then; run it again to go on.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be computed, and how long.")] = False
    workers: Annotated[int | None, typer.Option(min=1, help="Processes side by side; default: what fits.")] = None
    executor: Annotated[Executor, typer.Option(help="Worker processes, this process alone, or Ray.")] = Executor.local
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto"
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit-identical where torch can.")] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")] = False

    def __post_init__(self):
        from fsr import hardware, runs

        files.use(root=self.root, data=self.data)
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UsageError("--tensorboard needs a package that is not here: pip install -e '.[tensorboard]'")
        if self.executor is not Executor.ray:
            hardware.device_named(self.device)
        elif self.device not in (None, "cpu", "cuda"):  # Ray chooses which, and the driver needs no GPU
            raise UsageError(f"--device {self.device}: with --executor ray give cpu or cuda, or leave it out")
        deadline = None if self.limit_minutes is None else time.monotonic() + 60 * self.limit_minutes
        self.options = runs.Options(device=self.device, deadline=deadline, tensorboard=self.tensorboard)

    def do(self, todo: list) -> None:
        """Compute these tasks, or only say what they are; Exit with 1 or 130 when not all is done."""
        from fsr.train import distributed

        if self.dry_run or not (todo or distributed.requested()):  # rank 0's list holds for all processes
            show_plan(todo, self.options)
        else:
            conclude(self.compute(todo))

    def compute(self, tasks: list):
        """Hand the tasks to the executor; returns its Summary. Under torchrun all processes train together."""
        from fsr import hardware
        from fsr.runs import local
        from fsr.train import distributed

        together, inline = distributed.requested(), self.executor is Executor.inline
        if together and any(task.evaluations or task.analyses for task in tasks):
            raise UsageError(TORCHRUN)
        files.writable(files.results(), "--root")  # or fail at once, not after hours
        if self.deterministic and (together or inline):
            hardware.make_deterministic()
        if together:
            return local.run_together(tasks, self.options, progress_of)
        with progress_of(tasks) as report:
            options, more = replace(self.options, report=report), {"deterministic": self.deterministic}
            if self.executor is Executor.ray:
                from fsr.runs import ray

                return ray.run_tasks(tasks, options, address=self.address, **more)
            local.need_data(tasks)
            if inline:
                return local.run_inline(tasks, options)
            return local.run_tasks(tasks, options, workers=self.workers, **more)


def conclude(summary) -> None:
    """Print failures; exit code 1 for those and the time limit, 130 for a signal."""
    for line in summary.failed:
        typer.echo(f"failed: {line}", err=True)
    if summary.stopped:
        typer.echo("stopped early; everything done is kept, the same command goes on from here", err=True)
    if summary.failed or summary.stopped:
        raise typer.Exit(130 if summary.stopped == "signal" else 1)


def with_setting(command: Callable) -> Callable:
    """The command with the options of `Setting` in place of its first parameter."""
    shared, (_, *own) = (inspect.signature(part).parameters.values() for part in (Setting, command))

    @functools.wraps(command)
    def typed(**given):
        return command(Setting(**{p.name: given.pop(p.name) for p in shared}), **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
    vars(typed)["__signature__"] = inspect.Signature(parameters)  # what typer reads
    return typed
