"""What a command is to compute: a set of the plan, one run, or one attack on either."""

import typer

from fsr import experiments, files
from fsr.config import DATASETS, Evaluation, Run, replace, run_id
from fsr.files import UsageError, did_you_mean, duration


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
