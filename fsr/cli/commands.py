"""The commands: run-all, train, evaluate, audit, status, report, compare, data, import-official."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fsr import files
from fsr.cli.options import (
    TORCHRUN,
    Attack,
    Checkpoint,
    DataDir,
    Device,
    Executor,
    Minutes,
    Profile,
    Root,
    RunId,
    Setting,
    Which,
    app,
    known_profile,
    say,
    with_setting,
    writable_root,
)
from fsr.cli.select_runs import accuracy_line, attacked, check_fits, one_run, planned, show_plan
from fsr.files import UsageError, did_you_mean, duration


def _conclude(summary) -> None:
    """Print failures; exit code 1 for those and the time limit, 130 for a signal."""
    for line in summary.failed:
        typer.echo(f"failed: {line}", err=True)
    if summary.stopped:
        typer.echo("stopped early; everything done is kept, the same command goes on from here", err=True)
    if summary.failed or summary.stopped:
        raise typer.Exit(130 if summary.stopped == "signal" else 1)


def _do(todo: list, options, setting: Setting) -> None:
    from fsr.train import distributed

    if setting.dry_run or not (todo or distributed.requested()):  # rank 0's list holds for all processes
        show_plan(todo, options)
    else:
        _conclude(setting.compute(todo, options))


@app.command("run-all", epilog="Examples:  python -m fsr run-all    python -m fsr run-all -p mini --limit-minutes 60")
@with_setting
def run_all(
    setting: Setting,
    profile: Profile = "demo",
    only: Annotated[str | None, typer.Option(help="Only these notebooks and what they need: 05,09.")] = None,
    force_notebook: Annotated[bool, typer.Option("--force-notebook", help="Execute unchanged notebooks too.")] = False,
) -> None:
    """Train, evaluate and analyse what is missing, then execute the notebooks that are not current."""
    from fsr import experiments, hardware, notebooks, report, runs
    from fsr.runs import local
    from fsr.train import distributed

    options, names = setting.options(), notebooks.numbered(only)
    sets = ("all",) if only is None else tuple(dict.fromkeys(s for n in names for s in experiments.NEEDS[n]))
    todo = runs.missing(known_profile(profile), sets)
    if setting.dry_run:
        show_plan(todo, options)
        return
    if distributed.requested():
        raise UsageError(TORCHRUN)
    writable_root()
    summary = setting.compute(todo, options) if todo else local.Summary()
    if summary.stopped != "signal":
        inline = setting.executor is Executor.inline
        count = 1 if inline else min(4, setting.workers or hardware.cores())  # a kernel each
        with local.stoppable() as flag:
            more = {"force": force_notebook, "compute": False, "workers": count, "interrupted": flag.is_set}
            summary.failed += notebooks.execute(names, profile, report=say, **more)
        if flag.is_set():
            summary.stopped = "signal"
        elif only is None:
            say(f"report: {report.build(profile)}")
    _conclude(summary)


@app.command(epilog="Examples:  python -m fsr train whitebox    python -m fsr train all -p mini --dry-run")
@with_setting
def train(which: Which, setting: Setting, profile: Profile = "demo") -> None:
    """Train what is missing of a set; needs no Jupyter."""
    options = setting.options()
    _do(planned(profile, which, train_only=True), options, setting)


@app.command(epilog="Examples:  python -m fsr evaluate whitebox -p mini    python -m fsr evaluate RUN --attack mi-fgsm")
@with_setting
def evaluate(
    which: Which,
    setting: Setting,
    profile: Profile = "demo",
    attack: Attack = None,
    checkpoint: Checkpoint = "last",
    images: Annotated[int | None, typer.Option(min=1, help="With --attack; default: all, of nattack 1,000.")] = None,
) -> None:
    """Evaluate and analyse what is missing of a set, training first what is not trained; or one attack, printed."""
    options = setting.options()
    if attack is None and (images is not None or checkpoint != "last"):
        raise UsageError("--images and --checkpoint belong to --attack NAME; without it the profile's plan says both")
    chosen = [] if attack is None else attacked(profile, which, attack, checkpoint, images)
    todo = planned(profile, which) if attack is None else [task for task in chosen if task.missing()]
    if todo or attack is None:
        _do(todo, options, setting)
    for task in () if setting.dry_run else chosen:
        typer.echo(accuracy_line(task))


@app.command(epilog="Example:  python -m fsr audit RUN --checkpoint ema --images 200 --budget full")
def audit(
    run: RunId,
    checkpoint: Checkpoint = "last",
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
    from fsr.runs import local
    from fsr.tables import audit_lines

    options = Setting(root=root, data=data, device=device, limit_minutes=limit_minutes).options()
    fields: dict[str, Any] = {"checkpoint": checkpoint, "images": images}
    analysis, chosen = Analysis(kind="audit", **fields, budget=cast(Any, budget)), one_run(run)
    check_fits(chosen, Evaluation(attack="clean", **fields))
    writable_root()
    _conclude(local.run_inline([runs.Task(run=chosen, analyses=(analysis,))], options))
    for line in audit_lines(store.load_analysis(chosen, analysis)[0]):
        typer.echo(line)


@app.command(epilog="Example:  python -m fsr status --profile mini")
def status(profile: Profile = "demo", device: Device = None, root: Root = None) -> None:
    """What of a profile is done, partial and missing, and how long the missing trainings take."""
    from fsr import runs

    files.use(root=root)
    files.existing()
    frame = runs.status(known_profile(profile), device=device)
    left, states = frame["seconds"], frame["state"].value_counts()
    shown = frame.assign(seconds=["?" if s != s else duration(s) if s else "" for s in left])
    typer.echo(shown.rename(columns={"seconds": "training left"}).to_string(index=False))
    names = [s for s in ("done", "partial", "missing", "damaged") if s in states or s != "damaged"]
    typer.echo(", ".join(f"{states.get(name, 0)} {name}" for name in names) + f" of {len(frame)} runs")
    if left.sum():
        typer.echo(f"trainings: {duration(left.sum())} one after the other, as fast as those finished here")


@app.command("report", epilog="Example:  python -m fsr report --profile demo")
def report_command(
    profile: Profile = "demo",
    root: Root = None,
    readme: Annotated[bool, typer.Option("--readme", help="Also bring README's results up to date.")] = False,
) -> None:
    """Write the profile's self-contained HTML report from its records."""
    from fsr import report

    files.use(root=root)
    files.existing()
    typer.echo(f"report: {report.build(known_profile(profile))}")
    if readme:
        changed = ", ".join(path.name for path in report.update_readme())
        typer.echo(f"written: {changed or 'nothing, all is up to date'}")


