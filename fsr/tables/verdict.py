"""T10: the claims that a profile can decide, ours beside them, and what follows."""

from dataclasses import replace

import pandas as pd

from fsr import experiments
from fsr.reference import CLAIMS, Claim
from fsr.tables import labels, paper_cells
from fsr.tables.rules import RULES, Finding
from fsr.tables.study_rules import STUDY_RULES

STATES = {True: "reproduced", False: "contradicted", None: "undecided"}
OWN_STATES = {True: "supported", False: "not supported", None: "undecided"}
FEW_SEEDS = {True: "points towards", False: "points against", None: "undecided"}
UNTESTED = "not tested"
COLUMNS = [
    "id", "claim", "kind", "source", "stated", "unit", "ours", "low", "high", "seeds", "tolerance", "verdict",
    "reason", "test", "checkpoint", "changed_after_the_runs",
]  # fmt: skip


def state(claim: Claim, found: Finding) -> str:
    """What a measurement means for a claim; with fewer seeds than it needs it only points somewhere."""
    if found.value is None:
        return UNTESTED
    if found.seeds < claim.min_seeds:
        return FEW_SEEDS[found.holds]
    return (OWN_STATES if claim.kind in ("own", "prediction") else STATES)[found.holds]


def frame(profile: str) -> pd.DataFrame:
    """A row per claim that this profile's setting can decide, in the claim's own unit.

    low, high: over seeds and images from three seeds on, over images below; of C5 and C6 to C11 over seeds.
    """
    reported = experiments.profile_of(profile).report_checkpoint
    records = []
    for claim in _claims():
        if profile in claim.profiles:
            checkpoint = claim.checkpoint or reported
            found = (RULES | STUDY_RULES)[claim.rule](profile, claim, checkpoint)
            records.append({
                "id": claim.id, "claim": claim.text, "kind": claim.kind, "source": claim.source,
                "stated": claim.stated, "unit": claim.unit, "ours": found.value, "low": found.low, "high": found.high,
                "seeds": found.seeds, "tolerance": claim.tolerance, "verdict": state(claim, found),
                "reason": found.why, "test": claim.test, "checkpoint": checkpoint,
                "changed_after_the_runs": claim.earlier and f"changed after the runs; before: {claim.earlier}",
            })  # fmt: skip
    values = ["stated", "ours", "low", "high", "tolerance"]
    return pd.DataFrame(records, columns=COLUMNS).astype(dict.fromkeys(values, float))


def _claims() -> list[Claim]:
    """The claims; the largest gain is the one in results/paper_values.csv, where a person may have corrected it."""
    units = {"max_robust_gain_points": "points"}
    rows = ("+FSR over the same method without it",)
    typed = [cell.value for cell in paper_cells.cells("T10", rows=rows, units=units)]
    return [replace(c, stated=typed[-1]) if typed and c.rule == "largest_gain" else c for c in CLAIMS]


def notes(profile: str) -> list[str]:
    """What the verdicts hold for, and which claims this profile cannot decide, with what they need."""
    base = experiments.profile_of(profile).base
    where = f"{labels.dataset(base.dataset)}, {labels.network(base)}, {base.epochs} epochs"
    needs: dict[str, list[str]] = {}
    for claim in CLAIMS:
        if profile not in claim.profiles:
            needs.setdefault(claim.needs or " or ".join(claim.profiles), []).append(claim.id)
    told = "; ".join(f"{', '.join(ids)} ({what})" for what, ids in needs.items())
    return [f"Verdicts hold for {where}.", f"Claims that need another profile or more: {told}."]
