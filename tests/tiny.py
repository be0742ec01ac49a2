"""A run small enough for tests: 96 real digits, a ResNet-10 of width 4, two epochs of three batches."""

from dataclasses import replace

from fsr.audit import BUDGETS
from fsr.config import FSRSpec, Run, for_dataset


def tiny_run(**changes) -> Run:
    """Plain AT unless changed; float32, so that the CPU repeats it bit for bit."""
    fields = {"train_size": 96, "test_size": 40, "holdout": 20, "width": 4, "blocks": (1, 1, 1, 1)}
    fields |= {"epochs": 2, "batch": 32, "precision": "float32"}
    return for_dataset("digits", **{**fields, **changes})


FSR_HERE = FSRSpec(at=("layer3",))
BRISK = replace(  # an audit far below `quick`, where only the plumbing is asked
    BUDGETS["quick"],
    steps=12,
    pgd_steps=10,
    targeted_steps=10,
    noisy_steps=3,
    draws=8,
    queries=100,
    pairs=6,
    estimated_steps=3,
    autoattack={"steps": 5, "queries": 50},
    rand={"steps": 2},
    binary=4,
    untested=("autoattack", "autoattack-rand", "nattack", "autoattack-ci", "pgd100-restarts", "pgd100", "apgd-dlr"),
)
