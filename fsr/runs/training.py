"""Train or load: a complete record is never touched, weights that are gone come back."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from fsr import files, hardware, store
from fsr.config import DATASETS, FSRSpec, Run, for_dataset, replace, run_id
from fsr.files import CorruptFile, FSRError, MissingRecord, UsageError, provenance, read_bytes, save_json, sha256
from fsr.models import Classifier, load_official, model_of
from fsr.runs.options import DEFAULT, Options, data_of, once, same_images
from fsr.store.weights import digest, digest_of, load_tensors, save_tensors
from fsr.train import Callbacks, Trainer, distributed, fit


def weights_path(run: Run, checkpoint: str) -> Path:
    """results/checkpoints/<id>/<checkpoint>.safetensors; checkpoint: last, best or ema."""
    return files.checkpoint_dir(run_id(run)) / f"{checkpoint}.safetensors"


def state_path(run: Run) -> Path:
    """Everything a resumed training needs, in one file, so that a kill cannot leave two halves."""
    return weights_path(run, "state")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_state(trainer: Trainer) -> None:
    """Write what a resumed training needs; FSRError, and the file stays as it is, when something is not finite."""
    run, progress = trainer.run, trainer.progress
    values = (*trainer.stepper.sums.values(), *trainer.model.state_dict().values())
    if not all(value.isfinite().all() for value in values):
        where = f"losses or weights are not finite in epoch {progress.epoch - (not progress.batch)} or before"
        raise FSRError(f"{where}; the last good checkpoint is kept: lower lr, or set precision to float32")
    save_tensors(state_path(run), trainer.tensors(), asdict(progress) | {"run_id": run_id(run)})


def _save_weights(trainer: Trainer, recorded: dict[str, str]) -> dict[str, str]:
    """Write the weights and return their digests; the recorded file stays, and another training's gets a new name."""
    digests = dict[str, str]()
    for kind, tensors in trainer.checkpoints().items():
        path, meta = weights_path(trainer.run, kind), {"run_id": run_id(trainer.run), "checkpoint": kind}
        there = digest_of(path) if path.exists() else ""
        keeps = there in (recorded.get(kind), digest(tensors, json.dumps(meta, sort_keys=True)))
        if there and not keeps:
            path.rename(path.with_name(f"{kind}-{there[:10]}.safetensors"))
        digests[kind] = there if keeps else save_tensors(path, tensors, meta)
    return digests


def _fit(trainer: Trainer, options: Options, *, new: bool) -> None:
    run, progress, events = trainer.run, trainer.progress, None
    if options.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(str(files.results() / "tensorboard" / run_id(run)))

    def on_epoch(trainer: Trainer) -> None:
        row = progress.rows[-1]
        if progress.epoch <= run.epochs:
            save_state(trainer)
        if new:
            store.save_history(run, progress.rows)
        if events:
            for name in row.keys() - {"epoch"}:
                events.add_scalar(name.replace("_", "/", 1), row[name], row["epoch"])
            events.flush()

    def on_batch(done: int, of: int) -> None:
        what, before = f"epoch {progress.epoch}/{run.epochs}", (progress.epoch - 1) * of
        options.report(run_id(run), what, before + done, run.epochs * of)

    fit(trainer, Callbacks(on_epoch, on_batch, save_state, options.deadline, options.interrupted))


