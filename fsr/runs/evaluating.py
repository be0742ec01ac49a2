"""Evaluate or load, analyse or load: outcomes are kept after every chunk, so that a kill costs little."""

import time
from dataclasses import asdict
from pathlib import Path

import torch

from fsr import experiments, files, hardware, store
from fsr.analyse import analyse
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.data import part_of_test
from fsr.evaluate import Progress, batch_size, evaluate_attack, images_sha256
from fsr.files import provenance, save_json
from fsr.runs.auditing import audit_run, partial_path, train_twin
from fsr.runs.base import Options, data_of, locked, memory_explained, scratch
from fsr.runs.checkpoints import weights_path
from fsr.runs.training import ensure_weights, load_model
from fsr.store.weights import digest_of

SAVE_SECONDS = 5.0  # outcomes so far are written at most this often


def _partial(run: Run, evaluation: Evaluation) -> Path:
    name = f"partial-{evaluation.checkpoint}-{evaluation.attack_id}.json"
    return files.checkpoint_dir(run_id(run)) / name


def _surrogate(evaluation: Evaluation, options: Options):
    """(network whose gradients a transfer attack uses, its digest): `last` of another run, trained first if need be."""
    if evaluation.surrogate is None:
        return None, None
    planned = (run for sets in experiments.SETS.values() for run in sets["all"])
    source = next((run for run in planned if run_id(run) == evaluation.surrogate), None)
    source = source or store.config_of(evaluation.surrogate)
    model = load_model(source, "last", options)
    return model, digest_of(weights_path(source, "last"))


def ensure_evaluated(run: Run, evaluation: Evaluation, options: Options | None = None) -> None:
    """Evaluate unless the record is there; goes on after the last chunk of a stopped call."""
    options = options or Options()
    if store.has_evaluation(run, evaluation):
        _partial(run, evaluation).unlink(missing_ok=True)  # of a call that was killed right after its record
        return
    surrogate, digest = _surrogate(evaluation, options)
    with locked(run, options, store.eval_path(run, evaluation).stem):
        if not store.has_evaluation(run, evaluation):
            with memory_explained(run):
                _evaluate(run, evaluation, options, surrogate, digest)


def _any_batch_size() -> None:
    """No more trying of every convolution on each new batch size: training switched that on, attacks have hundreds."""
    torch.backends.cudnn.benchmark = False


def _evaluate(run: Run, evaluation: Evaluation, options: Options, surrogate, surrogate_digest: str | None):
    provenance()  # of the code as it was loaded, not as it lies there when all is done
    store.save_config(run)  # a damaged one is named before anything is added to this run
    with locked(run, options):
        identity = {"weights": ensure_weights(run, evaluation.checkpoint, options)}
    if surrogate_digest is not None:
        identity["surrogate_weights"] = surrogate_digest
    data = data_of(run, options.torch_device)
    identity["images_sha256"] = images_sha256(data.test_x, data.test_y)
    options.check()
    progress, index = _survived(run, evaluation, options, identity, surrogate)
    extra = {**identity, "seconds": round(progress.seconds, 3), "flips": progress.flips}
    extra |= {"hardware": hardware.describe(options.torch_device), "precision": run.precision}
    extra["crafting"] = progress.crafting
    if progress.flags:
        extra["flags"] = progress.flags
    store.save_evaluation(run, evaluation, index.numpy(), progress.correct, after=progress.after, **extra)
    _partial(run, evaluation).unlink(missing_ok=True)  # a stopped call's scratch file; the record is whole now


def _survived(run: Run, evaluation: Evaluation, options: Options, identity: dict, surrogate):
    """(Progress at the end, places of the images in the test set), from wherever the scratch file stands."""
    device = options.torch_device
    resumes = {"batch": batch_size(device)}  # AutoAttack's state of one device is of no use on another
    _any_batch_size()
    model = load_model(run, evaluation.checkpoint, options)
    x, y, index = part_of_test(data_of(run, device), evaluation.images)
    path, saved = _partial(run, evaluation), time.monotonic()
    progress = Progress(**scratch(path, identity | resumes).get("progress", {}))

    def on_chunk(progress: Progress) -> None:
        nonlocal saved
        options.report(run_id(run), f"{evaluation.checkpoint} {evaluation.attack_id}", progress.done, len(y))
        stopping = options.interrupted() or options.late()
        if progress.done < len(y) and (stopping or time.monotonic() - saved > SAVE_SECONDS):
            save_json(path, {**identity, **resumes, "progress": asdict(progress)})
            saved = time.monotonic()
        if progress.done < len(y):
            options.check()

    switches = {name: on for name, on in options.switches if name != "update"}
    call = {"run": run, "evaluation": evaluation, "surrogate": surrogate, "switches": switches, "check": options.check}
    return evaluate_attack(model, x, y, index, progress=progress, on_chunk=on_chunk, **call), index


def _look(run: Run, analysis: Analysis, model, data, options: Options, digest: str) -> tuple[dict, dict]:
    """(record, arrays) of an analysis; digest: of the model's weights."""
    _any_batch_size()
    if analysis.kind == "audit":
        return audit_run(run, analysis, model, data, options)
    seconds = None if run.imported else float(store.history(run)["seconds"].median())
    device = options.torch_device
    return analyse(model, run, analysis, data, device=device, seconds_per_epoch=seconds, weights=digest)


def ensure_analysed(run: Run, analysis: Analysis, options: Options | None = None) -> None:
    """Analyse unless the record is there."""
    options = options or Options()
    if store.has_analysis(run, analysis):
        return
    provenance()  # of the code as it was loaded, not as it lies there when all is done
    with locked(run, options, store.analysis_path(run, analysis).stem):
        if store.has_analysis(run, analysis):
            return
        with locked(run, options):
            digest = ensure_weights(run, analysis.checkpoint, options)
        options.check()
        options.report(run_id(run), f"{analysis.checkpoint} {analysis.kind}", 0, 1)
        if analysis.kind == "audit":
            train_twin(run, analysis.checkpoint, options)
        model, data = load_model(run, analysis.checkpoint, options), data_of(run, options.torch_device)
        started = time.monotonic()
        with memory_explained(run):
            record, arrays = _look(run, analysis, model, data, options, digest)
        extra = {"weights": digest, "seconds": round(time.monotonic() - started, 3)}
        extra["hardware"] = hardware.describe(options.torch_device)
        store.save_analysis(run, analysis, record | extra, **arrays)
        if analysis.kind == "audit":
            partial_path(run, analysis).unlink(missing_ok=True)  # not before: a kill in between would lose its groups
        options.report(run_id(run), f"{analysis.checkpoint} {analysis.kind}", 1, 1)
