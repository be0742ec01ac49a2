"""What a command was asked to compute: a set of the plan, one run, or one attack on either."""

from dataclasses import replace

from fsr.cli.options import known_profile, recorded_runs
from fsr.config import DATASETS, Evaluation, Run, run_id
from fsr.files import UsageError, did_you_mean


def runs_of(profile: str, which: str) -> tuple[Run, ...]:
    """The runs of a set, or the one run whose id was given: of the plan, or recorded in these results."""
    from fsr import experiments

    sets = experiments.SETS[known_profile(profile)]
    return sets[which] if which in sets else (one_run(which, sets),)


def one_run(which: str, sets: dict | None = None) -> Run:
    """The run with this id: recorded in these results, or of any profile's plan.

    sets: those of a profile, which alone is looked at; UsageError names what may have been meant.
    """
    from fsr import experiments, store

    recorded, plans = recorded_runs(), experiments.SETS.values() if sets is None else [sets]
    planned = {run_id(run): run for plan in plans for run in plan["all"]}
    if which in planned:
        return planned[which]
    if which in recorded:
        return store.config_of(which)
    meant = did_you_mean(which, [*(sets or ()), *recorded, *planned])
    choices = f"; choose one of {', '.join(sets)}, or a run id;" if sets else ";"
    raise UsageError(
        f"no {'set and no ' if sets else ''}run {which!r}{meant}{choices} `python -m fsr status` lists runs"
    )


def planned(profile: str, which: str, *, train_only: bool = False) -> list:
    """Missing tasks of a set or of one run; a run outside the plan gets the columns of T1 on its last weights."""
    from fsr import experiments, runs

    chosen = runs_of(profile, which)
    if which in experiments.SETS[profile]:
        return runs.missing(profile, (which,), train_only=train_only)
    if chosen[0] in experiments.SETS[profile]["all"]:
        return [task for task in runs.missing(profile, train_only=train_only) if task.name == which]
    columns = [e for e in experiments.columns(profile, "whitebox").values() if e.attack != "ensemble"]
    own = {"images": None} if _test_images(chosen[0]) is None else {}  # a folder of any size
    evaluations = () if train_only else tuple(replace(e, checkpoint="last", **own) for e in columns)
    task = runs.Task(run=chosen[0], evaluations=evaluations)
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
        evaluation = Evaluation(attack=attack, checkpoint=checkpoint, images=images or fewer)
        check_fits(run, evaluation)
        out.append(runs.Task(run=run, evaluations=(evaluation,)))
    return out


def _test_images(run: Run) -> int | None:
    """How many test images a run has; None where only its folder says."""
    known = DATASETS[run.dataset].test if run.dataset in DATASETS else None
    return run.test_size if run.test_size is not None else known


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
