"""Train or load: a complete record is never touched, weights that are gone come back."""

import contextlib
import logging
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fsr import files, hardware, store
from fsr.config import DATASETS, Run, run_id
from fsr.files import CorruptFile, Diverged, MissingRecord, provenance, save_json, sha256, sweep
from fsr.models import Classifier, model_of
from fsr.runs.options import Options, data_of, locked, memory_explained
from fsr.store.weights import digest_of, load_into, load_tensors, meta_of, save_tensors
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


def _refuse_diverged(trainer: Trainer) -> None:
    progress, sums = trainer.progress, trainer.stepper.sums
    good = [torch.isfinite(v).all() for v in trainer.model.state_dict().values() if v.is_floating_point()]
    if (sums and float(sums["bad"])) or not bool(torch.stack(good).all()):
        epoch = progress.epoch if progress.batch else progress.epoch - 1
        raise Diverged(
            f"losses or weights are not finite in epoch {epoch}, at step {progress.step} of the training or before; "
            "the last good checkpoint is kept: lower lr, or set precision to float32"
        )


def save_checkpoint(trainer: Trainer, recorded: dict[str, str]) -> dict[str, str]:
    """Write resume state and named weights; returns the weights' digests.  Diverged when they are not finite.

    recorded: digests of a run that is on record; a file that holds these weights is left as it is.
    """
    _refuse_diverged(trainer)
    run, digests = trainer.run, {}
    save_tensors(state_path(run), trainer.tensors(), asdict(trainer.progress) | {"run_id": run_id(run)})
    unfinished = {"unfinished": True} if trainer.progress.epoch <= run.epochs else {}
    for kind, tensors in trainer.checkpoints().items():
        path = weights_path(run, kind)
        digests[kind] = recorded.get(kind, "")
        if not (digests[kind] and path.exists() and digest_of(path) == digests[kind]):
            digests[kind] = save_tensors(path, tensors, {"run_id": run_id(run), "checkpoint": kind} | unfinished)
    return digests


def _segment(trainer: Trainer) -> dict:
    """With what this process trains, and from which step on: a resumed run may continue with other code."""
    segment = provenance() | {"started": _now(), "first_step": trainer.progress.step, "processes": distributed.size()}
    # the crafter's own switches, final after its first batch
    return segment | {"hardware": hardware.describe(trainer.device), "switches": trainer.crafter.switches}


def _record(trainer: Trainer, digests: dict[str, str]) -> dict:
    """What a finished training records: code, machine, switches, time, and the digests of its weights."""
    progress = trainer.progress
    segments = progress.sittings or [_segment(trainer)]
    record = segments[-1] | {"run_id": run_id(trainer.run), "started": segments[0]["started"], "finished": _now()}
    record |= {"seconds": round(progress.seconds, 3), "steps": progress.step, "checkpoints": digests}
    record["best_epoch"] = progress.best_epoch or None
    if record.pop("first_step") or len(segments) > 1:
        record["sittings"] = segments  # code, hardware and switches above are the last segment's
    return record


def _trainer(run: Run, options: Options) -> Trainer:
    """A new trainer, or one at the place where the last process stopped."""
    device, path = options.torch_device, state_path(run)
    trainer = Trainer(run, data_of(run, device), device=device, switches=dict(options.switches))
    if distributed.decide(path.exists()):
        tensors, progress = load_tensors(path)
        owner, _ = progress.pop("run_id", run_id(run)), progress.pop("switches", None)
        try:
            if owner != run_id(run):
                raise ValueError(f"it belongs to {owner}")
            trainer.restore(tensors, progress)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            reason = str(error).strip().splitlines()[-1].strip()[:160]
            raise CorruptFile(f"{path} does not fit this run ({reason}); move it away to train again") from None
        log.info("%s resumes in epoch %d", run_id(run), trainer.progress.epoch)
    return trainer


def _fit(trainer: Trainer, options: Options, recorded: dict[str, str], *, new: bool) -> dict[str, str]:
    """Train to the last epoch with checkpoints, history and reports on the way; returns the weights' digests."""
    run, digests, cost, saved = trainer.run, {}, 0.0, time.monotonic()
    events: Any = contextlib.nullcontext()
    if options.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(str(files.results() / "tensorboard" / run_id(run)))

    def on_epoch(trainer: Trainer) -> None:
        nonlocal digests, cost, saved
        began, row = time.monotonic(), trainer.progress.rows[-1]
        if trainer.progress.epoch > run.epochs or cost <= SLOW_SAVE or began - saved >= 20 * cost:
            digests = save_checkpoint(trainer, recorded)
            saved = time.monotonic()
            cost = saved - began
        if new:
            store.save_history(run, trainer.progress.rows)
        if writer:
            for name in row.keys() - {"epoch"}:
                writer.add_scalar(name.replace("_", "/", 1), row[name], row["epoch"])
            writer.flush()

    def on_batch(done: int, of: int) -> None:
        epoch = trainer.progress.epoch
        options.report(run_id(run), f"epoch {epoch}/{run.epochs}", (epoch - 1) * of + done, run.epochs * of)

    def on_stop(trainer: Trainer) -> None:
        save_checkpoint(trainer, recorded)

    callbacks = Callbacks(on_epoch, on_batch, on_stop, options.deadline, options.interrupted)
    with memory_explained(run), events as writer:
        fit(trainer, callbacks)
    return digests or save_checkpoint(trainer, recorded)


