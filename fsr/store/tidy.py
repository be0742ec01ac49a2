"""All outcomes as one tidy frame, and the Ensemble that is computed from them."""

import functools
from dataclasses import asdict

import numpy as np
import pandas as pd

from fsr import files
from fsr.config import Evaluation, Run, run_id
from fsr.files import MissingRecord, load_json
from fsr.store.outcomes import Outcome, load_evaluation, same_weights
from fsr.store.trained import id_of, own, runs

ENSEMBLE = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # right on clean and all four
COLUMNS = [
    "run_id",
    "dataset",
    "backbone",
    "width",
    "method",
    "seed",
    "epochs",
    "train_size",
    "checkpoint",
    "attack",
    "attack_id",
    "images",
    "eps",
    "steps",
    "surrogate",
    "intervention",
    "n",
    "correct",
    "accuracy",
    "seconds",
    "commit",
]


def _row(run: Run, record: dict) -> dict:
    evaluation = Evaluation(**record["evaluation"])
    return asdict(evaluation) | {
        "run_id": run_id(run), "dataset": run.dataset, "backbone": run.backbone, "width": run.width,
        "method": run.label, "seed": run.seed, "epochs": run.epochs, "train_size": run.train_size,
        "attack_id": evaluation.attack_id, "eps": record["eps"], "n": record["n"], "correct": record["correct"],
        "accuracy": record["correct"] / record["n"], "seconds": record.get("seconds"), "commit": record.get("commit"),
    }  # fmt: skip


def ensemble(run: Run | str, checkpoint: str, images: int | None = None, intervention: str | None = None) -> Outcome:
    """Right on clean and all four of the authors' attacks, per sample, on the images common to all five.

    MissingRecord when one of them was not run, or when they were not taken from the same weights.
    """
    parts = [
        load_evaluation(run, Evaluation(attack=a, checkpoint=checkpoint, images=images, intervention=intervention))
        for a in ENSEMBLE
    ]
    if not same_weights(parts):
        raise MissingRecord(
            f"{id_of(run)}, {checkpoint}: the parts of Ensemble are of different trainings of the run; move the older "
            "ones away and `python -m fsr run-all` makes them again"
        )
    index = functools.reduce(np.intersect1d, [p.index for p in parts])
    flags = []
    for part in parts:
        order = np.argsort(part.index)
        flags.append(part.correct[order][np.searchsorted(part.index[order], index)])
    record = {"n": len(index), "commit": parts[0].record.get("commit"), "eps": parts[0].record["eps"]}
    return Outcome(index, np.asarray(np.stack(flags).all(axis=0)), record)


def _ensemble_rows(run: Run, rows: list[dict]) -> list[dict]:
    out = []
    groups = {(r["checkpoint"], r["images"], r["intervention"]) for r in rows if r["attack"] == "clean"}
    for checkpoint, images, intervention in sorted(groups, key=str):
        try:
            both = ensemble(run, checkpoint, images, intervention)
        except MissingRecord:
            continue
        evaluation = Evaluation(attack="ensemble", checkpoint=checkpoint, images=images, intervention=intervention)
        record = {"evaluation": asdict(evaluation), "n": len(both.correct), "correct": int(both.correct.sum())}
        out.append(_row(run, record | {"eps": both.record["eps"], "commit": both.record["commit"]}))
    return out


def metrics(chosen: list[Run] | tuple[Run, ...] | None = None, checkpoint: str | None = None) -> pd.DataFrame:
    """One tidy frame, a row per (run, checkpoint, attack), `ensemble` computed from outcomes; None: every run."""
    rows = []
    for run in dict.fromkeys(runs() if chosen is None else chosen):
        found = sorted((files.run_dir(run_id(run)) / "evals").glob("*.json"))
        mine = [_row(run, own(load_json(path), run, path)) for path in found]
        rows += mine + _ensemble_rows(run, mine)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame if checkpoint is None else frame[frame["checkpoint"] == checkpoint].reset_index(drop=True)
