"""What figures read from records: paired differences, analyses, histories and the words that name a setting."""

from dataclasses import replace

import numpy as np
import pandas as pd

from fsr import experiments, statistics, store, tables
from fsr.config import Evaluation, Run
from fsr.files import MissingRecord
from fsr.tables import labels


def nothing(profile: str, what: str) -> MissingRecord:
    """The error of a figure that has nothing to draw."""
    return MissingRecord(f"no {what} recorded in {profile}; `python -m fsr run-all --profile {profile}` makes them")


def report_checkpoint(profile: str) -> str:
    """last, best or ema: the weights that a profile reports."""
    return experiments.profile_of(profile).report_checkpoint


def setting(profile: str, checkpoint: str | None = None, *, network: bool = True, weights: bool = True) -> str:
    """`CIFAR-10, ResNet-18, 40 epochs, EMA weights`: data set, network, epochs and weights in words."""
    run = experiments.profile_of(profile).base
    parts = [labels.dataset(run.dataset), labels.network(run) if network else "", f"{run.epochs} epochs"]
    parts += [labels.WEIGHTS[checkpoint or report_checkpoint(profile)]] if weights else []
    return ", ".join(filter(None, parts))


def frame(profile: str, name: str, **equal) -> pd.DataFrame:
    """The recorded cells of a table whose columns equal the given values."""
    cells = tables.table(profile, name)
    for column, value in equal.items():
        cells = cells[cells[column] == value]
    return cells[cells["accuracy" if name == "T7" else "value"].notna()]


def correct(run: Run, evaluation: Evaluation) -> pd.Series:
    """Outcomes by test-set position, bool; `ensemble` from its parts. MissingRecord when one was not run."""
    attacks = store.ENSEMBLE if evaluation.attack == "ensemble" else (evaluation.attack,)
    parts = [store.load_evaluation(run, replace(evaluation, attack=attack)) for attack in attacks]
    if len({part.record.get("weights") for part in parts}) > 1:
        raise MissingRecord(f"the evaluations of {run.label} are of different weights")
    columns = [pd.Series(part.correct, index=part.index) for part in parts]
    return pd.concat(columns, axis=1, join="inner").all(axis=1)


def accuracy(run: Run, evaluation: Evaluation) -> dict:
    """value, low, high (Wilson's 95 % interval) and n of one network; MissingRecord when it was not run."""
    right = correct(run, evaluation)
    low, high = statistics.wilson(int(right.sum()), len(right))
    return {"value": float(right.mean()), "low": low, "high": high, "n": len(right)}


def paired(runs, baseline, evaluation: Evaluation) -> dict:
    """Accuracy of runs minus baseline, seed by seed on the same images: value, low, high (fractions), n, seeds.

    The interval is a paired bootstrap over images of the mean over seeds. MissingRecord without a complete pair.
    """
    pairs, error = [], MissingRecord("no pair of seeds")
    for run in runs:
        for other in (other for other in baseline if other.seed == run.seed):
            try:
                both = [correct(one, evaluation) for one in (other, run)]
                pairs.append(pd.concat(both, axis=1, join="inner").sort_index())
            except MissingRecord as missing:
                error = missing
    if not pairs:
        raise error
    before, after = np.mean([pair.to_numpy(dtype=float) for pair in pairs], axis=0).T
    low, high = statistics.paired_bootstrap(before, after)
    return {"value": float((after - before).mean()), "low": low, "high": high, "n": len(after), "seeds": len(pairs)}


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
    collected = []
    for run in runs:
        try:
            collected.append(store.history(run).assign(method=labels.method(run.label), seed=run.seed))
        except MissingRecord:
            continue
    return pd.concat(collected, ignore_index=True) if collected else pd.DataFrame()
