"""How T10 measures each kind of claim from the records; deciding is `fsr.tables.verdict`'s job."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from fsr import experiments, statistics, store
from fsr.experiments import Row
from fsr.files import MissingRecord
from fsr.reference import MIN_SEEDS, Claim
from fsr.tables import cells, robustness, streams
from fsr.tables import overhead as costs
from fsr.tables.formatting import missing, number, span
from fsr.tables.frame import Sources


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Ours for one claim, in the claim's unit; passed is None where the test cannot be made, and `why` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    passed: bool | None = None
    why: str = ""


NOTHING = Measured(why="not run")


def _rows(profile: str, kind: str) -> dict[str, Row]:
    """A set's rows by name; of several networks the first, which is the main one."""
    return {row.name: row for row in reversed(experiments.ROWS[profile][kind])}


def _stated(claim: Claim) -> float:
    """The stated value of a claim whose rule compares with one."""
    if claim.stated is None:
        raise ValueError(f"{claim.id} states no value to compare with")
    return claim.stated


def _of_seeds(values: list[float], *, scale: float = 100.0) -> Measured:
    """Mean and two-sided 95 % t interval over seeds, from MIN_SEEDS on; passed when it lies above 0.

    Fewer seeds, or seeds that do not differ, would give an interval that looks like certainty: they have none.
    """
    if not values:
        return NOTHING
    mean, sd, low, high, seeds = statistics.seed_summary([scale * value for value in values])
    if seeds < MIN_SEEDS:
        return Measured(value=mean, seeds=seeds, why="too few seeds for an interval")
    if not sd or low is None or high is None:
        return Measured(value=mean, seeds=seeds, why="the seeds do not differ: no interval")
    why = "" if low > 0 else "the interval lies below 0" if high < 0 else "the interval holds 0: undecided"
    return Measured(value=mean, low=low, high=high, seeds=seeds, passed=low > 0, why=why)


