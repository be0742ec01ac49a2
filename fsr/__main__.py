"""The command line: `python -m fsr --help`."""

import logging
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fsr import paths
from fsr.errors import FSRError, UsageError

# typer brings its own copy of click, or not, depending on its version; the class is the same one by descent
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
log = logging.getLogger("fsr")

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="ci, demo, mini, headline or paper.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default a GPU when there is one.")]
Root = Annotated[Path | None, typer.Option(help="Results and figures lie below it; default: this repository.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the data sets; default: data/ below the root.")]
Minutes = Annotated[float | None, typer.Option(help="Stop cleanly after so many minutes; run it again to go on.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes side by side; default: what fits the machine.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only say what would be computed.")]
Deterministic = Annotated[bool, typer.Option("--deterministic", help="Bit-identical on one machine; slower on a GPU.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")]


class Executor(StrEnum):
    """Where tasks run."""

    local = "local"
    inline = "inline"
    ray = "ray"


def _known_profile(name: str) -> str:
    from fsr import experiments

    experiments.profile_of(name)
    return name


def _options(device: str | None, minutes: float | None, tensorboard: bool = False, elsewhere: bool = False):
    from fsr import hardware
    from fsr.runs import Options

    if minutes is not None and minutes <= 0:
        raise UsageError(f"--limit-minutes must be positive, not {minutes:g}")
    if not elsewhere:  # on a cluster the driver needs no GPU
        hardware.device_named(device)  # fails at once when the device is not there
    deadline = time.monotonic() + 60 * minutes if minutes else None
    return Options(device=device, deadline=deadline, tensorboard=tensorboard)


def _writable_root() -> None:
    """Fail at once, not after hours, when results cannot be written."""
    folder = paths.results()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}); give another --root DIR") from None


def _compute(tasks, options, executor: Executor, workers, address, deterministic: bool):
    from fsr import distributed, executors
    from fsr.progress import live

    if distributed.requested():
        raise UsageError("torchrun is for `python -m fsr train`; type the other commands without it")
    with live(tasks) as report:
        from dataclasses import replace

        options = replace(options, report=report)
        if executor is Executor.inline:
            return executors.inline(tasks, options)
        if executor is Executor.ray:
            from fsr import cluster

            return cluster.on_ray(tasks, options, address=address, deterministic=deterministic)
        return executors.local(tasks, options, workers=workers, deterministic=deterministic)


def _together(todo, options):
    """Under torchrun: every process comes here, whatever it found to do; rank 0's list holds for all."""
    from fsr import executors
    from fsr.progress import live

    if any(task.evaluations or task.analyses for task in todo):
        raise UsageError("torchrun is for `python -m fsr train`; type the other commands without it")
    _writable_root()
    return executors.together(todo, options, live)


def _say(outcome, failed: list[str]) -> None:
    for line in outcome.failed + failed:
        typer.echo(f"failed: {line}", err=True)
    if outcome.stopped:
        typer.echo("stopped early; everything done is kept, the same command goes on from here", err=True)
    if outcome.failed or failed or outcome.stopped:
        raise typer.Exit(130 if outcome.stopped == "signal" else 1)


@app.command("run-all")
def run_all(
    profile: ProfileOption = "demo",
    only: Annotated[str | None, typer.Option(help="Only these notebooks and what they need: 05,09.")] = None,
    executor: Executor = Executor.local,
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto",
    device: Device = None,
    data: DataDir = None,
    root: Root = None,
    limit_minutes: Minutes = None,
    dry_run: Dry = False,
    force_notebook: Annotated[bool, typer.Option("--force-notebook", help="Execute unchanged notebooks too.")] = False,
    workers: Workers = None,
    deterministic: Deterministic = False,
    tensorboard: Board = False,
) -> None:
    """Train, evaluate and analyse what is missing, then execute the notebooks that are not current.

    Examples:  python -m fsr run-all    python -m fsr run-all --profile mini --limit-minutes 60
    """
    from fsr import experiments, notebooks, runs
    from fsr.executors import Outcome

    paths.use(root=root, data=data)
    _known_profile(profile)
    options, names = _options(device, limit_minutes, tensorboard, executor is Executor.ray), notebooks.numbered(only)
    sets = ("all",) if only is None else tuple(dict.fromkeys(s for n in names for s in experiments.NEEDS[n]))
    todo = runs.missing(profile, sets)
    if dry_run:
        _dry(todo)
        return
    _writable_root()
    outcome = _compute(todo, options, executor, workers, address, deterministic) if todo else Outcome()
    failed = []
    if outcome.stopped != "signal":
        failed = notebooks.execute(names, profile, force=force_notebook, compute=False, report=typer.echo)
        if only is None:
            _report(profile)
    _say(outcome, failed)


def _dry(todo) -> None:
    for task in todo:
        typer.echo(f"{task.name}: {', '.join(task.missing())}")
    typer.echo(f"{len(todo)} tasks to do" if todo else "nothing to do")


def _report(profile: str) -> None:
    from fsr import report

    typer.echo(f"report: {report.write(profile)}")


@app.command()
def train(
    which: Annotated[str, typer.Argument(metavar="SET", help="A set of the profile (whitebox ...) or a run id.")],
    profile: ProfileOption = "demo",
    device: Device = None,
    data: DataDir = None,
    root: Root = None,
    limit_minutes: Minutes = None,
    dry_run: Dry = False,
    workers: Workers = None,
    executor: Executor = Executor.local,
    address: str = "auto",
    deterministic: Deterministic = False,
    tensorboard: Board = False,
) -> None:
    """Train what is missing of a set; needs no Jupyter."""
    paths.use(root=root, data=data)
    options = _options(device, limit_minutes, tensorboard, executor is Executor.ray)
    _do(_chosen(profile, which, train_only=True), options, executor, workers, address, deterministic, dry_run)


