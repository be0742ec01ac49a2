"""Records of runs: configs, histories, outcomes of N test images, analyses; each with its hash, never overwritten."""

import io
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from fsr import files
from fsr.config import Analysis, Evaluation, Run, content_id, run_from_dict, run_id, to_dict
from fsr.files import CorruptFile, MissingRecord, UsageError, load_json, load_npz, save_json, sha256

# Per-sample outcomes: test-set index (N,) int, correct (N,) bool under the attack, and the record beside them.
Outcome = namedtuple("Outcome", "index correct record")


def _own(name: str, path: Path) -> dict:
    record = load_json(path)
    if record.get("run_id") != name:
        raise CorruptFile(f"{path} is a record of {record.get('run_id')}; move it away to compute this run's own")
    return record


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """CorruptFile for a record whose content is not what this version writes."""
    try:
        yield
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, UsageError) as error:
        text = f"not what its name says ({type(error).__name__}: {error!s:.150}); move it away to compute it again"
        raise CorruptFile(f"{path} is {text}") from None


def save_config(run: Run) -> None:
    """config.json of a run, once; CorruptFile for a damaged one."""
    path = files.run_dir(run_id(run)) / "config.json"
    if not path.exists():
        save_json(path, {"run": to_dict(run), "run_id": run_id(run)})
    config_of(run_id(run))


def config_of(name: str) -> Run:
    """The Run that a run id names; UsageError when there is none, CorruptFile when its record is not its own."""
    path = files.run_dir(name) / "config.json"
    if not path.exists():
        raise UsageError(f"no run {name!r} in {path.parent.parent}; `python -m fsr status` lists them")
    with _sound(path):
        if run_id(run := run_from_dict(_own(name, path)["run"])) != name:
            raise ValueError(f"the config of {run_id(run)}")
    return run


def runs() -> list[Run]:
    """Every run with a config.json, sorted by id."""
    return [config_of(p.parent.name) for p in sorted((files.results() / "runs").glob("*/config.json"))]


def state() -> tuple:
    """The root, and when each folder of records last changed: while it is the same, so is what records say."""
    folders = [run / part for run in sorted((files.results() / "runs").glob("*")) for part in ("", "evals", "analyses")]
    return files.root(), *((str(folder), folder.stat().st_mtime_ns) for folder in folders if folder.exists())


def is_trained(run: Run) -> bool:
    """Did the training finish?  The weights may be gone: a record is valid without them."""
    return (files.run_dir(run_id(run)) / "env.json").exists()


def environment(run: Run) -> dict:
    """env.json: commit, versions, hardware, start, seconds, checkpoint hashes."""
    return _own(run_id(run), files.run_dir(run_id(run)) / "env.json")


def save_history(run: Run, rows: list[dict]) -> bytes:
    """history.csv, one row per epoch; returns its bytes.  The columns' order is fixed: a resumed run's is the same."""
    groups = ("epoch", "seconds", "lr", "train_", "held_", "ema_", "")
    names = sorted(rows[0], key=lambda name: ([name.startswith(group) for group in groups].index(True), name))
    text = pd.DataFrame(rows)[names].to_csv(index=False, float_format="%.6g", na_rep="nan", lineterminator="\n")
    files.write_bytes(files.run_dir(run_id(run)) / "history.csv", data := text.encode())
    return data


def history(run: Run) -> pd.DataFrame:
    """history.csv as a frame; of a run that was trained here it must match the hash in env.json."""
    path = files.run_dir(run_id(run)) / "history.csv"
    data = files.read_bytes(path, environment(run).get("history_sha256") if is_trained(run) else None)
    with _sound(path):
        return pd.read_csv(io.BytesIO(data))


def record_path(run: Run, part: Evaluation | Analysis) -> Path:
    """<run's folder>/evals/<checkpoint>-<attack id>.json, or analyses/<checkpoint>-<kind>-<id>.json; UsageError."""
    name = part.attack_id if isinstance(part, Evaluation) else f"{part.kind}-{content_id(part)[:6]}"
    name = f"{part.checkpoint}-{name}.json"
    if len(name) > 200 or any(c in name for c in "/\\\0"):
        raise UsageError(f"{name!r} cannot name a record; give an attack of fsr.attacks.ATTACKS")
    return files.run_dir(run_id(run)) / ("evals" if isinstance(part, Evaluation) else "analyses") / name


