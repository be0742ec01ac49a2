"""How T10 measures the predictions about overfitting and about 100 epochs."""

from collections.abc import Callable

import pandas as pd

from fsr import experiments, store
from fsr.reference import Claim
from fsr.tables.rules import NOTHING, Finding, column, gain_between, least_lead, row_of


def _study_gain(profile: str, claim: Claim, after: str, before: str | None = None, base: str = "AT") -> Finding:
    """AT + FSR at one checkpoint minus another row at its own, in points."""
    kind = "study" if experiments.ROWS[profile]["study"] else "whitebox"
    evaluations = [column(profile, claim.metric, checkpoint, kind) for checkpoint in (after, before or after)]
    return gain_between(row_of(profile, "AT + FSR", kind), row_of(profile, base, kind), *evaluations)


def study_gain_early(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """The gains at `best` and EMA: above zero at one of them fails, both ending below the tolerance holds."""
    found = {name: _study_gain(profile, claim, name) for name in ("best", "ema")}
    worst = least_lead(found)
    if worst.value is None:
        return worst
    high = max(found.values(), key=lambda each: each.high)
    beats = any(each.low > 0 for each in found.values())
    return high._replace(holds=False if beats else True if high.high < claim.tolerance else None, why=worst.why)


def study_training(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """The largest difference over epochs of the mean training accuracy under attack, AT + FSR minus AT, in points."""
    rows = [row for name in ("AT", "AT + FSR") if (row := row_of(profile, name, "study"))]
    seeds = [i for i, pair in enumerate(zip(*(row.runs for row in rows))) if all(map(store.is_trained, pair))]
    if not seeds:
        return NOTHING
    curves = [pd.concat([store.history(row.runs[i])[claim.metric] for i in seeds], axis=1).mean(axis=1) for row in rows]
    apart = 100 * (curves[1] - curves[0])
    why = f"below at {(apart < 0).sum()} of {len(apart)} epochs"
    return Finding(float(apart.max()), seeds=len(seeds), holds=bool((apart < 0).all()), why=why)


def study_needs_sep(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """AT + FSR at `last` minus each of the three variants, in points; the least certain lead."""
    others = [row.name for row in experiments.ROWS[profile]["study"][2:]]
    return least_lead({f"over {name}": _study_gain(profile, claim, "last", base=name) for name in others})


def study_early_stopping(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """AT at `best` minus AT + FSR at `last`, in points."""
    found = _study_gain(profile, claim, "last", "best")
    if found.value is None:
        return found
    low, high = -found.high, -found.low
    holds = False if high < 0 else True if low > -claim.tolerance else None
    return found._replace(value=-found.value, low=low, high=high, holds=holds)


def _three(profile: str, claim: Claim) -> dict[str, Finding]:
    return {name: _study_gain(profile, claim, name) for name in experiments.CHECKPOINTS}


def slow_start(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """The gains in EMA and at `best`, the larger in size: both within the tolerance of 0."""
    found = {name: each for name, each in _three(profile, claim).items() if name != "last"}
    worst = least_lead(found)
    if worst.value is None:
        return worst
    far = max(found.values(), key=lambda each: abs(each.value))
    return far._replace(holds=abs(far.value) <= claim.tolerance, why=worst.why)


def overfitting(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """The gain at `last` minus the larger of those at `best` and EMA, in points."""
    found = _three(profile, claim)
    worst = least_lead(found)
    if worst.value is None:
        return worst
    value = found["last"].value - max(found["best"].value, found["ema"].value)
    return Finding(value, seeds=worst.seeds, holds=value >= claim.tolerance, why=worst.why)


def real_deficit(profile: str, claim: Claim, checkpoint: str) -> Finding:
    """The gain in EMA, below minus the tolerance, where neither of the two other explanations holds."""
    others = [rule(profile, claim, checkpoint) for rule in (slow_start, overfitting)]
    ema = _study_gain(profile, claim, "ema")
    if ema.value is None or any(found.value is None for found in others):
        return NOTHING
    return ema._replace(holds=not any(found.holds for found in others) and ema.value < -claim.tolerance)


OF_THE_STUDY = (study_gain_early, study_training, study_needs_sep, study_early_stopping)
STUDY_RULES: dict[str, Callable[[str, Claim, str], Finding]] = {
    rule.__name__: rule for rule in (*OF_THE_STUDY, slow_start, overfitting, real_deficit)
}
