"""Records of runs: configs, histories, per-sample outcomes and analyses, never overwritten.

results/runs/<id>/ holds config.json, history.csv and env.json of the training, evals/ and analyses/. Each is written
once, whole or not at all, and carries the hash of its content. N is the number of test images of an evaluation.
"""

import functools
import io
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fsr import files
from fsr.config import Analysis, Evaluation, Run, analysis_id, run_id
from fsr.files import MissingRecord, UsageError, load_npz, save_json, save_npz, sha256
from fsr.store.trained import (
    config_of,
    damage,
    environment,
    finished,
    folder_of,
    history,
    id_of,
    is_trained,
    own,
    retrained_path,
    runs,
    save_config,
    save_history,
)

ENSEMBLE = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # right on clean and all four
RUN_COLUMNS = ("dataset", "backbone", "width", "seed", "epochs", "train_size")
COLUMNS = "run_id dataset backbone width method seed epochs train_size checkpoint attack attack_id images eps steps"
COLUMNS += " surrogate intervention n correct accuracy seconds commit"


@dataclass(frozen=True)
class Outcome:
    """Per-sample outcomes: test-set index (N,) int, correct (N,) bool under the attack, and the record beside them."""

    index: np.ndarray
    correct: np.ndarray
    record: dict

    @property
    def accuracy(self) -> float:
        """Fraction still classified correctly."""
        return float(self.correct.mean())


def eval_path(run: Run | str, evaluation: Evaluation) -> Path:
    """results/runs/<id>/evals/<checkpoint>-<attack id>.json; UsageError for names that are no file names."""
    name = f"{evaluation.checkpoint}-{evaluation.attack_id}.json"
    if len(name) > 200 or any(c in name for c in "/\\\0"):
        raise UsageError(f"{name!r} cannot name a record; give an attack of fsr.attacks.ATTACKS")
    return folder_of(run) / "evals" / name


def has_evaluation(run: Run | str, evaluation: Evaluation) -> bool:
    """Is this evaluation recorded?"""
    return eval_path(run, evaluation).exists()


def evaluations(run: Run | str) -> list[Evaluation]:
    """Every evaluation of a run that is recorded, in the order of their names."""
    return [Evaluation(**own(path, run)["evaluation"]) for path in sorted((folder_of(run) / "evals").glob("*.json"))]


def save_evaluation(run: Run, evaluation: Evaluation, index, correct, *, after: dict | None = None, **extra) -> Path:
    """Store outcomes (packed bits) and their record; an existing record is kept as it is.

    index: (N,) test-set positions, left out when they are the first N in order, else in a file of their own that all
    of a run's records on these images share; correct: (N,) bool; after: name of a part of the attack to the outcomes
    after it; extra: JSON-able fields (weights, images_sha256, seconds, hardware, flags ...).
    """
    path = eval_path(run, evaluation)
    if path.exists():
        return path
    index, correct = np.asarray(index, dtype=np.int32), np.asarray(correct, dtype=bool)
    parts = {f"after_{name}": np.packbits(np.asarray(flags, dtype=bool)) for name, flags in (after or {}).items()}
    record = {"run_id": run_id(run), "evaluation": asdict(evaluation), "n": len(correct), "correct": int(correct.sum())}
    record["outcomes_sha256"] = save_npz(path.with_suffix(".npz"), correct=np.packbits(correct), **parts)
    record["eps"] = run.eps if evaluation.eps is None else evaluation.eps
    if not np.array_equal(index, np.arange(len(index))):
        record["index_sha256"] = _save_index(path.parent, index)
    if after:
        record["after"] = {name: int(np.sum(flags)) for name, flags in after.items()}
    save_json(path, record | files.provenance() | extra)
    return path


def _save_index(folder: Path, index: np.ndarray) -> str:
    """Store (N,) positions once; returns the file's digest. They would be nine tenths of each outcome's bytes."""
    buffer = io.BytesIO()
    np.save(buffer, index.astype(np.min_scalar_type(int(index.max()))), allow_pickle=False)
    digest = sha256(buffer.getvalue())
    if not (path := folder / f"index-{digest[:12]}.npy").exists():
        files.write_bytes(path, buffer.getvalue())
    return digest


def load_evaluation(run: Run | str, evaluation: Evaluation) -> Outcome:
    """Outcomes of one evaluation; MissingRecord when it was not run, UsageError for another eps of the same name."""
    path = eval_path(run, evaluation)
    if not path.exists():
        raise MissingRecord(f"{path.stem} of {id_of(run)} was not run; `python -m fsr run-all` completes it")
    record = own(path, run)
    held = Evaluation(**record["evaluation"])
    if held != evaluation:
        raise UsageError(f"{path} holds {held}, and {evaluation} was asked for, whose file has the same name")
    arrays = load_npz(path.with_suffix(".npz"), record["outcomes_sha256"])
    if digest := record.get("index_sha256"):
        index = load_npz(path.parent / f"index-{digest[:12]}.npy", digest)["array"].astype(np.int32)
    else:  # older records hold their positions themselves
        index = arrays.get("index", np.arange(record["n"], dtype=np.int32))
    return Outcome(index, np.unpackbits(arrays["correct"], count=record["n"]).astype(bool), record)


