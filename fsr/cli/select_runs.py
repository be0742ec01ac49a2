"""What a command is to compute (a set of the plan, one run, one attack on either), and how it is printed."""

from dataclasses import replace
from typing import Any, cast

import typer

from fsr.cli.options import known_profile, recorded_runs
from fsr.config import DATASETS, Evaluation, Run, run_id
from fsr.files import UsageError, did_you_mean, duration


def runs_of(profile: str, which: str) -> tuple[Run, ...]:
    """The runs of a set, or the one run whose id was given: of the plan, or recorded in these results."""
    from fsr import experiments

    sets = experiments.SETS[known_profile(profile)]
    return sets[which] if which in sets else (one_run(which, sets),)


def one_run(which: str, sets: dict | None = None) -> Run:
    """The run with this id: recorded in these results, or of any profile's plan.

    sets: those of the only profile to look in; UsageError names what may have been meant.
    """
    from fsr import experiments, store

    recorded, plans = recorded_runs(), experiments.SETS.values() if sets is None else [sets]
    planned = {run_id(run): run for plan in plans for run in plan["all"]}
    if which in planned:
        return planned[which]
    if which in recorded:
        return store.config_of(which)
    meant, what, choices = did_you_mean(which, [*(sets or ()), *recorded, *planned]), "run", ""
    if sets:
        what, choices = "set and no run", f"; choose one of {', '.join(sets)}, or a run id"
    raise UsageError(f"no {what} {which!r}{meant}{choices}; `python -m fsr status` lists runs")


def planned(profile: str, which: str, *, train_only: bool = False) -> list:
    """Missing tasks of a set or of one run; a run outside the plan gets the columns of T1 on its last weights."""
    from fsr import experiments, runs

    chosen = runs_of(profile, which)
    if which in experiments.SETS[profile]:
        return runs.missing(profile, (which,), train_only=train_only)
    if chosen[0] in experiments.SETS[profile]["all"]:
        return [task for task in runs.missing(profile, train_only=train_only) if task.name == which]
    columns = [e for e in experiments.columns(profile, "whitebox").values() if e.attack != "ensemble"]
    whole = _test_images(chosen[0]) is None  # a folder of any size
    columns = [replace(e, checkpoint="last", images=None if whole else e.images) for e in columns]
    task = runs.Task(run=chosen[0], evaluations=() if train_only else tuple(columns))
    return [task] if task.missing() else []


def attacked(profile: str, which: str, attack: str, checkpoint: str, images: int | None) -> list:
    """One attack of fsr.attacks.ATTACKS on every run of a set, or on one run: its tasks, done or not."""
    from fsr import runs
    from fsr.attacks import ATTACKS, attack_named

    if attack not in ATTACKS:
        meant = did_you_mean(attack, ATTACKS)
        raise UsageError(f"unknown attack {attack!r}{meant}; choose one of {', '.join(ATTACKS)}")
    if needs := attack_named(attack).needs:
        raise UsageError(f"{attack} needs {', '.join(needs)}: the set `blackbox` has it")
    out = []
    for run in runs_of(profile, which):
        there, usual = _test_images(run), ATTACKS[attack].images
        fewer = usual if usual is not None and there is not None and usual < there else None
        evaluation = Evaluation(attack=attack, checkpoint=cast(Any, checkpoint), images=images or fewer)
        check_fits(run, evaluation)
        out.append(runs.Task(run=run, evaluations=(evaluation,)))
    return out


def _test_images(run: Run) -> int | None:
    """How many test images a run has; None where only its folder says."""
    return DATASETS[run.dataset].test if run.test_size is None and run.dataset in DATASETS else run.test_size


def check_fits(run: Run, evaluation: Evaluation) -> None:
    """Refuse now what would fail only once the run is trained."""
    from fsr.experiments import has_heads

    there = _test_images(run)
    if there is not None and evaluation.images is not None and evaluation.images > there:
        raise UsageError(f"{run_id(run)} has {there:,} test images; give --images of at most {there}")
    if evaluation.checkpoint == "best" and run.holdout == 0 and run.imported is None:
        raise UsageError(f"{run_id(run)} has no `best`: nothing is held out; give --checkpoint last or ema")
    if run.imported is not None and evaluation.checkpoint != "last":
        raise UsageError(f"{run_id(run)} is imported, which gives `last` weights alone; give --checkpoint last")
    if evaluation.attack == "pgd20-joint" and not has_heads(run):
        raise UsageError(f"pgd20-joint needs auxiliary heads, and {run_id(run)} has none")


def show_plan(todo: list, options) -> None:
    """What would be computed, and how long its trainings take by those finished here on such a device."""
    from fsr import runs

    for task in todo:
        typer.echo(f"{task.name}: {', '.join(task.missing())}")
    trained = {task.run: trains for task in todo if (trains := task.trains())}
    again = [run for run, trains in trained.items() if trains == "again"]
    measured = runs.seconds_per_epoch(options.torch_device.type)
    times = [runs.seconds_left(run, measured, epochs=run.epochs if run in again else None) for run in trained]
    known = [seconds for seconds in times if seconds is not None]
    text, unknown = f"{len(trained) or 'no'} training{'s' * (len(trained) > 1)}", len(times) - len(known)
    text += f" ({len(again)} of them again: their records are here, their weights are gone)" if again else ""
    text += f", about {duration(sum(known))} in all" if known else ""
    text += f", {unknown} of unknown length: no such run is finished here" if unknown else ""
    typer.echo(f"{len(todo)} tasks to do: {text}; evaluations and analyses on top" if todo else "nothing to do")


def accuracy_line(task) -> str:
    """Run, weights, attack, and the accuracy under it with its 95 % interval."""
    from fsr import statistics, store

    evaluation = task.evaluations[0]
    correct = store.load_evaluation(task.run, evaluation).correct
    low, high = statistics.wilson(int(correct.sum()), len(correct))
    value = f"{100 * correct.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}] % of {len(correct)}"
    return f"{task.name}  {evaluation.checkpoint} {evaluation.attack_id}  {value}"
