"""Evaluate or load, analyse or audit or load: a record that is there is kept, an interrupted call resumes."""

import time
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
from fsr.files import load_json, provenance, save_json
from fsr.models import Classifier
from fsr.runs.options import DEFAULT, Options, data_of, once
from fsr.runs.training import load_model, weights_path
from fsr.store.weights import digest_of


def partial_path(run: Run, part: Evaluation | Analysis) -> Path:
    """Where an evaluation's outcomes, or an audit's finished groups, are kept until the record is there."""
    return files.checkpoint_dir(run_id(run)) / f"partial-{store.record_path(run, part).name}"


def _load_partial(path: Path, identity: dict) -> dict:
    record = load_json(path) if path.exists() else {}
    return record if all(record.get(name) == value for name, value in identity.items()) else {}


def _network(run: Run, checkpoint: str, options: Options) -> tuple[Classifier, str]:
    """The network, trained first if need be, and the digest of its weights."""
    model = load_model(run, checkpoint, options)
    # Training makes cudnn try every convolution on each new batch size, of which attacks have hundreds.
    torch.backends.cudnn.benchmark = False
    return model, digest_of(weights_path(run, checkpoint))


def ensure_evaluated(run: Run, part: Evaluation | Analysis, options: Options = DEFAULT) -> None:
    """Evaluate, analyse or audit unless the record is there; an interrupted call goes on after its last part."""
    path = store.record_path(run, part)

    def compute() -> None:
        provenance()  # of the code as it was loaded, not as it lies there when all is done
        if store.is_trained(run):
            store.save_config(run)  # a damaged one is named before anything is added to this run
        make: Any = _evaluate if isinstance(part, Evaluation) else _analyse
        make(run, part, options, *_network(run, part.checkpoint, options))

    once(run, options, path.exists, compute, path.stem)
    partial_path(run, part).unlink(missing_ok=True)


def _evaluate(run: Run, evaluation: Evaluation, options: Options, model: Classifier, weights: str) -> None:
    path, surrogate, data = partial_path(run, evaluation), None, data_of(run, device := options.torch_device)
    identity = {"weights": weights, "images_sha256": images_sha256(data.test_x, data.test_y)}
    if evaluation.surrogate is not None:  # `last` of that run, trained first if need be
        plan = {run_id(one): one for sets in experiments.SETS.values() for one in sets["all"]}
        other = plan.get(evaluation.surrogate) or store.config_of(evaluation.surrogate)
        surrogate, identity["surrogate_weights"] = _network(other, "last", options)
    resumes = identity | {"batch": batch_size(device), "evaluation": asdict(evaluation)}  # two eps share a file's name
    x, y, index = part_of_test(data, evaluation.images)

    def on_chunk(progress: Progress) -> None:
        options.report(run_id(run), f"{evaluation.checkpoint} {evaluation.attack_id}", progress.done, len(y))
        if progress.done < len(y):
            save_json(path, resumes | {"progress": asdict(progress)})
            options.check()

    before = Progress(**_load_partial(path, resumes).get("progress", {}))
    setting: dict[str, Any] = {"surrogate": surrogate, "progress": before, "on_chunk": on_chunk, "check": options.check}
    progress = evaluate_attack(model, x, y, index, run=run, evaluation=evaluation, **setting)
    extra = identity | {"seconds": round(progress.seconds, 3), "flips": progress.flips, "crafting": progress.crafting}
    extra |= {"hardware": hardware.describe(device), "precision": run.precision}
    extra |= {"flags": progress.flags} if progress.flags else {}
    store.save_evaluation(run, evaluation, index.numpy(), progress.correct, after=progress.after, **extra)


def _analyse(run: Run, analysis: Analysis, options: Options, model: Classifier, weights: str) -> None:
    started, device = time.monotonic(), options.torch_device
    options.report(run_id(run), f"{analysis.checkpoint} {analysis.kind}", 0, 1)
    if analysis.kind == "audit":
        record, arrays = _audit(run, analysis, options, model)
    else:
        seconds = None if run.imported else float(store.history(run)["seconds"].median())
        record, arrays = analyse(model, run, analysis, data_of(run, device), seconds_per_epoch=seconds)
    facts = {"seconds": round(time.monotonic() - started, 3), "weights": weights, "hardware": hardware.describe(device)}
    store.save_analysis(run, analysis, facts | record, **arrays)


def surrogate_run(run: Run) -> Run:
    """The run that an audit transfers from: the AT baseline of the same seed, for the baseline the next seed's."""
    baseline = replace(run, method="at", module=None, imported=None)
    return replace(run, seed=run.seed + 1) if baseline == run else baseline


def _audit(run: Run, analysis: Analysis, options: Options, model: Classifier) -> tuple[dict, dict]:
    from fsr.audit import GROUPS, audit  # training and plain evaluation do without it

    device, path, other = options.torch_device, partial_path(run, analysis), surrogate_run(run)
    name = digest = surrogate = None  # it is trained first where a profile plans both
    if store.is_trained(other) or any({run, other} <= set(sets["all"]) for sets in experiments.SETS.values()):
        name, (surrogate, digest) = run_id(other), _network(other, analysis.checkpoint, options)
    data, budget = data_of(run, device), analysis.budget or "quick"
    x, y, index = part_of_test(data, analysis.images)
    identity = {"twin_weights": digest, "version": AUDIT_VERSION}  # all else is compared by the audit
    done = _load_partial(path, identity).get("done", {})

    def on_group(group: str, result: dict) -> None:
        done[group] = result
        save_json(path, {**identity, "done": done})
        options.report(run_id(run), f"{analysis.checkpoint} audit", len(done), len(GROUPS))

    model.register_forward_pre_hook(lambda *_: options.check())  # a group takes minutes; copies keep the hook
    setting: dict[str, Any] = {"surrogate": surrogate, "on_group": on_group, "done": dict(done)}
    result = audit(model, as_float(x), y, eps=run.eps, budget=budget, **setting)
    record: dict = identity | {"surrogate": name, "budget": budget, "n": len(y)}
    record |= {"crafting": "tf32" if x.is_cuda else "float32", "images_sha256": images_sha256(data.test_x, data.test_y)}
    record |= {"group_seconds": result.seconds, "seconds": round(sum(result.seconds.values()), 3)}
    arrays = {f"group_{key}": correct.numpy() for key, correct in result.groups.items()}
    arrays |= {key: getattr(result, key).numpy() for key in ("worst_case", "authors_protocol")}
    same = ("not_applicable", "indicators", "flags", "checks", "binarization", "details", "randomised")
    record |= {name: getattr(result, name) for name in same}
    for name in ("groups", "attacks", "columns"):
        outcomes = getattr(result, name)
        record[name] = {key: {"n": len(correct), "correct": int(correct.sum())} for key, correct in outcomes.items()}
    record |= {name: int(getattr(result, name).sum()) for name in ("clean", "authors_protocol", "worst_case")}
    return record, arrays | {"index": index.numpy().astype(np.int32)}
