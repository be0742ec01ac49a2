"""Evaluate or load, analyse or audit or load: a record that is there is kept, an interrupted call resumes."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsr import experiments, files, hardware, store
from fsr.analyse import analyse
from fsr.config import AUDIT_VERSION, Analysis, Evaluation, Run, replace, run_id
from fsr.data import as_float, part_of_test
from fsr.evaluate import Progress, batch_size, evaluate_attack, images_sha256
from fsr.files import provenance, save_json
from fsr.models import Classifier
from fsr.runs.options import Options, data_of, load_partial, locked, memory_explained
from fsr.runs.training import ensure_weights, load_model, weights_path
from fsr.store.weights import digest_of

log = logging.getLogger("fsr")
SAVE_SECONDS = 5.0  # outcomes so far are written at most this often


def partial_path(run: Run, part: Evaluation | Analysis) -> Path:
    """Where an evaluation's outcomes, or an audit's finished groups, are kept until the record is there."""
    name = part.attack_id if isinstance(part, Evaluation) else f"audit-{part.budget or 'quick'}"
    return files.checkpoint_dir(run_id(run)) / f"partial-{part.checkpoint}-{name}.json"


def _once(run: Run, part: Any, path: Path, options: Options | None, compute: Callable) -> None:
    options = options or Options()
    if not path.exists():
        with locked(run, options, path.stem):
            if not path.exists():
                with memory_explained(run):
                    compute(run, part, options)


def ensure_evaluated(run: Run, evaluation: Evaluation, options: Options | None = None) -> None:
    """Evaluate unless the record is there; continues after the last chunk of an interrupted call."""
    _once(run, evaluation, store.eval_path(run, evaluation), options, _evaluate)
    partial_path(run, evaluation).unlink(missing_ok=True)


def ensure_analysed(run: Run, analysis: Analysis, options: Options | None = None) -> None:
    """Analyse, or audit, unless the record is there; an interrupted audit continues after its last group."""
    _once(run, analysis, store.analysis_path(run, analysis), options, _analyse)


def _weights(run: Run, checkpoint: str, options: Options) -> str:
    """Digest of the checkpoint, trained first if need be."""
    provenance()  # of the code as it was loaded, not as it lies there when all is done
    store.save_config(run)  # a damaged one is named before anything is added to this run
    with locked(run, options):
        digest = ensure_weights(run, checkpoint, options)
    options.check()
    # Training makes cudnn try every convolution on each new batch size, of which attacks have hundreds.
    torch.backends.cudnn.benchmark = False
    return digest


def _transfer_source(name: str, options: Options) -> tuple[Classifier, str]:
    """(network whose gradients a transfer attack uses, its digest): `last` of that run, trained first if need be."""
    planned = {run_id(run): run for sets in experiments.SETS.values() for run in sets["all"]}
    source = planned.get(name) or store.config_of(name)
    return load_model(source, "last", options), digest_of(weights_path(source, "last"))


def _evaluate(run: Run, evaluation: Evaluation, options: Options) -> None:
    device, path, saved, surrogate = options.torch_device, partial_path(run, evaluation), time.monotonic(), None
    identity = {"weights": _weights(run, evaluation.checkpoint, options)}
    if evaluation.surrogate is not None:
        surrogate, identity["surrogate_weights"] = _transfer_source(evaluation.surrogate, options)
    data = data_of(run, device)
    identity["images_sha256"] = images_sha256(data.test_x, data.test_y)
    # AutoAttack's state of one device, with its batch size, is of no use on another
    resumes = identity | {"batch": batch_size(device)}
    model = load_model(run, evaluation.checkpoint, options)
    x, y, index = part_of_test(data, evaluation.images)

    def on_chunk(progress: Progress) -> None:
        nonlocal saved
        options.report(run_id(run), f"{evaluation.checkpoint} {evaluation.attack_id}", progress.done, len(y))
        if progress.done < len(y):
            if options.interrupted() or options.late() or time.monotonic() - saved > SAVE_SECONDS:
                save_json(path, resumes | {"progress": asdict(progress)})
                saved = time.monotonic()
            options.check()

    before = Progress(**load_partial(path, resumes).get("progress", {}))
    switches = {name: on for name, on in options.switches if name != "update"}
    setting: dict[str, Any] = {"surrogate": surrogate, "switches": switches, "progress": before}
    setting |= {"on_chunk": on_chunk, "check": options.check}
    progress = evaluate_attack(model, x, y, index, run=run, evaluation=evaluation, **setting)
    extra = identity | {"seconds": round(progress.seconds, 3), "flips": progress.flips, "crafting": progress.crafting}
    extra |= {"hardware": hardware.describe(device), "precision": run.precision}
    extra |= {"flags": progress.flags} if progress.flags else {}
    store.save_evaluation(run, evaluation, index.numpy(), progress.correct, after=progress.after, **extra)


def _analyse(run: Run, analysis: Analysis, options: Options) -> None:
    digest, device = _weights(run, analysis.checkpoint, options), options.torch_device
    what, audits = f"{analysis.checkpoint} {analysis.kind}", analysis.kind == "audit"
    options.report(run_id(run), what, 0, 1)
    # The training of a surrogate is not part of the audit's time.
    surrogate = load_surrogate(run, analysis.checkpoint, options) if audits else None
    model, data, started = load_model(run, analysis.checkpoint, options), data_of(run, device), time.monotonic()
    if surrogate:
        record, arrays = _audit(run, analysis, model, surrogate, options)
    else:
        seconds = None if run.imported else float(store.history(run)["seconds"].median())
        record, arrays = analyse(model, run, analysis, data, device=device, seconds_per_epoch=seconds, weights=digest)
    record |= {"weights": digest, "seconds": round(time.monotonic() - started, 3)}
    store.save_analysis(run, analysis, record | {"hardware": hardware.describe(device)}, **arrays)
    if audits:
        partial_path(run, analysis).unlink(missing_ok=True)  # not before: a kill in between would lose its groups
    options.report(run_id(run), what, 1, 1)


def surrogate_run(run: Run) -> Run:
    """The run that an audit transfers from: the AT baseline of the same seed, for the baseline the next seed's."""
    baseline = replace(run, method="at", module=None, imported=None)
    return replace(run, seed=run.seed + 1) if baseline == run else baseline


