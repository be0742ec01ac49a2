"""Train or load: a complete record is never touched, weights that are gone come back."""

import logging
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fsr import files, hardware, store
from fsr.config import DATASETS, FSRSpec, Run, for_dataset, replace, run_id
from fsr.files import CorruptFile, Diverged, MissingRecord, UsageError, provenance, read_bytes, save_json, sha256
from fsr.models import Classifier, load_official, model_of
from fsr.runs.options import Options, data_of, once
from fsr.store.weights import digest_of, load_tensors, meta_of, save_tensors
from fsr.train import Callbacks, Trainer, distributed, fit

log = logging.getLogger("fsr")
SLOW_SAVE = 0.5  # seconds; a slower checkpoint is not written after every epoch, but takes 5 % of the time


def weights_path(run: Run, checkpoint: str) -> Path:
    """results/checkpoints/<id>/<checkpoint>.safetensors; checkpoint: last, best or ema."""
    return files.checkpoint_dir(run_id(run)) / f"{checkpoint}.safetensors"


def state_path(run: Run) -> Path:
    """Everything a resumed training needs, in one file, so that a kill cannot leave two halves."""
    return weights_path(run, "state")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save_checkpoint(trainer: Trainer, recorded: dict[str, str]) -> dict[str, str]:
    """Write resume state and weights, but for those recorded; returns digests.  Diverged when they are not finite."""
    run, progress, sums = trainer.run, trainer.progress, trainer.stepper.sums
    good = [torch.isfinite(value).all() for value in (*sums.values(), *trainer.model.state_dict().values())]
    if not all(good):
        where = f"epoch {progress.epoch - (not progress.batch)}, at step {progress.step} of the training or before"
        advice = "the last good checkpoint is kept: lower lr, or set precision to float32"
        raise Diverged(f"losses or weights are not finite in {where}; {advice}")
    save_tensors(state_path(run), trainer.tensors(), asdict(progress) | {"run_id": run_id(run)})
    unfinished, digests = {"unfinished": True} if progress.epoch <= run.epochs else {}, {}
    for kind, tensors in trainer.checkpoints().items():
        path, mark = weights_path(run, kind), recorded.get(kind)
        if not (mark and path.exists() and digest_of(path) == mark):
            mark = save_tensors(path, tensors, {"run_id": run_id(run), "checkpoint": kind} | unfinished)
        digests[kind] = mark
    return digests


def _trainer(run: Run, options: Options) -> Trainer:
    path = state_path(run)
    trainer = Trainer(run, data_of(run, options.torch_device), device=options.torch_device)
    if distributed.decide(path.exists()):
        tensors, progress = load_tensors(path)
        if (owner := progress.pop("run_id", run_id(run))) != run_id(run):
            raise CorruptFile(f"{path} belongs to {owner}; move it away to train again")
        progress.pop("switches", None)  # of older versions
        trainer.restore(tensors, progress)
        log.info("%s resumes in epoch %d", run_id(run), trainer.progress.epoch)
    return trainer


def _fit(trainer: Trainer, options: Options, recorded: dict[str, str], *, new: bool) -> None:
    run, progress, due = trainer.run, trainer.progress, 0.0
    events: Any = nullcontext()
    if options.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(str(files.results() / "tensorboard" / run_id(run)))

    def on_epoch(trainer: Trainer) -> None:
        nonlocal due
        row, began = progress.rows[-1], time.monotonic()
        if progress.epoch <= run.epochs and began >= due:
            save_checkpoint(trainer, recorded)
            cost = time.monotonic() - began
            due = began + (20 * cost if cost > SLOW_SAVE else 0)
        if new:
            store.save_history(run, progress.rows)
        if writer:
            for name in row.keys() - {"epoch"}:
                writer.add_scalar(name.replace("_", "/", 1), row[name], row["epoch"])
            writer.flush()

    def on_batch(done: int, of: int) -> None:
        what, before = f"epoch {progress.epoch}/{run.epochs}", (progress.epoch - 1) * of
        options.report(run_id(run), what, before + done, run.epochs * of)

    with events as writer:
        on_stop = partial(save_checkpoint, recorded=recorded)
        fit(trainer, Callbacks(on_epoch, on_batch, on_stop, options.deadline, options.interrupted))


