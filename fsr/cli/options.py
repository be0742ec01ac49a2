"""What all commands share: the app itself, how loud it is, and the options that mean the same everywhere."""

import functools
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fsr import files
from fsr.cli.progress import show
from fsr.files import UsageError

log = logging.getLogger("fsr")
EPILOG = "Examples:  python -m fsr run-all    python -m fsr status --profile mini    python -m fsr -v train whitebox"
TORCHRUN = "torchrun is for `python -m fsr train`; type the other commands without it"
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EPILOG)


@app.callback()
def everywhere(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings, failures and results only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also where failures come from.")] = False,
) -> None:
    """Feature Separation and Recalibration (CVPR 2023), replicated: train, evaluate, audit and report."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other; give one of them")
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def log_to_stderr() -> None:
    """Our own messages only: what libraries log is their business."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [old for old in log.handlers if not isinstance(old, logging.StreamHandler)] + [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def say(line: str) -> None:
    """One line about what was done; nothing with --quiet."""
    if log.level <= logging.INFO:
        typer.echo(line)


def recorded_runs() -> list[str]:
    """Ids of the runs recorded in these results."""
    return sorted(path.parent.name for path in (files.results() / "runs").glob("*/config.json"))


def _names(kind: str) -> Iterable[str]:
    """What a word may be: a profile, a run id, a set or run id, or an attack."""
    from fsr import experiments
    from fsr.config import run_id

    if kind == "profile":
        return experiments.PROFILES
    if kind == "attack":
        from fsr.attacks import ATTACKS

        return ATTACKS
    planned = {run_id(run) for sets in experiments.SETS.values() for run in sets["all"]}
    return [*(experiments.SETS["demo"] if kind == "set" else ()), *sorted(planned.union(recorded_runs()))]


def _typed(kind: str, *names: str, **more) -> Any:
    """An option of these names, or an argument without any, that the shell completes by names of this kind."""
    more["autocompletion"] = lambda incomplete: [name for name in _names(kind) if name.startswith(incomplete)]
    return typer.Option(*names, **more) if names else typer.Argument(**more)


Profile = Annotated[str, _typed("profile", "--profile", "-p", help="demo, mini, headline ...; see README.")]
Which = Annotated[str, _typed("set", metavar="SET", help="A set (whitebox ...) or a run id.")]
RunId = Annotated[str, _typed("run", metavar="RUN", help="A run id; `status` lists them.")]
Attack = Annotated[
    str | None, _typed("attack", "--attack", help="Only this of fsr.attacks.ATTACKS; prints accuracies.")
]
Checkpoint = Annotated[str, typer.Option(help="last, best or ema; of evaluate with --attack.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default a GPU when there is one.")]
Root = Annotated[Path | None, typer.Option(help="Results and figures lie below it; default: this repository.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the data sets; default: data/ below the root.")]
Minutes = Annotated[float | None, typer.Option(help="Stop cleanly after so many minutes; run it again to go on.")]


def known_profile(name: str) -> str:
    """The name, or UsageError with the one that was probably meant."""
    from fsr import experiments

    return experiments.profile_of(name).name


def writable_root() -> None:
    """Fail at once, not after hours, when results cannot be written."""
    files.writable(files.results(), "--root")


Executor = StrEnum("Executor", ["local", "inline", "ray"])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The common options of run-all, train and evaluate: where and how they compute."""

    device: Device = None
    data: DataDir = None
    root: Root = None
    limit_minutes: Minutes = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be computed, and how long.")] = False
    workers: Annotated[int | None, typer.Option(min=1, help="Processes side by side; default: what fits.")] = None
    executor: Annotated[Executor, typer.Option(help="Worker processes, this process alone, or Ray.")] = Executor.local
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto"
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit-identical where torch can.")] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")] = False

    def options(self):
        """runs.Options of what was typed; --root and --data hold from here on, and a missing device is refused."""
        from fsr import hardware
        from fsr.runs import Options

        files.use(root=self.root, data=self.data)
        if self.limit_minutes is not None and not self.limit_minutes > 0:
            raise UsageError(f"--limit-minutes must be positive, not {self.limit_minutes:g}")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UsageError("--tensorboard needs a package that is not here: pip install -e '.[tensorboard]'")
        if self.executor is not Executor.ray:
            hardware.device_named(self.device)
        elif self.device not in (None, "cpu", "cuda"):  # Ray chooses which, and the driver needs no GPU
            raise UsageError(f"--device {self.device}: with --executor ray give cpu or cuda, or leave it out")
        deadline = time.monotonic() + 60 * self.limit_minutes if self.limit_minutes else None
        return Options(device=self.device, deadline=deadline, tensorboard=self.tensorboard)

    def compute(self, tasks: list, options):
        """Hand the tasks to the executor; returns its Summary. Under torchrun all processes train together."""
        from fsr import hardware
        from fsr.runs import local
        from fsr.train import distributed

        together = distributed.requested()
        if together and any(task.evaluations or task.analyses for task in tasks):
            raise UsageError(TORCHRUN)
        writable_root()
        if self.deterministic and (together or self.executor is Executor.inline):
            hardware.make_deterministic()
        if together:
            return local.run_together(tasks, options, show)
        if self.executor is not Executor.ray:
            local.need_data(tasks)
        with show(tasks) as report:
            options = replace(options, report=report)
            if self.executor is Executor.inline:
                return local.run_inline(tasks, options)
            if self.executor is Executor.ray:
                from fsr.runs import ray

                return ray.run_tasks(tasks, options, address=self.address, deterministic=self.deterministic)
            return local.run_tasks(tasks, options, workers=self.workers, deterministic=self.deterministic)


def with_setting(command: Callable) -> Callable:
    """The command with the options of `Setting` in place of its parameter `setting`."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "setting"]
    shared = list(inspect.signature(Setting).parameters.values())

    @functools.wraps(command)
    def typed(**given):
        return command(setting=Setting(**{f.name: given.pop(f.name) for f in fields(Setting)}), **given)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own + shared]
    vars(typed)["__signature__"] = inspect.Signature(parameters)  # what typer reads
    return typed
