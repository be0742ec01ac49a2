"""A run small enough for tests: that of the profile ci on half of its images, 96 real digits."""

from dataclasses import replace

from fsr.audit import BUDGETS
from fsr.config import FSRSpec, Run
from fsr.experiments import PROFILES


def tiny_run(**changes) -> Run:
    """Plain AT unless changed; float32, so that the CPU repeats it bit for bit."""
    return replace(PROFILES["ci"].base, **{"train_size": 96, "test_size": 40, "holdout": 20, **changes})


FSR_HERE = FSRSpec(at=("layer3",))
FEW = {"steps": 12, "pgd_steps": 10, "targeted_steps": 10, "noisy_steps": 3, "draws": 8, "queries": 100, "pairs": 6}
FEW |= {"estimated_steps": 3, "autoattack": {"steps": 5, "queries": 50}, "rand": {"steps": 2}, "binary": 4}
UNTESTED = ("autoattack", "autoattack-rand", "nattack", "autoattack-ci", "pgd100-restarts", "pgd100", "apgd-dlr")
BRISK = {**BUDGETS["quick"], **FEW, "untested": UNTESTED}  # an audit far below it, where only the plumbing is asked
