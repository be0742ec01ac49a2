"""Records of runs: configs, histories, per-sample outcomes and analyses, never overwritten."""

import csv
import functools
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fsr import paths
from fsr.config import Analysis, Evaluation, Run, analysis_id, content_id, run_from_dict, run_id, to_dict
from fsr.errors import CorruptFile, MissingRecord, UsageError
from fsr.files import load_json, load_npz, npz_bytes, provenance, save_json, sha256, write_bytes
from fsr.words import did_you_mean

ENSEMBLE = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # right on clean and all four


def id_of(run: Run | str) -> str:
    """A run's id, from the run or from itself."""
    return run if isinstance(run, str) else run_id(run)


def save_config(run: Run) -> None:
    """config.json of a run, once; an existing one must be the same run."""
    path = paths.run_dir(run_id(run)) / "config.json"
    if not path.exists():
        save_json(path, {"run": to_dict(run), "run_id": run_id(run)})
    elif content_id(config_of(run_id(run))) != content_id(run):
        raise CorruptFile(f"{path} describes another run than its folder's name; move the folder away")


def config_of(name: str) -> Run:
    """The Run that a run id names; UsageError when there is none, CorruptFile when its record is not its own."""
    path = paths.run_dir(name) / "config.json"
    if not path.exists():
        folder = paths.results() / "runs"
        meant = did_you_mean(name, (p.parent.name for p in folder.glob("*/config.json")))
        raise UsageError(f"no run {name!r} in {folder}{meant}; `python -m fsr status` lists them")
    record = load_json(path)
    if record.get("run_id") != name:
        raise CorruptFile(f"{path} describes another run than its folder's name; move the folder away")
    return run_from_dict(record["run"])


def runs() -> list[Run]:
    """Every run with a config.json, sorted by id."""
    return [config_of(p.parent.name) for p in sorted((paths.results() / "runs").glob("*/config.json"))]


def is_trained(run: Run | str) -> bool:
    """Did the training finish?  The weights may be gone: a record is valid without them."""
    return (paths.run_dir(id_of(run)) / "env.json").exists()


def _own(record: dict, run: Run | str, path: Path) -> dict:
    """The record, if it is this run's; CorruptFile for one that was copied or renamed from another."""
    if record.get("run_id") != id_of(run):
        raise CorruptFile(f"{path} is a record of {record.get('run_id')}; move it away to compute this run's own")
    return record


def environment(run: Run | str) -> dict:
    """env.json: commit, versions, hardware, start, seconds, checkpoint hashes."""
    path = paths.run_dir(id_of(run)) / "env.json"
    return _own(load_json(path), run, path)


def damage(run: Run | str) -> str:
    """What is wrong with a run's config.json or env.json, in one line; "" when nothing is, or there is none."""
    name = id_of(run)
    try:
        if (paths.run_dir(name) / "config.json").exists():
            config_of(name)
        if is_trained(name):
            environment(name)
    except (CorruptFile, UsageError) as error:
        return str(error)
    return ""


def finished() -> list[tuple[Run, dict]]:
    """Every finished run and its env.json, sorted by id; damaged ones are left out (`status` names them)."""
    names = [p.parent.name for p in sorted((paths.results() / "runs").glob("*/env.json"))]
    return [(config_of(name), environment(name)) for name in names if not damage(name)]


def _column(name: str) -> tuple[int, str]:
    groups = ("epoch", "seconds", "lr", "train_", "held_", "ema_")
    return next((i for i, group in enumerate(groups) if name.startswith(group)), len(groups)), name


