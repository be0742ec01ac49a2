"""What the tables and figures say, in sentences that read the records."""

from fsr.prose.inside import attack_strength, audit, masks, overhead, progress, streams, training, verdict
from fsr.prose.robustness import blackbox, components, deactivation, settings, whitebox
from fsr.prose.text import Prose, budget

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
