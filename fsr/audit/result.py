"""What the audit reports."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.audit.context import Context, GroupResult


@dataclass(frozen=True)
class Audit:
    """Is the robustness real?  All tensors are (N,) bool on the CPU, in the order of the images: still right."""

    clean: Tensor
    authors_protocol: Tensor  # clean, FGSM, PGD-20, PGD-100 and C&W without restarts
    worst_case: Tensor  # under everything
    columns: dict[str, Tensor]  # the parts of the authors' protocol
    groups: dict[str, Tensor]  # clean images included, as in `attacks`
    attacks: dict[str, Tensor]  # by "group/attack"
    not_applicable: dict[str, str]  # group or "group/attack" to why it was left out
    indicators: dict[str, float]  # `indicators.NAMES` to shares
    flags: dict  # AutoAttack's own
    checks: dict  # see `assemble`
    binarization: dict[str, float]  # attack to the share of known adversarial images that it finds
    details: dict[str, dict]
    seconds: dict[str, float]
    randomised: bool
    budget: str

    def summary(self) -> dict[str, float]:
        """Accuracies as fractions: clean, authors_protocol, each group, worst_case."""
        rows = {"clean": self.clean, "authors_protocol": self.authors_protocol}
        rows |= {**self.groups, "worst_case": self.worst_case}
        return {name: float(kept.double().mean()) for name, kept in rows.items()}


def assemble(context: Context, results: dict[str, GroupResult], checks: dict, budget: str) -> Audit:
    """The report of all groups.

    checks, beside those given: `cw_above_pgd20` by more than 0.02 (logits of another scale), `pgd_above_autoattack` by
    more than 0.08 (honest networks show 0.02 to 0.04), and `changed`, what an attack did not leave as it was.
    """
    clean = context.clean.cpu()
    right = {name: result.correct.cpu() & clean for name, result in results.items() if result.correct is not None}
    columns, every = results["protocol"].attacks, dict[str, Tensor]()
    for name, result in results.items():
        every |= {f"{name}/{attack}": kept.cpu() for attack, kept in result.attacks.items() if name != "protocol"}
    accuracy = {name: float(kept.double().mean()) for name, kept in [*columns.items(), *right.items()]}
    checks = {
        "cw_above_pgd20": accuracy["cw"] - accuracy["pgd20"] > 0.02,
        "pgd_above_autoattack": accuracy["pgd100"] - accuracy["autoattack"] > 0.08,
        **checks,
        "changed": [left for result in results.values() for left in result.details.get("changed", [])],
    }
    missing = {
        f"{name}/{attack}" if attack else name: why
        for name, result in results.items()
        for attack, why in result.not_applicable.items()
    }
    return Audit(
        clean=clean,
        authors_protocol=right["protocol"],
        worst_case=torch.stack([clean, *right.values()]).all(dim=0),
        columns={name: kept.cpu() for name, kept in columns.items()},
        groups={name: kept for name, kept in right.items() if name != "protocol"},
        attacks=every,
        not_applicable=missing,
        indicators=results["indicators"].details,
        flags=results["autoattack"].details,
        checks=checks,
        binarization=results["binarization"].details.get("shares", {}),
        details={name: result.details for name, result in results.items() if result.details},
        seconds={name: result.seconds for name, result in results.items()},
        randomised=context.randomised,
        budget=budget,
    )
