"""What the audit reports, and the plain form in which a finished group is kept."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Findings:
    """One group's outcome. attacks: name to (N,) bool, right on clean images and under the attack.

    In the groups `restarts` and `unmasked` an attack gets what the ones before it left: its outcome includes theirs.
    details: JSON-able facts; not_applicable: attack to the reason why it was left out; seconds: filled by the caller.
    """

    attacks: dict[str, Tensor] = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def correct(self) -> Tensor | None:
        """(N,) bool, right under every attack of the group; None where it has none."""
        return torch.stack(list(self.attacks.values())).all(dim=0) if self.attacks else None

    def plain(self) -> dict:
        """Dicts, numbers and numpy arrays only: `attacks` fits an npz file, the rest JSON."""
        return {
            "attacks": {name: kept.cpu().numpy() for name, kept in self.attacks.items()},
            "details": self.details,
            "not_applicable": self.not_applicable,
            "seconds": self.seconds,
        }

    @staticmethod
    def from_plain(record: dict) -> "Findings":
        """What `plain` gave; the attacks' values may be any sequences of booleans."""
        attacks = {name: torch.from_numpy(np.asarray(kept, dtype=bool)) for name, kept in record["attacks"].items()}
        return Findings(attacks, record["details"], record["not_applicable"], float(record["seconds"]))


@dataclass(frozen=True)
class Audit:
    """Is the robustness real?  All tensors are (N,) bool on the CPU, in the order of the images: still right.

    authors_protocol: clean, FGSM, PGD-20, PGD-100 and C&W without restarts, its parts in
    `columns`. worst_case: under everything. groups: group to its own worst case, clean images included; attacks:
    "group/attack" to its outcome (with those before it in `restarts` and `unmasked`). not_applicable: group or
    "group/attack" to the reason. indicators: six fractions of the images that are right when clean (see
    `fsr.audit.indicators`). flags: AutoAttack's. seconds: per group.
    """

    clean: Tensor
    authors_protocol: Tensor
    worst_case: Tensor
    columns: dict[str, Tensor]
    groups: dict[str, Tensor]
    attacks: dict[str, Tensor]
    not_applicable: dict[str, str]
    indicators: dict[str, float]
    flags: dict
    details: dict[str, dict]
    seconds: dict[str, float]
    randomised: bool
    budget: str

    def summary(self) -> dict[str, float]:
        """Accuracies as fractions: clean, authors_protocol, each group, worst_case."""
        rows = {
            "clean": self.clean,
            "authors_protocol": self.authors_protocol,
            **self.groups,
            "worst_case": self.worst_case,
        }
        return {name: float(kept.double().mean()) for name, kept in rows.items()}


def assemble(clean: Tensor, found: dict[str, Findings], *, protocol: str, randomised: bool, budget: str) -> Audit:
    """The report of all groups; protocol: the name of the group that holds the authors' columns."""
    clean = clean.cpu()
    kept = {group: f.correct.cpu() & clean for group, f in found.items() if f.correct is not None}
    missing = {
        f"{group}/{attack}" if attack else group: why
        for group, f in found.items()
        for attack, why in f.not_applicable.items()
    }
    attacks = {f"{group}/{name}": part.cpu() for group, f in found.items() for name, part in f.attacks.items()}
    worst = torch.stack([clean, *kept.values()]).all(dim=0)
    return Audit(
        clean=clean,
        authors_protocol=kept[protocol],
        worst_case=worst,
        columns={name: part.cpu() for name, part in found[protocol].attacks.items()},
        groups={group: part for group, part in kept.items() if group != protocol},
        attacks={name: part for name, part in attacks.items() if not name.startswith(f"{protocol}/")},
        not_applicable=missing,
        indicators=found["indicators"].details,
        flags=found["autoattack"].details,
        details={group: f.details for group, f in found.items() if f.details},
        seconds={group: f.seconds for group, f in found.items()},
        randomised=randomised,
        budget=budget,
    )