def _train(run: Run, options: Options) -> None:
    """Train or resume; a record that is already complete is left as it is, only the weights come back."""
    if distributed.rank():  # rank 0 writes, reports and minds the time
        with memory_explained(run):
            fit(_trainer(run, options), Callbacks(interrupted=options.interrupted))
        return
    provenance()  # of the code as it was loaded, not as it lies there when all is done
    new = not store.is_trained(run)
    recorded = {} if new else store.environment(run).get("checkpoints", {})
    store.save_config(run)
    for name in ("state", "last", "best", "ema"):
        sweep(weights_path(run, name))
    trainer = _trainer(run, options)
    if trainer.progress.epoch <= run.epochs:
        trainer.progress.sittings.append(_segment(trainer))
    digests = _fit(trainer, options, recorded, new=new)
    if new:
        history = sha256(store.save_history(run, trainer.progress.rows))
        save_json(files.run_dir(run_id(run)) / "env.json", _record(trainer, digests) | {"history_sha256": history})
    elif other := {kind: digest for kind, digest in digests.items() if digest != recorded.get(kind)}:
        log.warning("%s: retrained weights differ from the recorded ones (another machine or version)", run_id(run))
        path = store.retrained_path(run, next(iter(other.values())))
        if not path.exists():
            save_json(path, _record(trainer, other) | {"history": trainer.progress.rows})


def ensure_trained(run: Run, options: Options | None = None) -> None:
    """Train the run unless its record is complete; resumes where an earlier process stopped."""
    options = options or Options()
    if distributed.decide(store.is_trained(run)):
        return
    with locked(run, options):
        if not distributed.decide(store.is_trained(run)):
            if not distributed.together():  # in a group all stop at the same batch
                options.check()
            _train(run, options)


def has_weights(run: Run, checkpoint: str) -> bool:
    """Are the weights of the finished training here?  An interrupted one left its own under the same names."""
    path = weights_path(run, checkpoint)
    if not path.exists() or run.imported is not None:
        return path.exists()
    return store.is_trained(run) and not meta_of(path).get("unfinished")


def ensure_weights(run: Run, checkpoint: str, options: Options) -> str:
    """Digest of the weights, trained when they are not there or not final; call it under the run's lock."""
    path = weights_path(run, checkpoint)
    if checkpoint == "best" and run.holdout == 0:
        raise MissingRecord(f"{run_id(run)} has no `best`: holdout is 0, as in the authors' training; use last or ema")
    if not path.exists() and run.imported is not None:
        command = f"python -m fsr import-official FILE --backbone {run.backbone} --dataset {run.dataset}"
        raise MissingRecord(f"{path} is gone; type `{command}` again (file {run.imported})")
    if not has_weights(run, checkpoint):
        options.check()
        if store.is_trained(run):
            log.warning("%s: no %s weights here, so it is trained again; its record stays", run_id(run), checkpoint)
        _train(run, options)
    if not path.exists():
        state = state_path(run).name
        raise CorruptFile(f"{path} is missing although the training is complete; move {state} away to retrain")
    return digest_of(path)


def load_model(run: Run, checkpoint: str = "last", options: Options | None = None) -> Classifier:
    """The run's network with the checkpoint's weights, in eval mode, trained first when its weights are gone."""
    options = options or Options()
    if not has_weights(run, checkpoint):
        with locked(run, options):
            ensure_weights(run, checkpoint, options)
    device, path = options.torch_device, weights_path(run, checkpoint)
    model = model_of(run, num_classes=None if run.dataset in DATASETS else data_of(run, device).classes)
    meta = load_into(model, path)
    if (meta.get("run_id"), meta.get("checkpoint")) != (run_id(run), checkpoint):
        raise CorruptFile(f"{path} holds the weights of {meta.get('run_id')}, {meta.get('checkpoint')}; move it away")
    return model.to(device).eval()
