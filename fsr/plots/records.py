"""What figures read from records: cells of tables, analyses, histories and the words that name a setting."""

from contextlib import suppress

import numpy as np
import pandas as pd

from fsr import experiments, store, tables
from fsr.config import Run
from fsr.files import MissingRecord
from fsr.tables import labels


def nothing(profile: str, what: str) -> MissingRecord:
    """The error of a figure that has nothing to draw."""
    return MissingRecord(f"no {what} recorded in {profile}; `python -m fsr run-all --profile {profile}` makes them")


def setting(profile: str, checkpoint: str | None = None, *, network: bool = True) -> str:
    """`CIFAR-10, ResNet-18, 40 epochs, EMA weights`: data set, network, epochs and weights (the reported) in words."""
    chosen = experiments.profile_of(profile)
    parts = [labels.dataset(chosen.base.dataset), labels.network(chosen.base)][: 2 if network else 1]
    return ", ".join([*parts, f"{chosen.base.epochs} epochs", labels.WEIGHTS[checkpoint or chosen.report_checkpoint]])


def frame(profile: str, name: str, **equal) -> pd.DataFrame:
    """The recorded cells of a table whose columns equal the given values."""
    cells = tables.table(profile, name)
    for column, value in equal.items():
        cells = cells[cells[column] == value]
    return cells[cells["accuracy" if name == "T7" else "value"].notna()]


def analysis(profile: str, run: Run, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Record and arrays of the planned analysis of the EMA weights; MissingRecord when there is none."""
    for planned in experiments.analyses(profile, "all", run):
        if planned.kind == kind and planned.checkpoint == "ema" and store.has_analysis(run, planned):
            record, arrays = store.load_analysis(run, planned)
            if "not_applicable" not in record:
                return record, arrays
    raise nothing(profile, f"{kind} of {run.label}")


def histories(runs) -> pd.DataFrame:
    """Histories of the trained runs, one row per epoch, with the run's method in words and its seed; may be empty."""
    collected = [pd.DataFrame()]
    for run in runs:
        with suppress(MissingRecord):
            collected.append(store.history(run).assign(method=labels.method(run.label), seed=run.seed))
    return pd.concat(collected, ignore_index=True)
