"""The commands that read what is there, and the one that imports: status, report, compare, data, import-official."""

from pathlib import Path
from typing import Annotated

import typer

from fsr import files
from fsr.cli.app import DataDir, Profile, Root, app, known_profile, writable_root
from fsr.files import UsageError, did_you_mean


@app.command(epilog="Example:  python -m fsr status --profile mini")
def status(profile: Profile = "demo", root: Root = None) -> None:
    """What of a profile is done, partial and missing, and how long the rest takes on 1, 8 and 64 GPUs."""
    from fsr import runs
    from fsr.files import duration
    from fsr.runs.costing import cost_table

    files.use(root=root)
    files.existing()
    frame = runs.status(known_profile(profile))
    typer.echo(frame.to_string(index=False))
    counts = frame["state"].value_counts()
    states = [s for s in ("done", "partial", "missing", "damaged") if s in counts or s != "damaged"]
    typer.echo(", ".join(f"{counts.get(s, 0)} {s}" for s in states) + f" of {len(frame)} runs")
    costs, measured = cost_table(profile)
    if costs[0][1] < 3600:  # nothing to plan a cluster for
        return
    for devices, seconds in costs:
        typer.echo(f"{devices:3d} GPU{'s' if devices > 1 else ' '}  {duration(seconds)}")
    speed = "of the largest network trained here" if measured else "of the authors' float32 code on one H200"
    typer.echo(f"trainings and evaluations that are missing, at the speed {speed}; analyses and audits on top")


@app.command("report", epilog="Example:  python -m fsr report --profile demo")
def report_command(
    profile: Profile = "demo",
    root: Root = None,
    readme: Annotated[bool, typer.Option("--readme", help="Also bring README's results up to date.")] = False,
) -> None:
    """Write the profile's self-contained HTML report from its records."""
    from fsr import report
    from fsr.report.readme import rewrite

    files.use(root=root)
    files.existing()
    typer.echo(f"report: {report.write(known_profile(profile))}")
    if readme:
        changed = rewrite(files.repository() / "README.md")
        typer.echo(f"README.md: {'written' if changed else 'unchanged'}")


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
    known_profile(profile)
    table = room.compare(other, list(experiments.SETS[profile]["all"]))
    columns = ["run_id", "checkpoint", "attack_id", "n", "accuracy", "accuracy_again", "difference"]
    typer.echo(table[columns].to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    typer.echo(room.summary(table))


@app.command("data", epilog="Examples:  python -m fsr data check    python -m fsr data path --data /sets")
def data_command(what: Annotated[str, typer.Argument(metavar="check|path")], data: DataDir = None) -> None:
    """Say which data sets are there and where missing ones belong, or print the folder."""
    files.use(data=data)
    if what == "path":
        typer.echo(files.data())
        return
    if what != "check":
        meant = did_you_mean(what, ("check", "path"))
        raise UsageError(
            f"unknown action {what!r}{meant}; type `python -m fsr data check` or `python -m fsr data path`"
        )
    from fsr.data.readers import check

    for name, there, where in check():
        typer.echo(f"{name:14}{'there' if there else 'missing':9}{where}")


@app.command(
    "import-official",
    epilog="Example:  python -m fsr import-official cifar10_resnet18.pth --backbone resnet18 --dataset cifar10",
)
def import_official(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of the authors' code.")],
    backbone: Annotated[str, typer.Option(help="resnet18, vgg16 or wideresnet34.")],
    dataset: Annotated[str, typer.Option(help="cifar10 or svhn: what it was trained on.")],
    root: Root = None,
) -> None:
    """Make a run of an authors' checkpoint, so that it can be evaluated and audited like any other."""
    from fsr.runs.importing import import_official as import_run

    files.use(root=root)
    writable_root()
    typer.echo(import_run(file, backbone, dataset))