@app.command()
def evaluate(
    which: Annotated[str, typer.Argument(metavar="SET", help="A set of the profile (whitebox ...) or a run id.")],
    profile: ProfileOption = "demo",
    device: Device = None,
    data: DataDir = None,
    root: Root = None,
    limit_minutes: Minutes = None,
    dry_run: Dry = False,
    workers: Workers = None,
    executor: Executor = Executor.local,
    address: str = "auto",
    deterministic: Deterministic = False,
) -> None:
    """Evaluate and analyse what is missing of a set, training first what is not trained; needs no Jupyter."""
    paths.use(root=root, data=data)
    options = _options(device, limit_minutes, elsewhere=executor is Executor.ray)
    _do(_chosen(profile, which), options, executor, workers, address, deterministic, dry_run)


def _chosen(profile: str, which: str, *, train_only: bool = False):
    """Missing tasks of a set, or of the one run whose id was given."""
    from fsr import experiments, runs
    from fsr.config import run_id

    sets = experiments.SETS[_known_profile(profile)]
    if which in sets:
        return runs.missing(profile, (which,), train_only=train_only)
    if which in {run_id(r) for r in sets["all"]}:
        return [t for t in runs.missing(profile, train_only=train_only) if t.name == which]
    from fsr.words import did_you_mean

    raise UsageError(f"unknown set {which!r}{did_you_mean(which, sets)}; choose one of {', '.join(sets)}, or a run id")


def _do(todo, options, executor, workers, address, deterministic, dry_run) -> None:
    from fsr import distributed

    if distributed.requested() and not dry_run:
        _say(_together(todo, options), [])
        return
    if dry_run or not todo:
        _dry(todo)
        return
    _writable_root()
    _say(_compute(todo, options, executor, workers, address, deterministic), [])


@app.command()
def status(profile: ProfileOption = "demo", root: Root = None) -> None:
    """What of a profile is done, partial and missing."""
    from fsr import runs

    paths.use(root=root)
    frame = runs.status(_known_profile(profile))
    typer.echo(frame.to_string(index=False))
    counts = frame["state"].value_counts()
    typer.echo(", ".join(f"{counts.get(s, 0)} {s}" for s in ("done", "partial", "missing")) + f" of {len(frame)} runs")


@app.command()
def audit(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id; `python -m fsr status` lists them.")],
    checkpoint: Annotated[str, typer.Option(help="last, best or ema.")] = "last",
    budget: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    images: Annotated[int, typer.Option(min=1, help="How many test images.")] = 100,
    device: Device = None,
    data: DataDir = None,
    root: Root = None,
    limit_minutes: Minutes = None,
) -> None:
    """Attack a run by everything an informed attacker would try, and print what survives."""
    from fsr import runs, store
    from fsr.config import Analysis

    paths.use(root=root, data=data)
    chosen, options = store.config_of(run), _options(device, limit_minutes)
    analysis = Analysis(kind="audit", checkpoint=checkpoint, images=images, budget=budget)
    _writable_root()
    runs.ensure_analysed(chosen, analysis, options)
    from fsr.tables import audit_lines

    for line in audit_lines(store.load_analysis(chosen, analysis)[0]):
        typer.echo(line)


@app.command()
def report(profile: ProfileOption = "demo", root: Root = None) -> None:
    """Write the profile's self-contained HTML report from its records."""
    paths.use(root=root)
    _report(_known_profile(profile))


@app.command()
def compare(
    other: Annotated[Path, typer.Argument(metavar="ROOT", help="Another root, for example `reproduced`.")],
    profile: ProfileOption = "demo",
    root: Root = None,
) -> None:
    """Print the records here against those of another root, as `make retrain` does."""
    from fsr import compare as room
    from fsr import experiments

    paths.use(root=root)
    _known_profile(profile)
    table = room.compare(other, list(experiments.SETS[profile]["all"]))
    columns = ["run_id", "checkpoint", "attack_id", "n", "accuracy", "accuracy_again", "difference"]
    typer.echo(table[columns].to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    typer.echo(room.summary(table))


@app.command("data")
def data_command(what: Annotated[str, typer.Argument(metavar="check|path")], data: DataDir = None) -> None:
    """Say which data sets are there and where missing ones belong, or print the folder."""
    paths.use(data=data)
    if what == "path":
        typer.echo(paths.data())
        return
    if what != "check":
        raise UsageError(f"unknown action {what!r}; type `python -m fsr data check` or `python -m fsr data path`")
    from fsr.data import check

    for name, there, where in check():
        typer.echo(f"{name:14}{'there' if there else 'missing':9}{where}")


@app.command("import-official")
def import_official(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of the authors' code.")],
    backbone: Annotated[str, typer.Option(help="resnet18, vgg16 or wideresnet34.")],
    dataset: Annotated[str, typer.Option(help="cifar10 or svhn: what it was trained on.")],
    root: Root = None,
) -> None:
    """Make a run of an authors' checkpoint, so that it can be evaluated and audited like any other."""
    from fsr.runs.importing import import_official as import_run

    paths.use(root=root)
    _writable_root()
    typer.echo(import_run(file, backbone, dataset))


def _log_to_stderr() -> None:
    """Our own messages only: what libraries log is their business."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def main() -> None:
    """Run the command line; wrong use is one line and exit code 2."""
    _log_to_stderr()
    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        sys.exit(130)
    except ClickException as error:
        typer.echo(f"{error.format_message()} (`python -m fsr --help` shows what there is)", err=True)
        sys.exit(2)
    except FSRError as error:
        typer.echo(f"{error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
