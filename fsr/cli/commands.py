"""The commands: run-all, train, evaluate, audit, status, report, compare, data, import-official."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from fsr import experiments, files, hardware, runs, statistics, store
from fsr.attacks import ATTACKS
from fsr.cli import options
from fsr.cli.options import DataDir, Device, Root, Setting, with_setting
from fsr.config import Analysis, Evaluation, replace
from fsr.data.readers import check
from fsr.files import UsageError, choose
from fsr.runs import local
from fsr.tables.analyses import audit_lines
from fsr.tables.outcomes import metrics, of_other_weights

log = logging.getLogger("fsr")
EPILOG = "Examples:  python -m fsr run-all    python -m fsr status --profile mini    python -m fsr -v train whitebox"
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EPILOG)

Profile = Annotated[str, typer.Option("--profile", "-p", help="demo, mini, headline ...; see README.")]
Which = Annotated[str, typer.Argument(metavar="SET", help="A set (whitebox ...) or a run id.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run id; `status` lists them.")]
Checkpoint = Annotated[str, typer.Option(help="Which weights: last, best or ema.")]
Images = Annotated[int | None, typer.Option(min=1, help="Test images; else evaluate takes all, of nattack 1,000.")]
Budget = Annotated[str, typer.Option(help="quick or full.")]
Only = Annotated[str | None, typer.Option(help="Only these notebooks and what they need: 05,09.")]
Readme = Annotated[bool, typer.Option("--readme", help="Also bring README's results up to date.")]
Other = Annotated[Path, typer.Argument(metavar="ROOT", help="Another root, for example `reproduced`.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of the authors' code.")]
Network = Annotated[str, typer.Option(help="resnet18, vgg16 or wideresnet34.")]
Trained = Annotated[str, typer.Option(help="cifar10 or svhn: what it was trained on.")]
What = Annotated[str, typer.Argument(help="check, or path: print the folder.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings, failures and results only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also where failures come from.")]


@app.callback()
def everywhere(quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Feature Separation and Recalibration (CVPR 2023), replicated: train, evaluate, audit and report."""
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


@app.command("run-all", epilog="Examples:  python -m fsr run-all    python -m fsr run-all -p mini --limit-minutes 60")
@with_setting
def run_all(setting: Setting, profile: Profile = "demo", only: Only = None) -> None:
    """Train, evaluate and analyse what is missing, then execute the notebooks that are not current."""
    from fsr import notebooks, report

    files.repository()  # or fail at once, not after hours: the notebooks are there
    names = notebooks.numbered(only)
    sets = ("all",) if only is None else tuple(dict.fromkeys(s for n in names for s in experiments.NEEDS[n]))
    todo = runs.missing(profile, sets)
    if setting.dry_run:
        return setting.do(todo)
    failed = setting.compute(todo) if todo else []
    workers = min(4, setting.workers or hardware.cores())
    with local.stoppable() as flag:
        check = replace(setting.options, interrupted=flag.is_set).check
        failed += notebooks.execute(names, profile, workers=workers, report=log.info, check=check)
        if flag.is_set():
            check()
    if only is None:
        typer.echo(f"report: {report.build(profile)}")
    options.conclude(failed)


@app.command(epilog="Examples:  python -m fsr train whitebox    python -m fsr train all -p mini --dry-run")
@with_setting
def train(setting: Setting, which: Which, profile: Profile = "demo") -> None:
    """Train what is missing of a set; needs no Jupyter."""
    setting.do(options.plan_tasks(profile, which, train_only=True))


@app.command(epilog="Examples:  python -m fsr evaluate whitebox -p mini    python -m fsr evaluate RUN --attack mi-fgsm")
@with_setting
def evaluate(
    setting: Setting,
    which: Which,
    profile: Profile = "demo",
    attack: Annotated[str | None, typer.Option(help="Only this one of fsr.attacks.ATTACKS, printed.")] = None,
    checkpoint: Checkpoint = "last",
    images: Images = None,
) -> None:
    """Evaluate and analyse what is missing of a set, training first what is not trained; or one attack, printed."""
    if attack is None:
        if images is not None or checkpoint != "last":
            raise UsageError("--images and --checkpoint belong to --attack NAME; else the profile's plan says both")
        return setting.do(options.plan_tasks(profile, which))
    chosen = choose("attack without surrogate", attack, {name: a for name, a in ATTACKS.items() if not a.needs})
    some = options.runs_of(which, profile)
    evaluation = Evaluation(attack=attack, checkpoint=checkpoint, images=images or options.at_most(chosen.images, some))
    tasks = options.tasks_of(some, evaluation)
    setting.do(tasks)
    for task in () if setting.dry_run else tasks:
        correct = store.load_evaluation(task.run, evaluation).correct
        low, high = (100 * bound for bound in statistics.wilson(int(correct.sum()), len(correct)))
        value = f"{100 * correct.mean():.1f} [{low:.1f}, {high:.1f}] % of {len(correct)}"
        value += " (of other weights than the training on record)" * of_other_weights(task.run, evaluation)
        typer.echo(f"{task.name}  {checkpoint} {evaluation.attack_id}  {value}")