def load_surrogate(run: Run, checkpoint: str, options: Options) -> tuple[str | None, str | None, Classifier | None]:
    """(run id, digest, network) of the surrogate's same checkpoint, trained first where a profile plans both.

    Nones, and a warning, for a run outside every plan whose surrogate is not trained: its record then says so.
    """
    other = surrogate_run(run)
    planned = any({run, other} <= set(sets["all"]) for sets in experiments.SETS.values())
    if not (planned or store.is_trained(other)):
        text = "%s: the audit goes without transfer from %s, which is not trained; its record says 'surrogate': null"
        log.warning(text, run_id(run), run_id(other))
        return None, None, None
    model = load_model(other, checkpoint, options)
    return run_id(other), digest_of(weights_path(other, checkpoint)), model


def _audit(run: Run, analysis: Analysis, model: Classifier, surrogate: tuple, options: Options) -> tuple[dict, dict]:
    """(record, arrays) of an audit: n and correct of every group and of the worst case, and the outcomes themselves."""
    from fsr.audit import GROUPS, audit  # training and plain evaluation do without it

    data, device = data_of(run, options.torch_device), options.torch_device
    x, y, index = part_of_test(data, analysis.images)
    other, other_digest, network = surrogate
    identity = {"weights": digest_of(weights_path(run, analysis.checkpoint)), "images": len(y)}
    identity |= {"twin": other, "twin_weights": other_digest, "version": AUDIT_VERSION}
    path, budget = partial_path(run, analysis), analysis.budget or "quick"
    done = load_partial(path, identity).get("done", {})

    def on_group(group: str, result: dict) -> None:
        done[group] = result
        save_json(path, {**identity, "done": done})
        options.report(run_id(run), f"{analysis.checkpoint} audit", len(done), len(GROUPS))
        options.check()

    train = (as_float(data.held_x), data.held_y) if len(data.held_y) else None
    setting: dict[str, Any] = {"surrogate": network, "train": train, "on_group": on_group, "done": dict(done)}
    hook = model.register_forward_pre_hook(lambda *_: options.check())  # a group takes minutes; copies keep the hook
    try:
        result = audit(model, as_float(x), y, eps=run.eps, budget=budget, **setting)
    finally:
        hook.remove()
    same = ("not_applicable", "indicators", "flags", "checks", "binarization", "details", "randomised")
    record = {name: getattr(result, name) for name in same}
    for name in ("groups", "attacks", "columns"):
        outcomes = getattr(result, name)
        record[name] = {key: {"n": len(correct), "correct": int(correct.sum())} for key, correct in outcomes.items()}
    record |= {name: int(getattr(result, name).sum()) for name in ("clean", "authors_protocol", "worst_case")}
    record |= {"n": len(y), "group_seconds": result.seconds, "surrogate": other, "twin_weights": other_digest}
    crafting = "tf32" if device.type == "cuda" else "float32"
    record |= {"budget": budget, "version": AUDIT_VERSION, "crafting": crafting}
    arrays = {f"group_{name}": correct.numpy() for name, correct in result.groups.items()}
    arrays |= {name: getattr(result, name).numpy() for name in ("worst_case", "authors_protocol")}
    return record, arrays | {"index": index.numpy().astype(np.int32)}
