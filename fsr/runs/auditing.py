"""The adaptive audit of a run, resumable after every group."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fsr import experiments, files, store
from fsr.config import AUDIT_VERSION, Analysis, Run, replace, run_id
from fsr.data import Data, as_float, part_of_test
from fsr.files import save_json
from fsr.runs.options import Options, load_partial
from fsr.runs.training import has_weights, load_model, weights_path
from fsr.store.weights import digest_of

log = logging.getLogger("fsr")


def surrogate_run(run: Run) -> Run:
    """The run that an audit transfers from: the AT baseline of the same seed, for the baseline the next seed's."""
    baseline = replace(run, method="at", module=None, imported=None)
    return replace(run, seed=run.seed + 1) if baseline == run else baseline


def _planned_together(run: Run, other: Run) -> bool:
    return any({run, other} <= set(sets["all"]) for sets in experiments.SETS.values())


def train_surrogate(run: Run, checkpoint: str, options: Options) -> None:
    """Have the weights of a planned surrogate here before an audit begins: their training is not part of its time."""
    other = surrogate_run(run)
    if _planned_together(run, other) and not has_weights(other, checkpoint):
        load_model(other, checkpoint, options)


def load_surrogate(run: Run, checkpoint: str, options: Options) -> tuple[str | None, str | None, nn.Module | None]:
    """(run id, digest, network) of the surrogate's same checkpoint, trained first where a profile plans both.

    Nones, and a warning, for a run outside every plan whose surrogate is not trained: its record then says so.
    """
    other = surrogate_run(run)
    if not (_planned_together(run, other) or store.is_trained(other)):
        log.warning(
            "%s: the audit goes without transfer from %s, which is not trained; its record says 'surrogate': null",
            run_id(run),
            run_id(other),
        )
        return None, None, None
    model = load_model(other, checkpoint, options)
    return run_id(other), digest_of(weights_path(other, checkpoint)), model


def _counts(outcomes: dict) -> dict:
    return {name: {"n": len(correct), "correct": int(correct.sum())} for name, correct in outcomes.items()}


def partial_path(run: Run, analysis: Analysis) -> Path:
    """Where an audit's finished groups are kept until its record is there."""
    name = f"partial-{analysis.checkpoint}-audit-{analysis.budget or 'quick'}.json"
    return files.checkpoint_dir(run_id(run)) / name


def audit_run(run: Run, analysis: Analysis, model: nn.Module, data: Data, options: Options) -> tuple[dict, dict]:
    """(record, arrays) of an audit: n and correct of every group and of the worst case, and the outcomes themselves."""
    from fsr.audit import GROUPS, audit  # training and plain evaluation do without it

    x, y, index = part_of_test(data, analysis.images)
    other, other_digest, surrogate = load_surrogate(run, analysis.checkpoint, options)
    identity = {"weights": digest_of(weights_path(run, analysis.checkpoint)), "images": len(y)}
    identity |= {"twin": other, "twin_weights": other_digest, "version": AUDIT_VERSION}
    path = partial_path(run, analysis)
    done = load_partial(path, identity).get("done", {})

    def on_group(group: str, result: dict) -> None:
        done[group] = result
        save_json(path, {**identity, "done": done})
        options.report(run_id(run), f"{analysis.checkpoint} audit", len(done), len(GROUPS))
        options.check()

    budget, train = analysis.budget or "quick", (as_float(data.held_x), data.held_y) if len(data.held_y) else None
    setting: dict[str, Any] = {"surrogate": surrogate, "train": train, "on_group": on_group, "done": dict(done)}
    hook = model.register_forward_pre_hook(lambda *_: options.check())  # a group takes minutes; copies keep the hook
    try:
        result = audit(model, as_float(x), y, eps=run.eps, budget=budget, **setting)
    finally:
        hook.remove()
    record = {
        "n": len(y),
        "groups": _counts(result.groups),
        "attacks": _counts(result.attacks),
        "columns": _counts(result.columns),
        "clean": int(result.clean.sum()),
        "authors_protocol": int(result.authors_protocol.sum()),
        "worst_case": int(result.worst_case.sum()),
        "not_applicable": result.not_applicable,
        "indicators": result.indicators,
        "flags": result.flags,
        "checks": result.checks,
        "binarization": result.binarization,
        "details": result.details,
        "group_seconds": result.seconds,
        "randomised": result.randomised,
        "surrogate": other,
        "twin_weights": other_digest,
        "budget": budget,
        "version": AUDIT_VERSION,
        "crafting": "tf32" if options.torch_device.type == "cuda" else "float32",
    }
    arrays = {"index": index.numpy().astype(np.int32), "worst_case": result.worst_case.numpy()}
    arrays |= {f"group_{name}": correct.numpy() for name, correct in result.groups.items()}
    return record, arrays | {"authors_protocol": result.authors_protocol.numpy()}