def _train(run: Run, options: Options) -> None:
    if distributed.rank():  # rank 0 writes, reports and minds the time
        fit(_trainer(run, options), Callbacks(interrupted=options.interrupted))
        return
    origin, new = provenance(), not store.is_trained(run)
    recorded = {} if new else store.environment(run).get("checkpoints", {})
    store.save_config(run)
    for left in files.checkpoint_dir(run_id(run)).glob(".*.safetensors*.tmp"):  # of writes that were killed
        left.unlink(missing_ok=True)
    trainer = _trainer(run, options)
    progress = trainer.progress
    if progress.epoch <= run.epochs or not progress.sittings:  # a resumed run may continue with other code
        segment = origin | {"started": _now(), "first_step": progress.step, "processes": distributed.size()}
        segment |= {"hardware": hardware.describe(trainer.device), "switches": trainer.crafter.switches}
        progress.sittings.append(segment)
    _fit(trainer, options, recorded, new=new)
    digests = save_checkpoint(trainer, recorded)
    record = progress.sittings[-1] | {"run_id": run_id(run), "started": progress.sittings[0]["started"]}
    record |= {"finished": _now(), "seconds": round(progress.seconds, 3), "steps": progress.step}
    record |= {"best_epoch": progress.best_epoch or None}
    if record.pop("first_step") or len(progress.sittings) > 1:
        record["sittings"] = progress.sittings  # code, hardware and switches above are the last segment's
    folder = files.run_dir(run_id(run))
    if new:
        history = sha256(store.save_history(run, progress.rows))
        save_json(folder / "env.json", record | {"checkpoints": digests, "history_sha256": history})
    elif other := {kind: digest for kind, digest in digests.items() if digest != recorded.get(kind)}:
        log.warning("%s: retrained weights differ from the recorded ones (another machine or version)", run_id(run))
        path = folder / f"retrained-{next(iter(other.values()))[:12]}.json"
        if not path.exists():
            save_json(path, record | {"checkpoints": other, "history": progress.rows})


def ensure_trained(run: Run, options: Options | None = None) -> None:
    """Train the run unless its record is complete; resumes where an earlier process stopped."""
    chosen = options or Options()
    once(run, chosen, lambda: store.is_trained(run), lambda: _train(run, chosen))


def has_weights(run: Run, checkpoint: str) -> bool:
    """Are the weights of the finished training here?  An interrupted one left its own under the same names."""
    path = weights_path(run, checkpoint)
    if not path.exists() or run.imported is not None:
        return path.exists()
    return store.is_trained(run) and not meta_of(path).get("unfinished")


def load_model(run: Run, checkpoint: str = "last", options: Options | None = None) -> Classifier:
    """The run's network with the checkpoint's weights, in eval mode, trained first when its weights are not here."""
    chosen, path = options or Options(), weights_path(run, checkpoint)
    if checkpoint == "best" and run.holdout == 0:
        raise MissingRecord(f"{run_id(run)} has no `best`: holdout is 0, as in the authors' training; use last or ema")
    if run.imported is not None and not path.exists():
        command = f"python -m fsr import-official FILE --backbone {run.backbone} --dataset {run.dataset}"
        raise MissingRecord(f"{path} is gone; type `{command}` again (file {run.imported})")
    if store.is_trained(run) and not has_weights(run, checkpoint):
        log.warning("%s: no %s weights here, so it is trained again; its record stays", run_id(run), checkpoint)
    once(run, chosen, lambda: has_weights(run, checkpoint), lambda: _train(run, chosen))
    tensors, meta = load_tensors(path)
    if (meta.get("run_id"), meta.get("checkpoint")) != (run_id(run), checkpoint):
        raise CorruptFile(f"{path} holds the weights of {meta.get('run_id')}, {meta.get('checkpoint')}; move it away")
    classes = None if run.dataset in DATASETS else data_of(run, chosen.torch_device).classes
    model = model_of(run, num_classes=classes)
    model.load_state_dict(tensors)
    return model.to(chosen.torch_device).eval()


def import_official(path: Path, backbone: str, dataset: str) -> str:
    """A file of the authors' code (AT+FSR, last epoch) becomes a run like any other; returns its id, or UsageError."""
    path = Path(path)
    run = for_dataset(dataset, backbone=backbone, module=FSRSpec(), holdout=0, precision="float32")
    model, info = load_official(path, backbone), DATASETS[dataset]
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
        record: dict = {"run_id": run_id(run), "imported": path.name, "imported_sha256": digest, "checkpoints": {}}
        record |= {"finished": _now(), "seconds": None, **provenance()}
        save_json(files.run_dir(run_id(run)) / "env.json", record)
    return run_id(run)
