"""T10: every claim beside ours, and one of three verdicts, by rules written down in `fsr.reference`."""

from dataclasses import replace

import pandas as pd

from fsr import experiments
from fsr.reference import CLAIMS, Claim
from fsr.tables import names
from fsr.tables.frame import Sources, Table, make
from fsr.tables.inside import about
from fsr.tables.measure import RULES, Measured
from fsr.tables.own import OWN_RULES
from fsr.tables.text import NOT_RUN, missing, number, span
from fsr.tables.typed import cells, full_size

SMALLER = "Smaller, or shorter, than the paper's setting: a verdict holds for this setting alone, not for the paper's."
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
    return f"{names.dataset(base.dataset)}, {names.network(base)}, {epochs}"


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
        ours = (RULES | OWN_RULES)[claim.rule](profile, claim, sources)
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


def _value(value: float, row, *, sign: bool) -> str:
    return f"{number(value, digits=2, sign=sign)} {row.unit}"


def _shown(row, where: str) -> dict[str, str]:
    sign = row.unit == "points"
    ours = NOT_RUN if missing(row.ours) else _value(row.ours, row, sign=sign)
    if not missing(row.low):
        ours += " " + span(row.low, row.high, digits=2, sign=sign)
    return {
        "claim": f"{row.id}. {row.claim}",
        "stated": "words only" if missing(row.stated) else _value(row.stated, row, sign=sign),
        "by": f"{row.kind}: {row.source}",
        "ours": ours,
        "seeds": str(row.seeds),
        "tolerance": _value(row.tolerance, row, sign=False) if row.tolerance else "",
        "verdict": row.verdict,
        "why": row.reason,
        "holds for": where if row.verdict != UNTESTED else "",
        "test": row.test,
    }


def verdict(profile: str) -> Table:
    """T10: reproduced, not reproduced or not tested, claim by claim, for this profile."""
    experiments.profile_of(profile)
    sources = Sources()
    frame, where = numbers(profile, sources), budget(profile)
    notes = (
        f"Profile {profile}: {where}. Tolerances and tests are in fsr/reference/claims.py, those of C1 to C12 fixed "
        "before any run; C13 to C17 were written down when demo, headline40 and most of mini had been run.",
        "Only rows of kind paper are the paper's; rerun is a third party's run of the authors' code; own is what this "
        "project asks about T3 to T6 and T9.",
        "In brackets Student's t interval over seeds, 95 %, and 90 % where two one-sided tests decide (C6 to C11); it "
        "knows nothing of other test images. 'Not reproduced' is either the opposite or, but for C17, undecided: `why` "
        "says which.",
        *([] if full_size(experiments.profile_of(profile).base) else [SMALLER]),
    )
    shown = pd.DataFrame([_shown(row, where) for row in frame.itertuples()])
    return make(shown, about("T10", "verdict", "Verdict", profile, frame, sources, *notes))
