"""What a command was asked to compute: a set of the plan, one run, or one attack on either."""

from dataclasses import replace

from fsr.cli.app import known_profile, known_runs
from fsr.config import DATASETS, Evaluation, Run, run_id
from fsr.files import UsageError, did_you_mean


def runs_of(profile: str, which: str) -> tuple[Run, ...]:
    """The runs of a set, or the one run whose id was given: of the plan, or recorded in these results (imported)."""
    from fsr import experiments, store

    sets = experiments.SETS[known_profile(profile)]
    if which in sets:
        return sets[which]
    planned = {run_id(run): run for run in sets["all"]}
    if which in planned:
        return (planned[which],)
    recorded = known_runs("")
    if which in recorded:
        return (store.config_of(which),)
    meant = did_you_mean(which, [*sets, *planned, *recorded])
    raise UsageError(f"no set and no run {which!r}{meant}; choose one of {', '.join(sets)}, or a run id")


def one_run(which: str) -> Run:
    """The run with this id: recorded in these results, or of any profile's plan."""
    from fsr import experiments, store

    recorded = known_runs("")
    if which in recorded:
        return store.config_of(which)
    planned = {run_id(run): run for sets in experiments.SETS.values() for run in sets["all"]}
    if which not in planned:
        meant = did_you_mean(which, [*recorded, *planned])
        raise UsageError(f"no run {which!r}{meant}; `python -m fsr status` lists them")
    return planned[which]


def planned(profile: str, which: str, *, train_only: bool = False) -> list:
    """Missing tasks of a set or of one run; a run outside the plan gets the columns of T1 on its last weights."""
    from fsr import experiments, runs

    chosen = runs_of(profile, which)
    if which in experiments.SETS[profile]:
        return runs.missing(profile, (which,), train_only=train_only)
    if chosen[0] in experiments.SETS[profile]["all"]:
        return [task for task in runs.missing(profile, train_only=train_only) if task.name == which]
    known = experiments.columns(profile, "whitebox").values()
    columns = [replace(e, checkpoint="last") for e in known if e.attack != "ensemble"]
    if _test_images(chosen[0]) is None:  # a folder of any size
        columns = [replace(e, images=None) for e in columns]
    task = runs.Task(run=chosen[0], evaluations=() if train_only else tuple(columns))
    return [task] if task.missing() else []


def attacked(profile: str, which: str, attack: str, checkpoint: str, images: int | None) -> list:
    """One attack of fsr.attacks.ATTACKS on every run of a set, or on one run: its tasks, done or not."""
    from fsr import runs
    from fsr.attacks import ATTACKS, attack_named

    if attack not in ATTACKS:
        raise UsageError(
            f"unknown attack {attack!r}{did_you_mean(attack, ATTACKS)}; choose one of {', '.join(ATTACKS)}"
        )
    if needs := attack_named(attack).needs:
        raise UsageError(f"{attack} needs {', '.join(needs)}: the set `blackbox` has it")
    out = []
    for run in runs_of(profile, which):
        there, usual = _test_images(run), ATTACKS[attack].images
        fewer = usual if usual is not None and there is not None and usual < there else None
        evaluation = Evaluation(attack=attack, checkpoint=checkpoint, images=images or fewer)
        fits(run, evaluation)
        out.append(runs.Task(run=run, evaluations=(evaluation,)))
    return out


def _test_images(run: Run) -> int | None:
    """How many test images a run has; None where only its folder says."""
    known = DATASETS[run.dataset].test if run.dataset in DATASETS else None
    return run.test_size if run.test_size is not None else known


def fits(run: Run, evaluation: Evaluation) -> None:
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


def outcome_line(task) -> str:
    """Run, weights, attack, and the accuracy under it with its 95 % interval."""
    from fsr import statistics, store

    evaluation = task.evaluations[0]
    found = store.load_evaluation(task.run, evaluation)
    n, correct = len(found.correct), int(found.correct.sum())
    low, high = statistics.wilson(correct, n)
    return (
        f"{task.name}  {evaluation.checkpoint} {evaluation.attack_id}  {100 * correct / n:.1f} "
        f"[{100 * low:.1f}, {100 * high:.1f}] % of {n}"
    )