def _train(run: Run, options: Options) -> None:
    if run.imported is not None:  # what it lacks no training can give
        command = f"python -m fsr import-official FILE --backbone {run.backbone} --dataset {run.dataset}"
        raise MissingRecord(f"{run_id(run)} is not whole; type `{command}` again (file {run.imported})")
    origin, new, path = provenance(), not store.is_trained(run), state_path(run)
    recorded = {} if new else store.environment(run).get("checkpoints", {})
    trainer = Trainer(run, data_of(run, options.torch_device), device=options.torch_device)
    store.save_config(run)
    same_images(run, trainer.data, keep=True)
    if distributed.decide(path.exists()):
        tensors, saved = load_tensors(path)
        if (owner := saved.pop("run_id", run_id(run))) != run_id(run):
            raise CorruptFile(f"{path} belongs to {owner}; move it away to train again")
        trainer.restore(tensors, saved)
    if distributed.rank():  # rank 0 writes, reports and minds the time
        fit(trainer, Callbacks(interrupted=options.interrupted))
        return
    progress, sittings = trainer.progress, trainer.progress.sittings
    if progress.epoch <= run.epochs or not sittings:  # a resumed run may continue with other code
        segment = origin | {"started": _now(), "first_step": progress.step, "processes": distributed.size()}
        segment |= {"hardware": hardware.describe(trainer.device), "switches": trainer.crafter.switches}
        sittings.append(segment)
    _fit(trainer, options, new=new)
    save_state(trainer)
    digests = _save_weights(trainer, recorded)
    if not new:
        return
    record = sittings[-1] | {"run_id": run_id(run), "started": sittings[0]["started"], "finished": _now()}
    record |= {"seconds": round(progress.seconds, 3), "steps": progress.step, "best_epoch": progress.best_epoch or None}
    if record.pop("first_step") or len(sittings) > 1:
        record["sittings"] = sittings  # code, hardware and switches above are the last segment's
    record |= {"checkpoints": digests, "history_sha256": sha256(store.save_history(run, progress.rows))}
    save_json(files.run_dir(run_id(run)) / "env.json", record)


def ensure_trained(run: Run, options: Options = DEFAULT) -> None:
    """Train the run unless its record is complete; resumes where an earlier process stopped."""
    once(run, options, lambda: store.is_trained(run), lambda: _train(run, options))


def has_weights(run: Run, checkpoint: str) -> bool:
    """Are the weights of the finished training here?"""
    return store.is_trained(run) and weights_path(run, checkpoint).exists()


def load_model(run: Run, checkpoint: str = "last", options: Options = DEFAULT) -> Classifier:
    """The run's network with the checkpoint's weights, in eval mode, trained first when its weights are not here."""
    path = weights_path(run, checkpoint)
    if checkpoint == "best" and not run.holdout:
        raise UsageError(f"{run_id(run)} holds no images out, so it has no best weights")
    once(run, options, lambda: has_weights(run, checkpoint), lambda: _train(run, options))
    tensors, meta = load_tensors(path)
    if (meta.get("run_id"), meta.get("checkpoint")) != (run_id(run), checkpoint):
        raise CorruptFile(f"{path} holds the weights of {meta.get('run_id')}, {meta.get('checkpoint')}; move it away")
    model = model_of(run, None if run.dataset in DATASETS else data_of(run, options.torch_device).classes)
    model.load_state_dict(tensors)
    return model.to(options.torch_device).eval()


def import_official(path: Path, backbone: str, dataset: str) -> str:
    """A file of the authors' code (AT+FSR, last epoch) becomes a run like any other; returns its id, or UsageError."""
    info = files.choose("data set", dataset, DATASETS)
    run = for_dataset(dataset, backbone=backbone, module=FSRSpec(), holdout=0, precision="float32")
    model = load_official(path, backbone)
    with torch.no_grad():
        classes = model(torch.zeros(2, 3, info.size, info.size)).shape[1]
    if classes != info.classes:
        raise UsageError(f"{path} has {classes} classes and {dataset} has {info.classes}: give another --dataset")
    digest = sha256(read_bytes(path))
    run = replace(run, imported=digest[:16])
    store.save_config(run)
    if not weights_path(run, "last").exists():
        save_tensors(weights_path(run, "last"), model.state_dict(), {"run_id": run_id(run), "checkpoint": "last"})
    if not store.is_trained(run):
        record = {"run_id": run_id(run), "imported": path.name, "imported_sha256": digest, "checkpoints": {}}
        record |= {"finished": _now(), "seconds": None} | provenance()
        save_json(files.run_dir(run_id(run)) / "env.json", record)
    return run_id(run)
