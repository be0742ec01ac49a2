"""An authors' checkpoint becomes a run that can be evaluated and audited like any other."""

from datetime import UTC, datetime
from pathlib import Path

import torch

from fsr import files, store
from fsr.config import DATASETS, FSRSpec, for_dataset, run_id
from fsr.files import UsageError, provenance, read_bytes, save_json, sha256
from fsr.models import load_official
from fsr.runs.training import weights_path
from fsr.store.weights import save_tensors


def import_official(path: Path, backbone: str, dataset: str) -> str:
    """Import a file of the authors' code (AT+FSR, last epoch); returns the run id.  UsageError where it is none."""
    path = Path(path)
    if dataset not in DATASETS:
        raise UsageError(f"unknown data set {dataset!r}; choose one of {', '.join(DATASETS)}")
    if not path.is_file():
        raise UsageError(f"no file {path}; give the authors' .pth file")
    model, info = load_official(path, backbone), DATASETS[dataset]
    with torch.no_grad():
        classes = model.eval()(torch.zeros(2, 3, info.size, info.size)).shape[1]
    if classes != info.classes:
        raise UsageError(f"{path} has {classes} classes and {dataset} has {info.classes}: give another --dataset")
    digest = sha256(read_bytes(path))
    fields = {"module": FSRSpec(), "holdout": 0, "precision": "float32", "imported": digest[:16]}
    run = for_dataset(dataset, backbone=backbone, **fields)
    store.save_config(run)
    if not weights_path(run, "last").exists():
        save_tensors(weights_path(run, "last"), model.state_dict(), {"run_id": run_id(run), "checkpoint": "last"})
    environment = files.run_dir(run_id(run)) / "env.json"
    if not environment.exists():
        record = {"run_id": run_id(run), "imported": path.name, "imported_sha256": digest}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        save_json(environment, record | provenance() | {"finished": now, "seconds": None, "checkpoints": {}})
    return run_id(run)
