"""The commands that compute: run-all, train, evaluate, audit."""

from dataclasses import replace
from typing import Annotated

import typer

from fsr import files
from fsr.cli.app import (
    Address,
    Attack,
    Board,
    DataDir,
    Deterministic,
    Device,
    Dry,
    Executor,
    Minutes,
    Profile,
    Root,
    RunId,
    Where,
    Which,
    Workers,
    app,
    known_profile,
    options_of,
    say,
    show,
    writable_root,
)
from fsr.cli.choosing import attacked, fits, one_run, outcome_line, planned
from fsr.files import UsageError, duration

TORCHRUN = "torchrun is for `python -m fsr train`; type the other commands without it"


def _compute(tasks, options, executor: Executor, workers, address, deterministic: bool):
    from fsr import hardware
    from fsr.runs import local as executors
    from fsr.train import distributed

    if distributed.requested():
        raise UsageError(TORCHRUN)
    if executor is not Executor.ray:
        executors.need_data(tasks)
    with show(tasks) as report:
        options = replace(options, report=report)
        if executor is Executor.inline:
            if deterministic:
                hardware.make_deterministic()
            return executors.inline(tasks, options)
        if executor is Executor.ray:
            from fsr.runs import cluster

            return cluster.on_ray(tasks, options, address=address, deterministic=deterministic)
        return executors.local(tasks, options, workers=workers, deterministic=deterministic)


def _together(todo, options, deterministic: bool):
    """Under torchrun: every process comes here, whatever it found to do; rank 0's list holds for all."""
    from fsr import hardware
    from fsr.runs import local as executors

    if any(task.evaluations or task.analyses for task in todo):
        raise UsageError(TORCHRUN)
    writable_root()
    if deterministic:
        hardware.make_deterministic()
    return executors.together(todo, options, show)


def _conclude(outcome, failed: list[str]) -> None:
    for line in outcome.failed + failed:
        typer.echo(f"failed: {line}", err=True)
    if outcome.stopped:
        typer.echo("stopped early; everything done is kept, the same command goes on from here", err=True)
    if outcome.failed or failed or outcome.stopped:
        raise typer.Exit(130 if outcome.stopped == "signal" else 1)


def _estimate(todo, options) -> str:
    """Time of the missing trainings one after the other, at the speed of those here, else of the authors' code."""
    from fsr.experiments import cost
    from fsr.runs.costing import speed_here

    found = {task.run: trains for task in todo if (trains := task.trains())}
    if not found:
        return "no training among them"
    speed = speed_here(options.torch_device.type)
    total = duration(sum(cost.estimate(run, speed) for run in found))
    again = sum(trains == "again" for trains in found.values())
    count = f"{len(found)} training{'s' if len(found) > 1 else ''}"
    count += f" ({again} of them again: their records are here, their weights are gone)" if again else ""
    if speed is None:
        told = f"{count}, about {total} in all on one H200 GPU at the speed of the authors' code; evaluations on top"
        slower = "; on a processor far longer: how long, is known once one of them is done here"
        return told + slower * (options.torch_device.type != "cuda")
    return f"{count}, about {total} in all at the speed of those finished here; evaluations on top"


def _dry(todo, options) -> None:
    for task in todo:
        typer.echo(f"{task.name}: {', '.join(task.missing())}")
    typer.echo(f"{len(todo)} tasks to do: {_estimate(todo, options)}" if todo else "nothing to do")


def _do(todo, options, executor, workers, address, deterministic, dry_run) -> None:
    from fsr.train import distributed

    if distributed.requested() and not dry_run:
        _conclude(_together(todo, options, deterministic), [])
        return
    if dry_run or not todo:
        _dry(todo, options)
        return
    writable_root()
    _conclude(_compute(todo, options, executor, workers, address, deterministic), [])


