"""Train or load: a complete record is never touched, weights that are gone come back."""

import logging
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from fsr import distributed, hardware, paths, store, weights
from fsr.config import Run, run_id
from fsr.errors import CorruptFile, MissingRecord
from fsr.files import provenance, save_json, sha256
from fsr.models import model_of
from fsr.runs.base import Options, data_of, locked
from fsr.train import Trainer, Watch, fit

log = logging.getLogger("fsr")


def state_path(run: Run) -> Path:
    """Everything a resumed training needs, in one file, so that a kill cannot leave two halves."""
    return paths.checkpoint_dir(run_id(run)) / "state.safetensors"


def weights_path(run: Run, checkpoint: str) -> Path:
    """results/checkpoints/<id>/<checkpoint>.safetensors."""
    return paths.checkpoint_dir(run_id(run)) / f"{checkpoint}.safetensors"


def save_checkpoint(trainer: Trainer) -> dict[str, str]:
    """Resume state first, then the named weights; returns their digests."""
    run = trainer.run
    weights.save_tensors(state_path(run), trainer.tensors(), asdict(trainer.progress))
    return {
        kind: weights.save_tensors(weights_path(run, kind), tensors, {"run_id": run_id(run), "checkpoint": kind})
        for kind, tensors in trainer.checkpoints().items()
    }


def _finish(trainer: Trainer, digests: dict[str, str], started: str) -> None:
    run = trainer.run
    history = store.save_history(run, trainer.progress.rows)
    record = provenance() | {
        "run_id": run_id(run),
        "hardware": hardware.describe(trainer.device),
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(trainer.progress.seconds, 3),
        "steps": trainer.progress.step,
        "best_epoch": trainer.progress.best_epoch or None,
        "switches": trainer.crafter.switches,
        "processes": distributed.size(),
        "checkpoints": digests,
        "history_sha256": sha256(history),
    }
    save_json(paths.run_dir(run_id(run)) / "env.json", record)


def _trainer(run: Run, options: Options) -> Trainer:
    device = options.torch_device
    trainer = Trainer(run, data_of(run, device), device=device, switches=dict(options.switches))
    if distributed.decide(state_path(run).exists()):
        trainer.restore(*weights.load_tensors(state_path(run)))
        log.info("%s resumes in epoch %d", run_id(run), trainer.progress.epoch)
    return trainer


def _train(run: Run, options: Options) -> None:
    """Train or resume; a record that is already complete is left as it is, only the weights come back."""
    if distributed.rank():
        fit(_trainer(run, options), Watch(interrupted=options.interrupted))  # rank 0 writes, shows and minds the time
        return
    known = store.is_trained(run)
    store.save_config(run)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    trainer = _trainer(run, options)
    digests: dict[str, str] = {}

    def on_epoch(trainer: Trainer) -> None:
        nonlocal digests
        digests = save_checkpoint(trainer)
        if not known:
            store.save_history(run, trainer.progress.rows)
        if options.tensorboard:
            _tensorboard(run, trainer.progress.rows[-1])

    def on_batch(done: int, of: int) -> None:
        epoch = trainer.progress.epoch
        options.report(run_id(run), f"epoch {epoch}/{run.epochs}", (epoch - 1) * of + done, run.epochs * of)

    left = None if options.deadline is None else time.monotonic() + options.deadline - time.time()
    watch = Watch(on_batch=on_batch, on_stop=save_checkpoint, deadline=left, interrupted=options.interrupted)
    fit(trainer, watch, on_epoch=on_epoch)
    digests = digests or save_checkpoint(trainer)
    if not known:
        _finish(trainer, digests, started)
    else:
        recorded = store.environment(run)["checkpoints"]
        if recorded != digests:
            log.warning("%s: retrained weights differ from the recorded ones (another machine or version)", run_id(run))


def _tensorboard(run: Run, row: dict) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(paths.results() / "tensorboard" / run_id(run))) as writer:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])


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


def ensure_weights(run: Run, checkpoint: str, options: Options) -> str:
    """Digest of the checkpoint's weights, trained again when the file is gone; call it under the run's lock."""
    path = weights_path(run, checkpoint)
    if checkpoint == "best" and run.holdout == 0:
        raise MissingRecord(f"{run_id(run)} has no `best`: holdout is 0, as in the authors' training; use last or ema")
    if not path.exists() and run.imported is not None:
        raise MissingRecord(f"{path} is gone; type `python -m fsr import-official FILE` again (file {run.imported})")
    if not path.exists():
        options.check()
        _train(run, options)
    if not path.exists():
        raise CorruptFile(
            f"{path} is missing although the training is complete; move state.safetensors away to retrain"
        )
    return weights.digest_of(path)


def load_model(run: Run, checkpoint: str = "last", options: Options | None = None):
    """The run's network with the checkpoint's weights, in eval mode, trained first when its weights are gone."""
    options = options or Options()
    if not weights_path(run, checkpoint).exists():
        with locked(run, options):
            ensure_weights(run, checkpoint, options)
    device = options.torch_device
    model = model_of(run, num_classes=data_of(run).classes)
    weights.load_into(model, weights_path(run, checkpoint))
    return model.to(device).eval()
