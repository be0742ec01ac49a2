"""What a claim is, and the verdict's claims from data/claims.toml: each with its tolerance and test."""

import tomllib
from dataclasses import dataclass
from typing import Any

from fsr.reference.known import DATA, known_results

MIN_SEEDS = 3  # fewer only point somewhere


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim and how it is decided.

    kind: paper, rerun, own or prediction; rule: a key of tables.rules.RULES; stated: the claimed value in `unit`, None
    where only words are stated; tolerance: in the same unit; checkpoint: the weights it is about, None for those that
    a profile reports; profiles: whose setting can decide it; needs: what it needs instead of a profile; earlier: the
    test before it was changed after the runs, "" for one that stayed.
    """

    id: str
    text: str
    kind: str
    source: str
    rule: str
    stated: float | Any = None
    unit: str = "points"
    tolerance: float = 0.0
    metric: str = ""
    checkpoint: str | None = None
    test: str
    earlier: str = ""
    profiles: tuple[str, ...] = ("headline", "paper")
    needs: str = ""
    min_seeds: int = MIN_SEEDS


def _claims() -> tuple[Claim, ...]:
    values = known_results().groupby(["kind", "metric"])["value"].first()
    claims = tomllib.loads((DATA / "claims.toml").read_text(encoding="utf-8"))["claim"]
    for claim in claims:
        if "stated" in claim:  # numbers of others stand in known_results.csv alone
            claim["stated"] = float(values[claim["kind"], claim["stated"]])
    return tuple(Claim(**claim | {"profiles": tuple(claim.get("profiles", Claim.profiles))}) for claim in claims)


CLAIMS = _claims()
