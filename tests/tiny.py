"""A run small enough for tests: 96 real digits, a ResNet-10 of width 4, two epochs of three batches."""

from fsr.config import FSRSpec, Run, for_dataset


def tiny_run(**changes) -> Run:
    """Plain AT unless changed; float32, so that the CPU repeats it bit for bit."""
    fields = {"train_size": 96, "test_size": 40, "holdout": 20, "width": 4, "blocks": (1, 1, 1, 1)}
    fields |= {"epochs": 2, "batch": 32, "precision": "float32"}
    return for_dataset("digits", **{**fields, **changes})


FSR_HERE = FSRSpec(at=("layer3",))