@app.command("run-all", epilog="Examples:  python -m fsr run-all    python -m fsr run-all -p mini --limit-minutes 60")
def run_all(
    profile: Profile = "demo",
    only: Annotated[str | None, typer.Option(help="Only these notebooks and what they need: 05,09.")] = None,
    executor: Where = Executor.local,
    address: Address = "auto",
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
    """Train, evaluate and analyse what is missing, then execute the notebooks that are not current."""
    from fsr import experiments, hardware, notebooks, report, runs
    from fsr.runs import local as executors

    files.use(root=root, data=data)
    known_profile(profile)
    options, names = options_of(device, limit_minutes, tensorboard, executor is Executor.ray), notebooks.numbered(only)
    sets = ("all",) if only is None else tuple(dict.fromkeys(s for n in names for s in experiments.NEEDS[n]))
    todo = runs.missing(profile, sets)
    if dry_run:
        _dry(todo, options)
        return
    writable_root()
    outcome = _compute(todo, options, executor, workers, address, deterministic) if todo else executors.Outcome()
    failed = []
    if outcome.stopped != "signal":
        count = 1 if executor is Executor.inline else min(4, workers or hardware.cores())  # a kernel each
        with executors.stoppable() as flag:
            failed = notebooks.execute(
                names, profile, force=force_notebook, compute=False, workers=count, report=say, interrupted=flag.is_set
            )
        if flag.is_set():
            outcome.stopped = "signal"
        elif only is None:
            say(f"report: {report.write(profile)}")
    _conclude(outcome, failed)


@app.command(
    epilog="Examples:  python -m fsr train whitebox    python -m fsr train all -p mini --device cuda --dry-run"
)
def train(
    which: Which,
    profile: Profile = "demo",
    device: Device = None,
    data: DataDir = None,
    root: Root = None,
    limit_minutes: Minutes = None,
    dry_run: Dry = False,
    workers: Workers = None,
    executor: Where = Executor.local,
    address: Address = "auto",
    deterministic: Deterministic = False,
    tensorboard: Board = False,
) -> None:
    """Train what is missing of a set; needs no Jupyter."""
    files.use(root=root, data=data)
    options = options_of(device, limit_minutes, tensorboard, executor is Executor.ray)
    _do(planned(profile, which, train_only=True), options, executor, workers, address, deterministic, dry_run)


@app.command(epilog="Examples:  python -m fsr evaluate whitebox -p mini    python -m fsr evaluate RUN --attack mi-fgsm")
def evaluate(
    which: Which,
    profile: Profile = "demo",
    attack: Attack = None,
    checkpoint: Annotated[str, typer.Option(help="With --attack: last, best or ema.")] = "last",
    images: Annotated[
        int | None, typer.Option(min=1, help="With --attack: how many test images; default: all, of nattack 1,000.")
    ] = None,
    device: Device = None,
    data: DataDir = None,
    root: Root = None,
    limit_minutes: Minutes = None,
    dry_run: Dry = False,
    workers: Workers = None,
    executor: Where = Executor.local,
    address: Address = "auto",
    deterministic: Deterministic = False,
) -> None:
    """Evaluate and analyse what is missing of a set, training first what is not trained; or one attack, printed."""
    files.use(root=root, data=data)
    options = options_of(device, limit_minutes, elsewhere=executor is Executor.ray)
    if attack is None and (images is not None or checkpoint != "last"):
        raise UsageError("--images and --checkpoint belong to --attack NAME; without it the profile's plan says both")
    chosen = [] if attack is None else attacked(profile, which, attack, checkpoint, images)
    todo = planned(profile, which) if attack is None else [task for task in chosen if task.missing()]
    if todo or attack is None:
        _do(todo, options, executor, workers, address, deterministic, dry_run)
    for task in () if dry_run else chosen:
        typer.echo(outcome_line(task))


@app.command(epilog="Example:  python -m fsr audit RUN --checkpoint ema --images 200 --budget full")
def audit(
    run: RunId,
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
    from fsr.config import Analysis, Evaluation
    from fsr.runs import local as executors
    from fsr.tables import audit_lines

    files.use(root=root, data=data)
    analysis = Analysis(kind="audit", checkpoint=checkpoint, images=images, budget=budget)
    chosen, options = one_run(run), options_of(device, limit_minutes)
    fits(chosen, Evaluation(attack="clean", checkpoint=checkpoint, images=images))
    writable_root()
    with executors.stoppable() as flag:
        runs.ensure_analysed(chosen, analysis, replace(options, interrupted=flag.is_set))
    for line in audit_lines(store.load_analysis(chosen, analysis)[0]):
        typer.echo(line)
