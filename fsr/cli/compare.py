"""Two roots side by side: what was committed against what was computed again."""

import os
from pathlib import Path

import pandas as pd

from fsr import files, store
from fsr.config import Run
from fsr.files import UsageError

KEYS = ["run_id", "checkpoint", "attack_id"]


def compare(other: Path, runs: list[Run]) -> pd.DataFrame:
    """One row per evaluation in both roots: accuracy here, there, and the difference in points of percent.

    UsageError when the other root holds no evaluation of these runs.
    """
    here, before = store.metrics(runs), os.environ.get("FSR_ROOT")
    files.use(root=other)
    try:
        again = store.metrics(runs)
    finally:
        os.environ.pop("FSR_ROOT") if before is None else os.environ.update(FSR_ROOT=before)
    if again.empty:
        raise UsageError(f"{other} holds no results of this profile; type `make retrain`")
    both = here.merge(again, on=KEYS, suffixes=("", "_again"), validate="one_to_one")
    table = both[[*KEYS, "n", "accuracy", "accuracy_again"]]
    return table.assign(difference=100 * (table["accuracy_again"] - table["accuracy"]))


def summary(table: pd.DataFrame) -> str:
    """One line: how many values, how many equal, and the median, 95th percentile and largest difference."""
    if table.empty:
        return "nothing in common"
    equal, sizes = int((table["difference"] == 0).sum()), table["difference"].abs()
    spread = f"median {sizes.median():.2f}, 95 % within {sizes.quantile(0.95):.2f}, largest {sizes.max():.2f} points"
    return f"{len(table)} values: {equal} equal; differences: {spread}"
