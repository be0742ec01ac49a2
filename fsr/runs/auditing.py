"""The adaptive audit of a run, group by group, kept as it goes."""

import numpy as np
import torch

from fsr import paths, store
from fsr.config import Analysis, Run, run_id
from fsr.data import Data, as_float, part_of_test
from fsr.errors import CorruptFile
from fsr.runs.base import Options
from fsr.runs.training import load_model, weights_path
from fsr.weights import digest_of, load_tensors, save_tensors


def _surrogate(run: Run, analysis: Analysis, options: Options):
    """(name, network): the plain AT twin of a run with a module, when its weights are here; (None, None) otherwise."""
    for known in store.runs():
        same = (known.dataset, known.backbone, known.width, known.blocks, known.epochs, known.method)
        twin = same == (run.dataset, run.backbone, run.width, run.blocks, run.epochs, "at") and known.module is None
        if twin and known != run and not known.imported and weights_path(known, "last").exists():
            return run_id(known), load_model(known, "last", options)
    return None, None


def audit_run(run: Run, analysis: Analysis, model, data: Data, options: Options) -> tuple[dict, dict]:
    """(record, arrays) of an audit: n and correct of every group and of the worst case, and the outcomes themselves."""
    from fsr.audit import audit  # a room of its own size: training and plain evaluation do without it

    x, y, index = part_of_test(data, analysis.images)
    name, surrogate = _surrogate(run, analysis, options)
    digest = digest_of(weights_path(run, analysis.checkpoint))
    path = (
        paths.checkpoint_dir(run_id(run))
        / f"partial-{analysis.checkpoint}-audit-{analysis.budget}-{len(y)}.safetensors"
    )
    done = _resume(path, digest)

    def on_group(group: str, correct) -> None:
        done[group] = torch.as_tensor(correct)
        save_tensors(path, done, {"weights": digest})
        options.report(run_id(run), f"{analysis.checkpoint} audit", len(done), len(done) + 1)
        options.check()

    result = audit(
        model, as_float(x), y, eps=run.eps, budget=analysis.budget or "quick", surrogate=surrogate,
        train=(as_float(data.held_x), data.held_y), on_group=on_group, done=dict(done),
    )  # fmt: skip
    groups = {k: np.asarray(v, dtype=bool) for k, v in result.groups.items()}
    record = {
        "n": len(y),
        "groups": {k: {"n": len(v), "correct": int(v.sum())} for k, v in groups.items()},
        "authors_protocol": int(np.asarray(result.authors_protocol).sum()),
        "worst_case": int(np.asarray(result.worst_case).sum()),
        "not_applicable": result.not_applicable,
        "indicators": result.indicators,
        "flags": result.flags,
        "group_seconds": result.seconds,
        "surrogate": name,
        "budget": analysis.budget or "quick",
    }
    arrays = {"index": index.numpy().astype(np.int32), "worst_case": np.asarray(result.worst_case, dtype=bool)}
    arrays["authors_protocol"] = np.asarray(result.authors_protocol, dtype=bool)
    path.unlink(missing_ok=True)  # scratch of a stopped call
    return record, arrays | {f"group_{i}": v for i, v in enumerate(groups.values())}


def _resume(path, digest: str) -> dict:
    try:
        tensors, meta = load_tensors(path) if path.exists() else ({}, {})
    except CorruptFile:
        return {}
    return tensors if meta.get("weights") == digest else {}
