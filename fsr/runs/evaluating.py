"""Evaluate or load, analyse or load: a record that is there is kept, an interrupted call resumes."""

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
from fsr.models import Classifier
from fsr.runs.auditing import audit_run, partial_path, train_surrogate
from fsr.runs.options import Options, data_of, load_partial, locked, memory_explained
from fsr.runs.training import ensure_weights, load_model, weights_path
from fsr.store.weights import digest_of

SAVE_SECONDS = 5.0  # outcomes so far are written at most this often


def _partial_path(run: Run, evaluation: Evaluation) -> Path:
    return files.checkpoint_dir(run_id(run)) / f"partial-{evaluation.checkpoint}-{evaluation.attack_id}.json"


def _surrogate(evaluation: Evaluation, options: Options) -> tuple[Classifier | None, dict]:
    """(network whose gradients a transfer attack uses, its digest): `last` of another run, trained first if need be."""
    if evaluation.surrogate is None:
        return None, {}
    planned = (run for sets in experiments.SETS.values() for run in sets["all"])
    source = next((run for run in planned if run_id(run) == evaluation.surrogate), None)
    source = source or store.config_of(evaluation.surrogate)
    model = load_model(source, "last", options)
    return model, {"surrogate_weights": digest_of(weights_path(source, "last"))}


def ensure_evaluated(run: Run, evaluation: Evaluation, options: Options | None = None) -> None:
    """Evaluate unless the record is there; continues after the last chunk of an interrupted call."""
    options = options or Options()
    if store.has_evaluation(run, evaluation):
        _partial_path(run, evaluation).unlink(missing_ok=True)  # of a call that was killed right after its record
        return
    surrogate, identity = _surrogate(evaluation, options)
    with locked(run, options, store.eval_path(run, evaluation).stem):
        if not store.has_evaluation(run, evaluation):
            with memory_explained(run):
                _evaluate(run, evaluation, options, surrogate, identity)


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


def _evaluate(run: Run, evaluation: Evaluation, options: Options, surrogate: Classifier | None, identity: dict) -> None:
    device, path, saved = options.torch_device, _partial_path(run, evaluation), time.monotonic()
    identity = {"weights": _weights(run, evaluation.checkpoint, options)} | identity
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

    progress = evaluate_attack(
        model,
        x,
        y,
        index,
        run=run,
        evaluation=evaluation,
        surrogate=surrogate,
        switches={name: on for name, on in options.switches if name != "update"},
        progress=Progress(**load_partial(path, resumes).get("progress", {})),
        on_chunk=on_chunk,
        check=options.check,
    )
    extra = identity | {"seconds": round(progress.seconds, 3), "flips": progress.flips, "crafting": progress.crafting}
    extra |= {"hardware": hardware.describe(device), "precision": run.precision}
    extra |= {"flags": progress.flags} if progress.flags else {}
    store.save_evaluation(run, evaluation, index.numpy(), progress.correct, after=progress.after, **extra)
    path.unlink(missing_ok=True)


def ensure_analysed(run: Run, analysis: Analysis, options: Options | None = None) -> None:
    """Analyse, or audit, unless the record is there; an interrupted audit continues after its last group."""
    options = options or Options()
    if store.has_analysis(run, analysis):
        return
    with locked(run, options, store.analysis_path(run, analysis).stem):
        if not store.has_analysis(run, analysis):
            with memory_explained(run):
                _analyse(run, analysis, options)


def _analyse(run: Run, analysis: Analysis, options: Options) -> None:
    digest, device = _weights(run, analysis.checkpoint, options), options.torch_device
    what, audits = f"{analysis.checkpoint} {analysis.kind}", analysis.kind == "audit"
    options.report(run_id(run), what, 0, 1)
    if audits:
        train_surrogate(run, analysis.checkpoint, options)
    model, data = load_model(run, analysis.checkpoint, options), data_of(run, device)
    started = time.monotonic()
    if audits:
        record, arrays = audit_run(run, analysis, model, data, options)
    else:
        seconds = None if run.imported else float(store.history(run)["seconds"].median())
        record, arrays = analyse(model, run, analysis, data, device=device, seconds_per_epoch=seconds, weights=digest)
    record |= {"weights": digest, "seconds": round(time.monotonic() - started, 3)}
    store.save_analysis(run, analysis, record | {"hardware": hardware.describe(device)}, **arrays)
    if audits:
        partial_path(run, analysis).unlink(missing_ok=True)  # not before: a kill in between would lose its groups
    options.report(run_id(run), what, 1, 1)
