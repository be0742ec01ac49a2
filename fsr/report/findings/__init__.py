"""What the tables and figures say, in sentences that read the records."""

from fsr.report.findings.inside import attack_strength, audit, masks, overhead, progress, streams, training, verdict
from fsr.report.findings.robustness import blackbox, components, deactivation, settings, whitebox
from fsr.report.findings.text import Prose, budget

__all__ = [
    "Prose",
    "attack_strength",
    "audit",
    "blackbox",
    "budget",
    "components",
    "deactivation",
    "masks",
    "overhead",
    "progress",
    "settings",
    "streams",
    "training",
    "verdict",
    "whitebox",
]
