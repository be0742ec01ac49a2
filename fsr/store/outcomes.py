"""Per-sample outcomes and analyses of a run: whole or absent, hashed, never overwritten."""

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fsr import files
from fsr.config import Analysis, Evaluation, Run, analysis_id, run_id
from fsr.files import (
    MissingRecord,
    UsageError,
    load_json,
    load_npz,
    npz_bytes,
    provenance,
    save_json,
    sha256,
    write_bytes,
)
from fsr.store.trained import id_of, own


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
    return files.run_dir(id_of(run)) / "evals" / name


def has_evaluation(run: Run | str, evaluation: Evaluation) -> bool:
    """Is this evaluation recorded?"""
    return eval_path(run, evaluation).exists()


def save_evaluation(run: Run, evaluation: Evaluation, index, correct, *, after: dict | None = None, **extra) -> Path:
    """Store outcomes (packed bits) and their record; an existing record is kept as it is.

    index: (N,) test-set positions, left out when they are the first N in order, else in a file of their own that all
    of a run's records on these images share; correct: (N,) bool; after: name of a part of the attack to the outcomes
    after it; extra: JSON-able fields (seconds, device, flags ...).
    """
    path = eval_path(run, evaluation)
    if path.exists():
        return path
    index, correct = np.asarray(index, dtype=np.int32), np.asarray(correct, dtype=bool)
    parts = {f"after_{name}": np.packbits(np.asarray(flags, dtype=bool)) for name, flags in (after or {}).items()}
    data = npz_bytes(correct=np.packbits(correct), **parts)
    write_bytes(path.with_suffix(".npz"), data)
    record = {"run_id": run_id(run), "evaluation": asdict(evaluation), "n": len(correct), "correct": int(correct.sum())}
    record |= {"outcomes_sha256": sha256(data), "eps": run.eps if evaluation.eps is None else evaluation.eps}
    if not np.array_equal(index, np.arange(len(index))):
        record["index_sha256"] = _keep_index(path.parent, index)
    if after:
        record["after"] = {name: int(np.sum(flags)) for name, flags in after.items()}
    save_json(path, record | provenance() | extra)
    return path


def _index_path(folder: Path, digest: str) -> Path:
    return folder / f"index-{digest[:12]}.npy"


def _keep_index(folder: Path, index: np.ndarray) -> str:
    """Store (N,) positions once; returns the file's digest. They would be nine tenths of each outcome's bytes."""
    buffer = io.BytesIO()
    np.save(buffer, index.astype(np.min_scalar_type(int(index.max()))), allow_pickle=False)
    data = buffer.getvalue()
    digest = sha256(data)
    if not _index_path(folder, digest).exists():
        write_bytes(_index_path(folder, digest), data)
    return digest


def evaluations(run: Run | str) -> list[Evaluation]:
    """Every evaluation of a run that is recorded, in the order of their names."""
    found = sorted((files.run_dir(id_of(run)) / "evals").glob("*.json"))
    return [Evaluation(**own(load_json(path), run, path)["evaluation"]) for path in found]


def load_evaluation(run: Run | str, evaluation: Evaluation) -> Outcome:
    """Outcomes of one evaluation, checked against their hash; MissingRecord when it was not run.

    UsageError when the file holds another evaluation: names round eps to five digits.
    """
    path = eval_path(run, evaluation)
    if not path.exists():
        raise MissingRecord(f"{path.stem} of {id_of(run)} was not run; `python -m fsr run-all` completes it")
    outcome = read_outcome(path)
    own(outcome.record, run, path)
    held = Evaluation(**outcome.record["evaluation"])
    if held != evaluation:
        raise UsageError(f"{path} holds {held}, and {evaluation} was asked for, whose file has the same name")
    return outcome


def read_outcome(path: Path) -> Outcome:
    """Outcomes beside a record's json file."""
    record = load_json(path)
    arrays = load_npz(path.with_suffix(".npz"), record["outcomes_sha256"])
    if digest := record.get("index_sha256"):
        index = load_npz(_index_path(path.parent, digest), digest)["array"].astype(np.int32)
    else:  # older records hold their positions themselves
        index = arrays.get("index", np.arange(record["n"], dtype=np.int32))
    return Outcome(index, np.unpackbits(arrays["correct"], count=record["n"]).astype(bool), record)


def analysis_path(run: Run | str, analysis: Analysis) -> Path:
    """results/runs/<id>/analyses/<checkpoint>-<kind>-<id>.json."""
    return files.run_dir(id_of(run)) / "analyses" / f"{analysis.checkpoint}-{analysis_id(analysis)}.json"


def has_analysis(run: Run | str, analysis: Analysis) -> bool:
    """Is this analysis recorded?"""
    return analysis_path(run, analysis).exists()


def save_analysis(run: Run, analysis: Analysis, record: dict, **arrays) -> Path:
    """Store an analysis: a JSON record, and arrays beside it when there are any; an existing one is kept."""
    path = analysis_path(run, analysis)
    if path.exists():
        return path
    record = {"run_id": run_id(run), "analysis": asdict(analysis), **record, **provenance()}
    if arrays:
        data = npz_bytes(**arrays)
        write_bytes(path.with_suffix(".npz"), data)
        record["arrays_sha256"] = sha256(data)
    save_json(path, record)
    return path


def load_analysis(run: Run | str, analysis: Analysis) -> tuple[dict, dict[str, np.ndarray]]:
    """Record and arrays ({} when there are none) of one analysis; MissingRecord when it was not run."""
    path = analysis_path(run, analysis)
    if not path.exists():
        raise MissingRecord(f"{path.stem} of {id_of(run)} was not run; `python -m fsr run-all` completes it")
    record = own(load_json(path), run, path)
    digest = record.get("arrays_sha256")
    return record, load_npz(path.with_suffix(".npz"), digest) if digest else {}


def same_weights(outcomes: Iterable[Outcome]) -> bool:
    """Were these outcomes taken from one network?  A run that was trained again elsewhere is another one."""
    return len({outcome.record.get("weights") for outcome in outcomes}) == 1
