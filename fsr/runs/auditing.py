"""The adaptive audit of a run, kept group by group as it goes."""

import logging
from pathlib import Path

import numpy as np

from fsr import experiments, files, store
from fsr.config import AUDIT_VERSION, Analysis, Run, replace, run_id
from fsr.data import Data, as_float, part_of_test
from fsr.files import save_json
from fsr.runs.base import Options, scratch
from fsr.runs.checkpoints import weights_path
from fsr.runs.training import has_weights, load_model
from fsr.store.weights import digest_of

log = logging.getLogger("fsr")


def twin_of(run: Run) -> Run:
    """The run that an audit transfers from: the plain AT twin of the same seed, for plain AT the next seed's."""
    twin = replace(run, method="at", module=None, imported=None)
    return replace(run, seed=run.seed + 1) if twin == run else twin


def _planned_together(run: Run, twin: Run) -> bool:
    return any({run, twin} <= set(sets["all"]) for sets in experiments.SETS.values())


def train_twin(run: Run, checkpoint: str, options: Options) -> None:
    """Have the weights of a planned twin here before an audit begins: their training is not part of its time."""
    twin = twin_of(run)
    if _planned_together(run, twin) and not has_weights(twin, checkpoint):
        load_model(twin, checkpoint, options)


def surrogate_of(run: Run, checkpoint: str, options: Options):
    """(run id, digest, network) of the twin's same checkpoint, trained first where a profile plans both.

    Nones, and a warning, for a run outside every plan whose twin is not trained: its record then says so.
    """
    twin = twin_of(run)
    if not (_planned_together(run, twin) or store.is_trained(twin)):
        log.warning(
            "%s: the audit goes without transfer from its twin %s, which is not trained; its record says so "
            "('surrogate': null)",
            run_id(run),
            run_id(twin),
        )
        return None, None, None
    model = load_model(twin, checkpoint, options)
    return run_id(twin), digest_of(weights_path(twin, checkpoint)), model


def _plain(value):
    """Arrays as lists, so that a finished group fits a JSON record."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _counts(outcomes: dict) -> dict:
    return {name: {"n": len(kept), "correct": int(kept.sum())} for name, kept in outcomes.items()}


def partial_path(run: Run, analysis: Analysis) -> Path:
    """Where an audit's finished groups are kept until its record is there."""
    name = f"partial-{analysis.checkpoint}-audit-{analysis.budget or 'quick'}.json"
    return files.checkpoint_dir(run_id(run)) / name


def audit_run(run: Run, analysis: Analysis, model, data: Data, options: Options) -> tuple[dict, dict]:
    """(record, arrays) of an audit: n and correct of every group and of the worst case, and the outcomes themselves."""
    from fsr.audit import GROUPS, audit  # a room of its own size: training and plain evaluation do without it

    x, y, index = part_of_test(data, analysis.images)
    twin, twin_digest, surrogate = surrogate_of(run, analysis.checkpoint, options)
    identity = {"weights": digest_of(weights_path(run, analysis.checkpoint)), "images": len(y)}
    identity |= {"twin": twin, "twin_weights": twin_digest, "version": AUDIT_VERSION}
    path = partial_path(run, analysis)
    done = scratch(path, identity).get("done", {})

    def on_group(group: str, found: dict) -> None:
        done[group] = _plain(found)
        save_json(path, {**identity, "done": done})
        options.report(run_id(run), f"{analysis.checkpoint} audit", len(done), len(GROUPS))
        options.check()

    budget, held = analysis.budget or "quick", (as_float(data.held_x), data.held_y)
    train = held if len(data.held_y) else None
    more = {"surrogate": surrogate, "train": train, "on_group": on_group, "done": dict(done)}
    watch = model.register_forward_pre_hook(lambda *_: options.check())  # a group takes minutes; copies keep the hook
    try:
        result = audit(model, as_float(x), y, eps=run.eps, budget=budget, **more)
    finally:
        watch.remove()
    record = {
        "n": len(y),
        "groups": _counts(result.groups),
        "attacks": _counts(result.attacks),
        "columns": _counts(result.columns),
        "clean": int(result.clean.sum()),
        "authors_protocol": int(result.authors_protocol.sum()),
        "worst_case": int(result.worst_case.sum()),
        "not_applicable": result.not_applicable,
        "indicators": _plain(result.indicators),
        "flags": _plain(result.flags),
        "details": _plain(result.details),
        "group_seconds": result.seconds,
        "randomised": result.randomised,
        "surrogate": twin,
        "twin_weights": twin_digest,
        "budget": budget,
        "version": AUDIT_VERSION,
        "crafting": "tf32" if options.torch_device.type == "cuda" else "float32",
    }
    arrays = {"index": index.numpy().astype(np.int32), "worst_case": result.worst_case.numpy()}
    arrays |= {f"group_{name}": kept.numpy() for name, kept in result.groups.items()}
    return record, arrays | {"authors_protocol": result.authors_protocol.numpy()}
