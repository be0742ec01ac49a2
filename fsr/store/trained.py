"""A run's own files: config.json, history.csv and env.json, each written once."""

import csv
import io
from pathlib import Path

import pandas as pd

from fsr import files
from fsr.config import Run, content_id, run_from_dict, run_id, to_dict
from fsr.files import CorruptFile, MissingRecord, UsageError, load_json, save_json, sha256


def id_of(run: Run | str) -> str:
    """A run's id, from the run or from itself."""
    return run if isinstance(run, str) else run_id(run)


def folder_of(run: Run | str) -> Path:
    """results/runs/<id>."""
    return files.run_dir(id_of(run))


def own(path: Path, run: Run | str) -> dict:
    """The record at path, if it is this run's; CorruptFile for one that was copied or renamed from another."""
    record = load_json(path)
    if record.get("run_id") != id_of(run):
        raise CorruptFile(f"{path} is a record of {record.get('run_id')}; move it away to compute this run's own")
    return record


def save_config(run: Run) -> None:
    """config.json of a run, once; an existing one must be the same run."""
    path = folder_of(run) / "config.json"
    if not path.exists():
        save_json(path, {"run": to_dict(run), "run_id": run_id(run)})
    elif content_id(config_of(run_id(run))) != content_id(run):
        raise CorruptFile(f"{path} describes another run than its folder's name; move the folder away")


def config_of(name: str) -> Run:
    """The Run that a run id names; UsageError when there is none, CorruptFile when its record is not its own."""
    path = folder_of(name) / "config.json"
    if not path.exists():
        folder = files.results() / "runs"
        meant = files.did_you_mean(name, (p.parent.name for p in folder.glob("*/config.json")))
        raise UsageError(f"no run {name!r} in {folder}{meant}; `python -m fsr status` lists them")
    return run_from_dict(own(path, name)["run"])


def runs() -> list[Run]:
    """Every run with a config.json, sorted by id."""
    return [config_of(p.parent.name) for p in sorted((files.results() / "runs").glob("*/config.json"))]


def is_trained(run: Run | str) -> bool:
    """Did the training finish?  The weights may be gone: a record is valid without them."""
    return (folder_of(run) / "env.json").exists()


def environment(run: Run | str) -> dict:
    """env.json: commit, versions, hardware, start, seconds, checkpoint hashes."""
    return own(folder_of(run) / "env.json", run)


def retrained_path(run: Run | str, digest: str) -> Path:
    """Where a later training that ended in other weights is recorded; digest: of the first of them."""
    return folder_of(run) / f"retrained-{digest[:12]}.json"


def damage(run: Run | str) -> str:
    """What is wrong with a run's config.json, env.json or history.csv, in one line; "" when nothing is."""
    name = id_of(run)
    try:
        if (folder_of(name) / "config.json").exists():
            config_of(name)
        if is_trained(name) and environment(name).get("history_sha256"):
            history(name)
    except (CorruptFile, UsageError, MissingRecord) as error:
        return str(error)
    return ""


def finished() -> list[tuple[Run, dict]]:
    """Every finished run and its env.json, sorted by id; damaged ones are left out (`status` names them)."""
    names = [p.parent.name for p in sorted((files.results() / "runs").glob("*/env.json"))]
    return [(config_of(name), environment(name)) for name in names if not damage(name)]


def save_history(run: Run, rows: list[dict]) -> bytes:
    """history.csv, one row per epoch; returns its bytes.  The columns' order is fixed: a resumed run's is the same."""
    groups = ("epoch", "seconds", "lr", "train_", "held_", "ema_", "")
    names = sorted(rows[0], key=lambda name: ([name.startswith(group) for group in groups].index(True), name))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    data = text.getvalue().encode()
    files.write_bytes(folder_of(run) / "history.csv", data)
    return data


def history(run: Run | str) -> pd.DataFrame:
    """history.csv as a frame; of a finished run it must match the hash in env.json."""
    path = folder_of(run) / "history.csv"
    if not path.exists():
        raise MissingRecord(f"{id_of(run)} has no history.csv; `python -m fsr run-all` trains what is missing")
    data = path.read_bytes()
    if is_trained(run) and environment(run)["history_sha256"] != sha256(data):
        raise CorruptFile(f"{path} is damaged (its bytes do not match env.json)")
    return pd.read_csv(io.BytesIO(data))