def has_record(run: Run, part: Evaluation | Analysis) -> bool:
    """Is this evaluation or analysis recorded?"""
    return record_path(run, part).exists()


def _evaluation(run: Run, path: Path) -> tuple[Evaluation, dict]:
    record = _own(run_id(run), path)
    with _sound(path):
        held = Evaluation(**record["evaluation"])
        if record_path(run, held).name != path.name or not 0 <= record["correct"] <= record["n"]:
            raise ValueError(f"{record['correct']} of {record['n']}, {held}")
    return held, record


def evaluations(run: Run) -> dict[Evaluation, dict]:
    """Every recorded evaluation of a run and its record, in the order of their names."""
    return dict(_evaluation(run, path) for path in sorted((files.run_dir(run_id(run)) / "evals").glob("[!.]*.json")))


def _save(path: Path, run: Run, digest: str, record: dict, **arrays) -> None:
    if arrays:
        files.write_bytes(path.with_suffix(".npz"), data := files.npz_bytes(**arrays))
        record = record | {digest: sha256(data)}
    save_json(path, {"run_id": run_id(run)} | files.provenance() | record)


def save_evaluation(run: Run, evaluation: Evaluation, index, correct, *, after: dict | None = None, **extra) -> Path:
    """Store outcomes (packed bits) of the test images index, and their record; an existing record is kept as it is."""
    path = record_path(run, evaluation)
    if path.exists():
        return path
    index, correct = np.asarray(index, dtype=np.int32), np.asarray(correct, dtype=bool)
    arrays = {f"after_{name}": np.packbits(np.asarray(flags, dtype=bool)) for name, flags in (after or {}).items()}
    record: dict = {"evaluation": asdict(evaluation), "n": len(correct), "correct": int(correct.sum())}
    record["eps"] = run.eps if evaluation.eps is None else evaluation.eps
    if not np.array_equal(index, np.arange(len(index))):  # in a file that all records on these images share
        buffer = io.BytesIO()
        np.save(buffer, index.astype(np.min_scalar_type(int(index.max()))), allow_pickle=False)
        record["index_sha256"] = sha256(buffer.getvalue())
        files.write_bytes(path.with_name(f"index-{record['index_sha256'][:12]}.npy"), buffer.getvalue())
    if after:
        record["after"] = {name: int(np.sum(flags)) for name, flags in after.items()}
    _save(path, run, "outcomes_sha256", record | extra, correct=np.packbits(correct), **arrays)
    return path


def load_evaluation(run: Run, evaluation: Evaluation) -> Outcome:
    """Outcomes of one evaluation; MissingRecord when it was not run, UsageError for another eps of the same name."""
    path = record_path(run, evaluation)
    held, record = _evaluation(run, path)
    if held != evaluation:
        raise UsageError(f"{path} holds {held}, and {evaluation} was asked for, whose file has the same name")
    with _sound(path):
        arrays, n = load_npz(path.with_suffix(".npz"), record["outcomes_sha256"]), record["n"]
        correct = np.unpackbits(arrays["correct"])[:n].astype(bool)
        if digest := record.get("index_sha256"):
            index = load_npz(path.with_name(f"index-{digest[:12]}.npy"), digest)["array"].astype(np.int32)
        else:  # older records hold their positions themselves
            index = arrays.get("index", np.arange(len(correct), dtype=np.int32))
        if (len(correct), len(index), correct.sum()) != (n, n, record["correct"]):
            raise ValueError(f"{correct.sum()} of {len(correct)} outcomes on {len(index)} images")
    return Outcome(index, correct, record)


def save_analysis(run: Run, analysis: Analysis, record: dict, **arrays) -> Path:
    """Store an analysis: a JSON record, and arrays beside it when there are any; an existing one is kept."""
    path = record_path(run, analysis)
    if not path.exists():
        _save(path, run, "arrays_sha256", {"analysis": asdict(analysis), **record}, **arrays)
    return path


def load_analysis(run: Run, analysis: Analysis) -> tuple[dict, dict[str, np.ndarray]]:
    """Record and arrays ({} when there are none) of one analysis; MissingRecord when it was not run."""
    path = record_path(run, analysis)
    record = _own(run_id(run), path)
    digest = record.get("arrays_sha256")
    return record, load_npz(path.with_suffix(".npz"), digest) if digest else {}