def ensemble(run: Run | str, checkpoint: str, images: int | None = None, intervention: str | None = None) -> Outcome:
    """Right on clean and all four of the authors' attacks, per sample, on the images common to all five.

    MissingRecord when one of them was not run, or when they are of different weights or of different test images.
    """
    clean = Evaluation(attack="clean", checkpoint=checkpoint, images=images, intervention=intervention)
    parts = [load_evaluation(run, replace(clean, attack=attack)) for attack in ENSEMBLE]
    weights = {part.record.get("weights") for part in parts}
    sets = {part.record.get("images_sha256") for part in parts} - {None}  # older records name no images
    if len(weights) > 1 or len(sets) > 1:
        what = f"clean and the four attacks are of different {'weights' if len(weights) > 1 else 'test images'}"
        advice = "move the older records away, then `python -m fsr run-all` makes them again"
        raise MissingRecord(f"{id_of(run)}, {checkpoint}: {what}; {advice}")
    index = functools.reduce(np.intersect1d, [p.index for p in parts])
    orders = [np.argsort(part.index) for part in parts]
    flags = [p.correct[order][np.searchsorted(p.index[order], index)] for p, order in zip(parts, orders)]
    record = {name: parts[0].record.get(name) for name in ("commit", "eps", "weights", "images_sha256")}
    return Outcome(index, np.logical_and.reduce(flags), record | {"n": len(index)})


def _row(run: Run, evaluation: Evaluation, record: dict) -> dict:
    row = asdict(evaluation) | {name: getattr(run, name) for name in RUN_COLUMNS}
    row |= {"run_id": run_id(run), "method": run.label, "attack_id": evaluation.attack_id}
    row |= {name: record.get(name) for name in ("eps", "n", "correct", "seconds", "commit")}
    return row | {"accuracy": record["correct"] / record["n"]}


def _rows(run: Run) -> list[dict]:
    """A row per recorded evaluation of a run, and per checkpoint one of Ensemble where its five parts are there."""
    recorded = {e: own(eval_path(run, e), run) for e in evaluations(run)}
    rows = [_row(run, evaluation, record) for evaluation, record in recorded.items()]
    groups = {(e.checkpoint, e.images, e.intervention) for e in recorded if e.attack == "clean"}
    for checkpoint, images, intervention in sorted(groups, key=str):
        with suppress(MissingRecord):
            outcome = ensemble(run, checkpoint, images, intervention)
            part = Evaluation(attack="ensemble", checkpoint=checkpoint, images=images, intervention=intervention)
            rows.append(_row(run, part, outcome.record | {"correct": int(outcome.correct.sum())}))
    return rows


def metrics(chosen: Iterable[Run] | None = None, checkpoint: str | None = None) -> pd.DataFrame:
    """One tidy frame, a row per (run, checkpoint, attack), `ensemble` computed from outcomes; None: every run."""
    rows = [row for run in dict.fromkeys(runs() if chosen is None else chosen) for row in _rows(run)]
    frame = pd.DataFrame(rows, columns=COLUMNS.split())
    return frame if checkpoint is None else frame[frame["checkpoint"] == checkpoint].reset_index(drop=True)


def analysis_path(run: Run | str, analysis: Analysis) -> Path:
    """results/runs/<id>/analyses/<checkpoint>-<kind>-<id>.json."""
    return folder_of(run) / "analyses" / f"{analysis.checkpoint}-{analysis_id(analysis)}.json"


def has_analysis(run: Run | str, analysis: Analysis) -> bool:
    """Is this analysis recorded?"""
    return analysis_path(run, analysis).exists()


def save_analysis(run: Run, analysis: Analysis, record: dict, **arrays) -> Path:
    """Store an analysis: a JSON record, and arrays beside it when there are any; an existing one is kept."""
    path = analysis_path(run, analysis)
    if path.exists():
        return path
    record = {"run_id": run_id(run), "analysis": asdict(analysis), **record, **files.provenance()}
    if arrays:
        record["arrays_sha256"] = save_npz(path.with_suffix(".npz"), **arrays)
    save_json(path, record)
    return path


def load_analysis(run: Run | str, analysis: Analysis) -> tuple[dict, dict[str, np.ndarray]]:
    """Record and arrays ({} when there are none) of one analysis; MissingRecord when it was not run."""
    path = analysis_path(run, analysis)
    if not path.exists():
        raise MissingRecord(f"{path.stem} of {id_of(run)} was not run; `python -m fsr run-all` completes it")
    record = own(path, run)
    digest = record.get("arrays_sha256")
    return record, load_npz(path.with_suffix(".npz"), digest) if digest else {}