@app.command(epilog="Example:  python -m fsr audit RUN --checkpoint ema --images 200 --budget full")
@with_setting
def audit(
    setting: Setting, run: RunId, checkpoint: Checkpoint = "last", budget: Budget = "quick", images: Images = 100
) -> None:
    """Attack a run by everything an informed attacker would try, and print what survives."""
    analysis = Analysis(kind="audit", checkpoint=checkpoint, images=images, budget=budget)
    (task,) = options.tasks_of(options.runs_of(run), analysis)
    setting.do([task])
    for line in () if setting.dry_run else audit_lines(store.load_analysis(task.run, analysis)[0]):
        typer.echo(line)
    if store.has_record(task.run, analysis) and of_other_weights(task.run, analysis):
        typer.echo("of other weights than the training on record")


@app.command(epilog="Example:  python -m fsr status --profile mini")
def status(profile: Profile = "demo", device: Device = None, root: Root = None) -> None:
    """What of a profile is done, partial and missing, and how long the missing trainings take."""
    files.use(root=root, existing=True)
    frame = runs.status(profile, device=device).rename(columns={"seconds": "training left"})
    left = frame["training left"].round()
    shown = {"training left": lambda s: str(timedelta(seconds=s)) if s else ""}
    typer.echo(frame.assign(**{"training left": left}).to_string(index=False, formatters=shown, na_rep="?"))
    counts = [f"{(frame['state'] == state).sum()} {state}" for state in ("done", "partial", "missing")]
    unknown = f", and {left.isna().sum()} that take an unknown time" * left.hasnans
    typer.echo(f"{', '.join(counts)} of {len(frame)} runs; {timedelta(seconds=left.sum())} of trainings left{unknown}")


@app.command("report", epilog="Example:  python -m fsr report --profile demo")
def report_command(profile: Profile = "demo", root: Root = None, readme: Readme = False) -> None:
    """Write the profile's self-contained HTML report from its records."""
    from fsr import report

    files.use(root=root, existing=True)
    if readme:
        typer.echo(f"written: {', '.join(path.name for path in report.update_readme()) or 'nothing new'}")
    typer.echo(f"report: {report.build(profile)}")


@app.command(epilog="Example:  python -m fsr compare reproduced --profile demo")
def compare(other: Other, profile: Profile = "demo", root: Root = None) -> None:
    """Print accuracies here beside those of another root, as `make retrain` does; differences in points of percent."""
    files.use(root=root)
    plan, here = experiments.SETS[experiments.profile_of(profile).name]["all"], files.root()
    files.use(root=other)
    again = metrics(plan)
    files.use(root=here)
    keys = ["run_id", "checkpoint", "attack_id"]
    mine = metrics(plan)
    joined = mine.merge(again, on=keys, suffixes=("", "_again"), validate="one_to_one")
    if joined.empty:
        raise UsageError(f"{other} and {here} hold no results of this profile in common; type `make retrain`")
    joined["difference"] = 100 * (joined["accuracy_again"] - joined["accuracy"])
    columns, sizes = [*keys, "n", "accuracy", "accuracy_again", "difference"], joined["difference"].abs()
    typer.echo(joined.to_string(index=False, columns=columns, float_format="{:.4f}".format))
    typer.echo(f"{len(joined)} values: {(sizes == 0).sum()} equal; largest difference {sizes.max():.2f} points")
    typer.echo(f"not compared: {len(mine) - len(joined)} values only here, {len(again) - len(joined)} only in {other}")


@app.command("data", epilog="Examples:  python -m fsr data check    python -m fsr data path --data /sets")
def data_command(what: What = "check", data: DataDir = None, root: Root = None) -> None:
    """Say which data sets are there and where missing ones belong, or print the folder."""
    files.use(root=root, data=data)
    states = choose("word", what, {"check": check, "path": lambda: {str(files.data()): ""}})()
    for name, state in states.items():
        typer.echo(f"{name:14}{state}")


@app.command("import-official", epilog="Example:  python -m fsr import-official F.pth --backbone vgg16 --dataset svhn")
def import_official(file: File, backbone: Network, dataset: Trained, root: Root = None) -> None:
    """Make a run of an authors' checkpoint, so that it can be evaluated and audited like any other."""
    files.use(root=root)
    typer.echo(runs.import_official(file, backbone, dataset))