def _and(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def column(profile: str, metric: str, kind: str = "whitebox"):
    """The column's evaluation of the last weights, as claims say, whatever weights the profile looks at.

    `autoattack` is the profile's own AutoAttack.
    """
    name = experiments.profile_of(profile).autoattack if metric == "autoattack" else metric
    return cells.at(experiments.columns(profile, kind)[name], "last")


def gain(profile: str, claim: Claim, sources: Sources) -> Measured:
    """AT + FSR minus AT, seed by seed, in points."""
    row = _rows(profile, "whitebox")["AT + FSR"]
    evaluation = column(profile, claim.metric)
    warned = _warnings(row, Row(name="AT", runs=row.baseline), evaluation=evaluation, sources=sources)
    cell = cells.gain(row.runs, row.baseline, evaluation)
    ours = _of_seeds(cell.get("per_seed", []))
    if ours.value is None:
        return ours
    images = f"over images {span(100 * cell['low'], 100 * cell['high'], digits=2, sign=True)}"
    return replace(ours, why=_and(ours.why, images, warned))


def _warnings(*rows: Row, evaluation, sources: Sources) -> str:
    """What puts AutoAttack in doubt for these rows, its own warnings first: they may be masked gradients."""
    flags = {row.name: cells.accuracy(row.runs, evaluation, sources).get("flags") for row in rows}
    return _and(
        *(f"AutoAttack is in doubt for {name}: {told}" for name, told in flags.items() if told not in (None, "none"))
    )


def largest_gain(profile: str, claim: Claim, sources: Sources) -> Measured:
    """The largest gain among T1's robust cells (last weights), in points; every cell must have been run."""
    frame = robustness.frame("T1", profile)
    chosen = (frame["kind"] == "gain") & (frame["checkpoint"] == "last") & (frame["metric"] != "clean")
    gains = frame[chosen]
    done = gains.dropna(subset="value")
    if done.empty:
        return NOTHING
    top = done.loc[done["value"].idxmax()]
    value = 100 * top["value"]
    place = f"largest at {top['dataset']}, {top['network']}, {top['row'].split(':')[0]}, {top['metric']}"
    whole = len(done) == len(gains)
    why = f"{place}; the largest of {len(done)}, so its own interval would flatter it"
    why = why if whole else f"{why}; {len(done)} of {len(gains)} cells run"
    passed = abs(value - _stated(claim)) <= claim.tolerance if whole else None
    return Measured(value=value, seeds=int(done["seeds"].min()), passed=passed, why=why)


def overhead(profile: str, claim: Claim, sources: Sources) -> Measured:
    """The larger of added MACs and added seconds per epoch on the main network, in percent."""
    numbers = costs.frame(profile).dropna(subset="fsr")
    if numbers.empty:
        return NOTHING
    main = numbers.iloc[0][["dataset", "network"]]
    pair = numbers[(numbers[["dataset", "network"]] == main).all(axis=1)].sort_values("fsr")
    machines = set(pair["trained_on"])
    if pair["shared"].any():
        return Measured(why="a training that shared its device with another one tells nothing of speed")
    if not pair["timed"].all():
        return Measured(why="of a training that was stopped the record names the last part's machine alone")
    if len(machines) > 1 or any(" and " in str(machine) for machine in machines):
        return Measured(why="the two were not trained on one kind of machine")
    added = {}
    for name in ("macs", "train_seconds_per_epoch"):
        plain, both = pair[name]
        if missing(plain) or missing(both):
            return NOTHING
        added[name] = 100 * (both / plain - 1)
    worst = max(added.values())
    why = "; ".join(f"{name.replace('_', ' ')} {number(value, sign=True)} %" for name, value in added.items())
    why += " (of one training each: rough)"
    return Measured(value=worst, seeds=1, passed=worst <= claim.tolerance, why=why)


def least_lead(profile: str, kind: str, metric: str, rivals: tuple[str, ...], sources: Sources) -> Measured:
    """The least certain lead of AT + FSR over a set's other rows, in points; every interval must lie above 0."""
    evaluation = column(profile, metric, kind)
    rows = _rows(profile, kind)
    ours = rows["AT + FSR"]
    leads: dict[str, Measured] = {}
    warned = [_warnings(ours, evaluation=evaluation, sources=sources)]
    for name in rivals:
        row = rows.get(name)
        if row is None:
            return Measured(why=f"{name} is not in this profile")
        warned.append(_warnings(row, evaluation=evaluation, sources=sources))
        leads[name] = _of_seeds(cells.gain(ours.runs, row.runs, evaluation).get("per_seed", []))
    values = {name: lead.value for name, lead in leads.items() if lead.value is not None}
    if len(values) < len(leads):
        return NOTHING
    ends = {name: values[name] if lead.low is None else lead.low for name, lead in leads.items()}
    least = leads[min(ends, key=lambda name: ends[name])]  # the one that decides
    tests = [lead.passed for lead in leads.values()]
    passed = None if None in tests else all(tests)
    reasons = {name: f" ({lead.why})" if lead.why else "" for name, lead in leads.items()}
    why = _and(*(f"over {name} {number(value, sign=True)}{reasons[name]}" for name, value in values.items()), *warned)
    seeds = min(lead.seeds for lead in leads.values())
    return Measured(value=least.value, low=least.low, high=least.high, seeds=seeds, passed=passed, why=why)


def deactivation(profile: str, claim: Claim, sources: Sources) -> Measured:
    """The least certain lead of AT + FSR over FD, CAS and CIFS, in points."""
    return least_lead(profile, "deactivation", claim.metric, ("AT + FD", "AT + CAS", "AT + CIFS"), sources)


def cues(profile: str, claim: Claim, sources: Sources) -> Measured:
    """Accuracy of the recalibrated minus the non-robust stream under PGD-20 by neighbours, seed by seed, in points."""
    numbers = streams.frame(profile)
    last = numbers[(numbers["attack"] == "pgd20") & (numbers["checkpoint"] == "last")]
    steps = {
        probe: (wide["recalibrated"] - wide["nonrobust"]).dropna()
        for probe, part in last.groupby("probe")
        for wide in [part.pivot(index="seed", columns="stream", values="accuracy")]
    }
    if claim.metric not in steps:
        return NOTHING
    ours = _of_seeds(list(steps[claim.metric]))
    learnt = "aux" not in steps or not len(steps["aux"]) or steps["aux"].mean() > 0
    caveat = "" if learnt else "the head trained for this step does not show it: the separation was not learnt"
    return replace(ours, why=_and(ours.why, caveat))


def _comparable(profile: str) -> bool:
    base = experiments.profile_of(profile).base
    return (base.dataset, base.backbone) == ("cifar10", "resnet18")


def accuracy_of(profile: str, claim: Claim, sources: Sources) -> Measured:
    """Accuracy of AT + FSR (last weights), in percent; equivalent to the stated value by two one-sided t tests.

    low, high: the 90 % t interval, which decides: equivalent when it lies inside the tolerance.
    """
    if not _comparable(profile):
        return Measured(why="another data set or network")
    row, evaluation = _rows(profile, "whitebox")["AT + FSR"], column(profile, claim.metric)
    cells.accuracy(row.runs, evaluation, sources)
    values = [o.accuracy for run in row.runs if (o := cells.outcome(run, evaluation)) is not None]
    ours = _of_seeds(values)
    if ours.low is None:
        return ours
    found = statistics.tost([100 * v - _stated(claim) for v in values], claim.tolerance)
    outside = found.low > claim.tolerance or found.high < -claim.tolerance
    undecided = "" if found.equivalent else "the interval crosses the tolerance: undecided"
    told = "outside the tolerance" if outside else undecided
    _, _, low, high, _ = statistics.seed_summary([100 * v for v in values], level=0.9)
    return replace(ours, low=low, high=high, passed=found.equivalent, why=_and(f"p = {found.p:.3f}", told))


def seconds(profile: str, claim: Claim, sources: Sources) -> Measured:
    """Median seconds per epoch of AT + FSR, seed 0, on the device that the stated value names."""
    if not _comparable(profile):
        return Measured(why="another data set or network")
    run = experiments.main_pair(profile)[1]
    try:
        value, record = float(store.history(run)["seconds"].median()), store.environment(run)
    except MissingRecord:
        return NOTHING
    sources.add(record)
    device = claim.source.rsplit(" ", 1)[-1].strip(")")
    trained = costs._machine(record)
    if not store.alone(record):
        return Measured(value=value, seeds=1, why="shared its device with another training")
    if not re.search(rf"\b{device}\b", trained) or not trained.endswith("processes: 1") or " and " in trained:
        return Measured(value=value, seeds=1, why=f"not on one {device}")
    return Measured(value=value, seeds=1, passed=value <= _stated(claim) + claim.tolerance)


RULES: dict[str, Callable[[str, Claim, Sources], Measured]] = {
    "gain": gain,
    "largest_gain": largest_gain,
    "overhead": overhead,
    "deactivation": deactivation,
    "cues": cues,
    "accuracy": accuracy_of,
    "seconds": seconds,
}