def save_history(run: Run, rows: list[dict]) -> bytes:
    """history.csv, one row per epoch; returns its bytes.  The columns' order is fixed: a resumed run's is the same."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=sorted(rows[0], key=_column), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    data = text.getvalue().encode()
    write_bytes(paths.run_dir(run_id(run)) / "history.csv", data)
    return data


def history(run: Run | str) -> pd.DataFrame:
    """history.csv as a frame; of a finished run it must match the hash in env.json."""
    folder = paths.run_dir(id_of(run))
    path = folder / "history.csv"
    if not path.exists():
        raise MissingRecord(f"{id_of(run)} has no history.csv; `python -m fsr run-all` trains what is missing")
    data = path.read_bytes()
    if is_trained(run) and environment(run)["history_sha256"] != sha256(data):
        raise CorruptFile(f"{path} is damaged (its bytes do not match env.json)")
    return pd.read_csv(io.BytesIO(data))


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
    return paths.run_dir(id_of(run)) / "evals" / name


def has_eval(run: Run | str, evaluation: Evaluation) -> bool:
    """Is this evaluation recorded?"""
    return eval_path(run, evaluation).exists()


def save_eval(run: Run, evaluation: Evaluation, index, correct, *, after: dict | None = None, **extra) -> Path:
    """Store outcomes (packed bits) and their record; an existing record is kept as it is.

    index: (N,) test-set positions; correct: (N,) bool; after: name of a part of the attack to the outcomes after it;
    extra: JSON-able fields (seconds, device, flags ...).
    """
    path = eval_path(run, evaluation)
    if path.exists():
        return path
    index, correct = np.asarray(index, dtype=np.int32), np.asarray(correct, dtype=bool)
    parts = {f"after_{name}": np.packbits(np.asarray(flags, dtype=bool)) for name, flags in (after or {}).items()}
    data = npz_bytes(index=index, correct=np.packbits(correct), **parts)
    write_bytes(path.with_suffix(".npz"), data)
    record = {"run_id": run_id(run), "evaluation": asdict(evaluation), "n": len(correct), "correct": int(correct.sum())}
    record |= {"outcomes_sha256": sha256(data), "eps": run.eps if evaluation.eps is None else evaluation.eps}
    if after:
        record["after"] = {name: int(np.sum(flags)) for name, flags in after.items()}
    save_json(path, record | provenance() | extra)
    return path


def load_eval(run: Run | str, evaluation: Evaluation) -> Outcome:
    """Outcomes of one evaluation, checked against their hash; MissingRecord when it was not run.

    UsageError when the file holds another evaluation: names round eps to five digits.
    """
    path = eval_path(run, evaluation)
    if not path.exists():
        raise MissingRecord(f"{path.stem} of {id_of(run)} was not run; `python -m fsr run-all` completes it")
    outcome = read_outcome(path)
    _own(outcome.record, run, path)
    held = Evaluation(**outcome.record["evaluation"])
    if held != evaluation:
        raise UsageError(f"{path} holds {held}, and {evaluation} was asked for, whose file has the same name")
    return outcome


def read_outcome(path: Path) -> Outcome:
    """Outcomes beside a record's json file."""
    record = load_json(path)
    arrays = load_npz(path.with_suffix(".npz"), record["outcomes_sha256"])
    return Outcome(arrays["index"], np.unpackbits(arrays["correct"], count=record["n"]).astype(bool), record)


def analysis_path(run: Run | str, analysis: Analysis) -> Path:
    """results/runs/<id>/analyses/<checkpoint>-<kind>-<id>.json."""
    return paths.run_dir(id_of(run)) / "analyses" / f"{analysis.checkpoint}-{analysis_id(analysis)}.json"


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
    record = _own(load_json(path), run, path)
    digest = record.get("arrays_sha256")
    return record, load_npz(path.with_suffix(".npz"), digest) if digest else {}


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


def same_weights(outcomes: Iterable[Outcome]) -> bool:
    """Were these outcomes taken from one network?  A run that was trained again elsewhere is another one."""
    return len({outcome.record.get("weights") for outcome in outcomes}) == 1


def ensemble(run: Run | str, checkpoint: str, images: int | None = None, intervention: str | None = None) -> Outcome:
    """Right on clean and all four of the authors' attacks, per sample, on the images common to all five.

    MissingRecord when one of them was not run, or when they were not taken from the same weights.
    """
    parts = [
        load_eval(run, Evaluation(attack=a, checkpoint=checkpoint, images=images, intervention=intervention))
        for a in ENSEMBLE
    ]
    if not same_weights(parts):
        raise MissingRecord(f"{id_of(run)}, {checkpoint}: the parts of Ensemble are of different trainings of the run")
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
        found = sorted((paths.run_dir(run_id(run)) / "evals").glob("*.json"))
        mine = [_row(run, _own(load_json(path), run, path)) for path in found]
        rows += mine + _ensemble_rows(run, mine)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame if checkpoint is None else frame[frame["checkpoint"] == checkpoint].reset_index(drop=True)
