"""T10: every claim beside ours, and one of three verdicts, by rules written down in `fsr.reference`."""

from dataclasses import replace

import pandas as pd

from fsr import experiments
from fsr.reference import CLAIMS, Claim
from fsr.tables import labels
from fsr.tables.frame import Sources
from fsr.tables.measure import RULES, Measured
from fsr.tables.own import OWN_RULES
from fsr.tables.paper_cells import cells

REPRODUCED, FAILED, UNTESTED = "reproduced", "not reproduced", "not tested"


def decide(claim: Claim, profile: str, ours: Measured) -> tuple[str, str]:
    """(verdict, reason): a verdict needs the right profile, enough seeds, and a test that could be made."""
    if ours.value is None:
        return UNTESTED, ours.why
    if profile not in claim.profiles:
        needed = " or ".join(claim.profiles)
        return UNTESTED, "; ".join(part for part in (f"needs {needed}", ours.why) if part)
    if ours.seeds < claim.min_seeds:
        return UNTESTED, f"{ours.seeds} of {claim.min_seeds} seeds"
    if ours.passed is None:
        return UNTESTED, ours.why
    return (REPRODUCED if ours.passed else FAILED), ours.why


def budget(profile: str) -> str:
    """What the verdict holds for, in words: data, network and epochs."""
    base = experiments.profile_of(profile).base
    epochs = f"{base.epochs} epoch{'s' if base.epochs > 1 else ''}"
    return f"{labels.dataset(base.dataset)}, {labels.network(base)}, {epochs}"


def _claims() -> tuple[Claim, ...]:
    """The claims; the largest gain is the one in results/paper_values.csv, where a person may have corrected it."""
    units = {"max_robust_gain_points": "points"}
    typed = [cell.value for cell in cells("T10", rows=("+FSR over the same method without it",), units=units)]
    if not typed:
        return CLAIMS
    return tuple(replace(claim, stated=typed[-1]) if claim.rule == "largest_gain" else claim for claim in CLAIMS)


def numbers(profile: str, sources: Sources) -> pd.DataFrame:
    """T10 as numbers: a row per claim, in the claim's own unit."""
    records = []
    for claim in _claims():
        planned = bool(experiments.ROWS[profile]["deactivation"])
        ours = (RULES | OWN_RULES)[claim.rule](profile, claim, sources) if planned else Measured()
        verdict, reason = decide(claim, profile, ours)
        records.append({
            "id": claim.id, "claim": claim.text, "kind": claim.kind, "source": claim.source, "stated": claim.stated,
            "unit": claim.unit, "ours": ours.value, "low": ours.low, "high": ours.high, "seeds": ours.seeds,
            "tolerance": claim.tolerance, "verdict": verdict, "reason": reason, "test": claim.test,
        })  # fmt: skip
    frame = pd.DataFrame(records)
    values = ["stated", "ours", "low", "high", "tolerance"]
    frame[values] = frame[values].astype(float)
    return frame


def frame(profile: str) -> pd.DataFrame:
    """A row per claim."""
    return numbers(profile, Sources())


def notes(profile: str, table: pd.DataFrame) -> list[str]:
    """What the verdicts hold for."""
    return [f"Verdicts hold for {budget(profile)}."]