@app.command(epilog="Example:  python -m fsr compare reproduced --profile demo")
def compare(
    other: Annotated[Path, typer.Argument(metavar="ROOT", help="Another root, for example `reproduced`.")],
    profile: Profile = "demo",
    root: Root = None,
) -> None:
    """Print the records here against those of another root, as `make retrain` does."""
    from fsr import experiments
    from fsr.cli import compare as room

    files.use(root=root)
    table = room.compare(other, list(experiments.SETS[known_profile(profile)]["all"]))
    typer.echo(table.to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    typer.echo(room.summary(table))


@app.command("data", epilog="Examples:  python -m fsr data check    python -m fsr data path --data /sets")
def data_command(
    what: Annotated[str, typer.Argument(metavar="check|path")] = "check", data: DataDir = None, root: Root = None
) -> None:
    """Say which data sets are there and where missing ones belong, or print the folder."""
    from fsr.data.readers import check

    files.use(root=root, data=data)
    if what not in ("check", "path"):
        meant = did_you_mean(what, ("check", "path"))
        raise UsageError(f"unknown action {what!r}{meant}; type `python -m fsr data check` or `... data path`")
    if what == "path":
        typer.echo(files.data())
        return
    for name, there, where in check():
        typer.echo(f"{name:14}{'there' if there else 'missing':9}{where}")


@app.command("import-official", epilog="Example:  python -m fsr import-official F.pth --backbone vgg16 --dataset svhn")
def import_official(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of the authors' code.")],
    backbone: Annotated[str, typer.Option(help="resnet18, vgg16 or wideresnet34.")],
    dataset: Annotated[str, typer.Option(help="cifar10 or svhn: what it was trained on.")],
    root: Root = None,
) -> None:
    """Make a run of an authors' checkpoint, so that it can be evaluated and audited like any other."""
    from fsr import runs

    files.use(root=root)
    writable_root()
    typer.echo(runs.import_official(file, backbone, dataset))
