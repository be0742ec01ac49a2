"""How T10 measures this project's own questions, on T3 to T6 and T9."""

from collections.abc import Callable

from fsr import experiments, statistics, store
from fsr.config import Run
from fsr.experiments import Row
from fsr.reference import Claim
from fsr.tables import cells, labels
from fsr.tables.formatting import number
from fsr.tables.frame import Sources
from fsr.tables.measure import NOTHING, Measured, column, least_lead
from fsr.tables.streams import planned, record_of


def unseen(profile: str, claim: Claim, sources: Sources) -> Measured:
    """Of AT + FSR's survivors of Ensemble the share that a query attack breaks, in percent; the larger of the two."""
    run = experiments.main_pair(profile)[1]
    white, queries = cells.outcome(run, column(profile, "ensemble")), ("nattack", "square")
    asked = {name: column(profile, name, "blackbox") for name in queries}
    found = {name: cells.broken_only(run, asked[name], white, sources) if white else None for name in queries}
    done = {name: counts for name, counts in found.items() if counts is not None and counts[1]}
    if white is None or not done:
        return NOTHING
    sources.add(white.record)
    shares = {name: 100 * broken / seen for name, (broken, seen) in done.items()}
    why = "; ".join(f"{labels.metric(name)}: {broken} of {seen} images" for name, (broken, seen) in done.items())
    missing = [labels.metric(name) for name in found if name not in done]
    why += f"; {missing[0]} not run" if missing else ""
    value = max(shares.values())
    return Measured(value=value, seeds=1, passed=None if missing else value <= claim.tolerance, why=why)


def controls(profile: str, claim: Claim, sources: Sources) -> Measured:
    """The least certain lead of AT + FSR over T4's two trained controls, in points."""
    if claim.metric == "autoattack" and not experiments.profile_of(profile).autoattack_everywhere:
        return Measured(why="this profile runs no AutoAttack on the controls")
    return least_lead(profile, "components", claim.metric, experiments.CONTROLS, sources)


def _largest_lead(rows: tuple[Row, ...], profile: str, kind: str, claim: Claim, sources: Sources) -> Measured:
    """The largest mean lead of a row over the default, seed by seed, in points."""
    default = next(row for row in experiments.ROWS[profile]["whitebox"] if row.name == "AT + FSR").runs
    evaluation, leads, fewest = column(profile, claim.metric, kind), {}, len(default)
    others = [row for row in rows if row.runs[0] not in default]
    for row in others:
        found = cells.gain(row.runs, default, evaluation, sources=sources)
        if found["value"] is not None:
            leads[row.name], fewest = 100 * found["value"], min(fewest, found["seeds"])
    if not leads:
        return NOTHING if others else Measured(why="this profile varies none")
    top = max(leads, key=lambda name: leads[name])
    why = f"{top} {number(leads[top], sign=True)}, the largest of {len(leads)}: luck flatters it"
    whole = len(leads) == len(others)
    why = why if whole else f"{why}; {len(leads)} of {len(others)} run"
    passed = leads[top] <= claim.tolerance if whole else None
    return Measured(value=leads[top], seeds=fewest, passed=passed, why=why)


def settings(profile: str, claim: Claim, sources: Sources) -> Measured:
    """The largest lead of another setting of T5."""
    return _largest_lead(experiments.ROWS[profile]["settings"], profile, "settings", claim, sources)


def placement(profile: str, claim: Claim, sources: Sources) -> Measured:
    """The largest lead of another place of T6."""
    return _largest_lead(experiments.ROWS[profile]["placement"], profile, "placement", claim, sources)


def losses(profile: str, run: Run, sources: Sources, checkpoint: str | None = None):
    """(n,) bool: images that the protocol counts as robust and the audit's worst case does not; None when not run.

    checkpoint: of these weights only.
    """
    for analysis in planned(profile, run, "audit"):
        if checkpoint not in (None, analysis.checkpoint):
            continue
        if record_of(run, analysis):
            _, arrays = store.load_analysis(run, analysis)
            return arrays["authors_protocol"] & ~arrays["worst_case"]
    return None


def audit(profile: str, claim: Claim, sources: Sources) -> Measured:
    """What AT + FSR loses between the protocol and the worst case minus what AT loses, in points."""
    plain, both = (losses(profile, run, sources, "last") for run in experiments.main_pair(profile))
    if plain is None or both is None:
        return NOTHING
    p = statistics.mcnemar_exact(plain, both)
    value = 100 * (float(both.mean()) - float(plain.mean()))
    small = "p < 0.01" if p < 0.01 else f"p = {p:.2f}"
    why = f"{both.sum()} images with FSR, {plain.sum()} without, of {len(both)}; {small}"
    if value > 0 and p > 0.05:
        return Measured(value=value, seeds=1, why=f"{why}: undecided")
    return Measured(value=value, seeds=1, passed=value <= 0, why=why)


OWN_RULES: dict[str, Callable[[str, Claim, Sources], Measured]] = {
    "unseen": unseen,
    "controls": controls,
    "settings": settings,
    "placement": placement,
    "audit": audit,
}
