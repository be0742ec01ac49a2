"""Records as sentences need them; what was not run is None, never a number."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fsr import experiments, statistics, store
from fsr.config import Evaluation, Run
from fsr.experiments import Row
from fsr.files import MissingRecord
from fsr.store import Outcome
from fsr.tables import cells, labels
from fsr.tables.frame import Sources


def rows(profile: str, kind: str) -> tuple[Row, ...]:
    """The rows of a set; an unknown profile raises UsageError."""
    experiments.profile_of(profile)
    return experiments.ROWS[profile][kind]


def columns(profile: str) -> tuple[str, ...]:
    """The columns of T1, by the profile's own names: clean, fgsm, ..., ensemble, autoattack."""
    return (*experiments.COLUMNS, "ensemble", experiments.profile_of(profile).autoattack)


def report_checkpoint(profile: str) -> str:
    """The checkpoint that figures and sentences are about."""
    return experiments.profile_of(profile).report_checkpoint


def weights(profile: str) -> str:
    """The same in words: last weights, EMA weights."""
    return labels.WEIGHTS[report_checkpoint(profile)]


def images(profile: str, attack: str) -> int | None:
    """How many test images this profile gives an attack; None for all of them."""
    chosen = experiments.profile_of(profile)
    return chosen.autoattack_images if attack == chosen.autoattack else chosen.images


def outcome(
    profile: str, run: Run, attack: str, checkpoint: str | None = None, intervention: str | None = None
) -> Outcome | None:
    """Per-sample outcomes of a column on a run, or None when it was not run; by default of the looked-at weights."""
    chosen = Evaluation(
        attack=attack, checkpoint=checkpoint or report_checkpoint(profile), images=images(profile, attack)
    )
    return cells.outcome(run, cells.at(chosen, chosen.checkpoint, intervention))


def analysis(profile: str, run: Run, kind: str, checkpoint: str | None = None) -> tuple[dict, dict] | None:
    """Record and arrays of a run's planned analysis of this kind, or None when it was not run or does not apply."""
    for planned in experiments.analyses(profile, "all", run):
        wanted = planned.kind == kind and checkpoint in (None, planned.checkpoint)
        if wanted and store.has_analysis(run, planned):
            found = store.load_analysis(run, planned)
            return None if "not_applicable" in found[0] else found
    return None


def analysed(profile: str, row: Row, kind: str, checkpoint: str | None = None) -> list[dict]:
    """Records of one kind over the seeds of a row, those that were run."""
    found = [analysis(profile, run, kind, checkpoint) for run in row.runs]
    return [one[0] for one in found if one is not None]


@dataclass(frozen=True)
class Gain:
    """What FSR changes in one column, as fractions: the mean over seeds and images with its paired 95 % interval.

    seeds: the difference of each pair of seeds; images: how many both saw.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    images: int


def gain(
    profile: str, row: Row, attack: str, checkpoint: str | None = None, sources: Sources | None = None
) -> Gain | None:
    """The row against the same runs without FSR, the very number of T1; None unless one pair of seeds is complete."""
    evaluation = Evaluation(
        attack=attack, checkpoint=checkpoint or report_checkpoint(profile), images=images(profile, attack)
    )
    cell = cells.gain(row.runs, row.baseline, evaluation, sources=sources)
    if cell["value"] is None:
        return None
    return Gain(cell["value"], cell["low"], cell["high"], tuple(cell["per_seed"]), cell["n"])


def gain_rows(profile: str) -> list[Row]:
    """T1's rows with FSR, the ones that have a twin without it."""
    return [row for row in rows(profile, "whitebox") if row.baseline]


@dataclass(frozen=True)
class Accuracy:
    """A fraction with its 95 % Wilson interval and the number of images."""

    value: float
    low: float
    high: float
    n: int


def accuracy(found: Outcome | None) -> Accuracy | None:
    """Accuracy of outcomes, or None."""
    return None if found is None else counted(found)


def counted(found: Outcome) -> Accuracy:
    """Accuracy of outcomes, with its interval."""
    correct, n = int(found.correct.sum()), len(found.correct)
    low, high = statistics.wilson(correct, n)
    return Accuracy(correct / n, low, high, n)


def history(run: Run) -> pd.DataFrame | None:
    """A run's history, or None when it was not trained yet."""
    try:
        return store.history(run)
    except MissingRecord:
        return None


def curve_rows(profile: str) -> list[Row]:
    """T1's rows with FSR on the main data set and backbone: AT, then TRADES and MART where they are planned."""
    base = experiments.profile_of(profile).base
    return [
        row
        for row in gain_rows(profile)
        if (row.runs[0].dataset, row.runs[0].backbone) == (base.dataset, base.backbone)
    ]


def sweep(profile: str, run: Run, axis: str) -> list[tuple[float, Accuracy]]:
    """(eps or steps, accuracy) of the planned sweep, rising, only what was run; eps 0 is the clean accuracy."""
    points = []
    for evaluation in experiments.evaluations(profile, "strength", run):
        value = 0.0 if evaluation.attack == "clean" and axis == "eps" else getattr(evaluation, axis)
        if value is not None and store.has_evaluation(run, evaluation):
            points.append((float(value), counted(store.load_evaluation(run, evaluation))))
    return sorted(points, key=lambda point: point[0])


def mask_records(profile: str) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """Mask analyses of the temperature sweep, by rising temperature, one per temperature."""
    found = {}
    for row in rows(profile, "settings"):
        if row.axis == "tau" and (one := analysis(profile, row.runs[0], "masks")) is not None:
            found[one[0]["tau"]] = one
    if not found and (main := analysis(profile, experiments.main_pair(profile)[1], "masks")) is not None:
        found[main[0]["tau"]] = main
    return [found[tau] for tau in sorted(found)]


def mean_counts(records: list[dict]) -> dict[tuple[str, str], tuple[float, int]]:
    """(stream, probe) -> (correct, n) of one seed, the mean over the runs: all see the same images, as in T7."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for record in records:
        for row in record["rows"]:
            found.setdefault((row["stream"], row["probe"]), []).append((row["correct"], row["n"]))
    shares = {key: sum(correct / n for correct, n in counts) / len(counts) for key, counts in found.items()}
    least = {key: min(n for _, n in counts) for key, counts in found.items()}
    return {key: (least[key] * share, least[key]) for key, share in shares.items()}


CHECKPOINTS = {"last": "last epoch", "ema": "EMA weights"}  # the first that was recorded


def stream_records(profile: str) -> tuple[list[dict], str]:
    """The records of AT + FSR's streams, a seed each, and in words whose weights they are; none: ([], "")."""
    row = rows(profile, "streams")[0]
    for checkpoint, weights in CHECKPOINTS.items():
        records = analysed(profile, row, "streams", checkpoint)
        if records:
            return records, weights
    return [], ""
