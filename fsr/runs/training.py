"""Train or load: a complete record is never touched, weights that are gone come back."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from fsr import files, hardware, store
from fsr.config import DATASETS, Run, run_id
from fsr.files import CorruptFile, MissingRecord, provenance, save_json, sha256, sweep
from fsr.models import model_of
from fsr.runs.base import Options, data_of, locked, memory_explained
from fsr.runs.board import board
from fsr.runs.checkpoints import save_checkpoint, state_path, weights_path
from fsr.store import weights
from fsr.train import Callbacks, Trainer, distributed, fit

log = logging.getLogger("fsr")


def _record(trainer: Trainer, digests: dict[str, str], half: bool) -> dict:
    """What a finished training says of itself: code, machine, switches, time, and the weights that it ended in."""
    sittings = trainer.progress.sittings or [_sitting(trainer)]
    record = sittings[-1] | {
        "run_id": run_id(trainer.run),
        "started": sittings[0]["started"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(trainer.progress.seconds, 3),
        "steps": trainer.progress.step,
        "best_epoch": trainer.progress.best_epoch or None,
        "half": half,
        "checkpoints": digests,
    }
    first_step = record.pop("first_step")
    if len(sittings) > 1 or first_step:
        record["sittings"] = sittings  # code, hardware and switches above are the last one's
    return record


def _finish(trainer: Trainer, digests: dict[str, str], half: bool) -> None:
    run = trainer.run
    history = store.save_history(run, trainer.progress.rows)
    record = _record(trainer, digests, half) | {"history_sha256": sha256(history)}
    save_json(files.run_dir(run_id(run)) / "env.json", record)


def _differs(trainer: Trainer, digests: dict[str, str], half: bool) -> None:
    """A run on record was trained again and ended in other weights: a record of its own, beside the first one's.

    digests: of the weights that differ; a file that still holds the first training's was left as it is.
    """
    run = trainer.run
    log.warning("%s: retrained weights differ from the recorded ones (another machine or version)", run_id(run))
    path = store.retrained_path(run, next(iter(digests.values())))
    if not path.exists():
        save_json(path, _record(trainer, digests, half) | {"history": trainer.progress.rows})


def _sitting(trainer: Trainer, sharing: int = 1) -> dict:
    """With what this process trains, and from which step on: a run that was stopped may go on with other code."""
    shared = {"sharing": sharing} if sharing > 1 else {}
    return (
        provenance()
        | shared
        | {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "first_step": trainer.progress.step,
            "hardware": hardware.describe(trainer.device),
            "switches": trainer.crafter.switches,  # the crafter's own, final after its first batch
            "processes": distributed.size(),
        }
    )


def _trainer(run: Run, options: Options) -> Trainer:
    device = options.torch_device
    trainer = Trainer(run, data_of(run, device), device=device, switches=dict(options.switches))
    if distributed.decide(state_path(run).exists()):
        _restore(trainer)
        log.info("%s resumes in epoch %d", run_id(run), trainer.progress.epoch)
    return trainer


def _restore(trainer: Trainer) -> None:
    path = state_path(trainer.run)
    tensors, progress = weights.load_tensors(path)
    owner, switches = progress.pop("run_id", run_id(trainer.run)), progress.pop("switches", {})
    try:
        if owner != run_id(trainer.run):
            raise ValueError(f"it belongs to {owner}")
        trainer.restore(tensors, progress)
        if trainer.progress.epoch > trainer.run.epochs:  # nothing left to train: what the training used is on record
            trainer.crafter.switches.update(switches)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:160]
        raise CorruptFile(f"{path} does not fit this run ({reason}); move it away to train again") from None


class _Pace:
    """When to save: after every epoch, but with at most a twentieth of the time once a save takes over half a second.

    The state of a network of 11 million weights took 3.5 s to write (a 2-core CPU), and on a fast GPU an epoch of it
    should take a few seconds only (estimated, not measured).
    """

    def __init__(self, cheap: float = 0.5, share: float = 0.05):
        self.cheap, self.share, self.cost, self.since = cheap, share, 0.0, time.monotonic()

    def due(self) -> bool:
        return self.cost <= self.cheap or time.monotonic() - self.since >= self.cost / self.share

    def timed(self, save: Callable[[], dict[str, str]]) -> dict[str, str]:
        began = time.monotonic()
        found = save()
        self.since = time.monotonic()
        self.cost = self.since - began
        return found


def _train(run: Run, options: Options) -> None:
    """Train or resume; a record that is already complete is left as it is, only the weights come back."""
    if distributed.rank():
        with memory_explained(run):
            fit(
                _trainer(run, options), Callbacks(interrupted=options.interrupted)
            )  # rank 0 writes, shows, minds the time
        return
    provenance()  # of the code as it was loaded, not as it lies there when all is done
    known = store.is_trained(run)
    before = store.environment(run) if known else {}
    half = before.get("half", False) if known else options.half
    recorded = before.get("checkpoints", {})
    store.save_config(run)
    for path in (state_path(run), *(weights_path(run, kind) for kind in ("last", "best", "ema"))):
        sweep(path)
    trainer = _trainer(run, options)
    if trainer.progress.epoch <= run.epochs:
        trainer.progress.sittings.append(_sitting(trainer, options.sharing))
    digests: dict[str, str] = {}
    pace = _Pace()

    def on_epoch(trainer: Trainer) -> None:
        nonlocal digests
        if trainer.progress.epoch > run.epochs or pace.due():
            digests = pace.timed(lambda: save_checkpoint(trainer, half=half, recorded=recorded))
        if not known:
            store.save_history(run, trainer.progress.rows)
        show(trainer.progress.rows[-1])

    def on_stop(trainer: Trainer) -> None:
        save_checkpoint(trainer, recorded=recorded)

    def on_batch(done: int, of: int) -> None:
        epoch = trainer.progress.epoch
        options.report(run_id(run), f"epoch {epoch}/{run.epochs}", (epoch - 1) * of + done, run.epochs * of)

    told = {"on_epoch": on_epoch, "on_batch": on_batch, "on_stop": on_stop}
    callbacks = Callbacks(**told, deadline=options.deadline, interrupted=options.interrupted)
    with memory_explained(run), board(run, wanted=options.tensorboard) as show:
        fit(trainer, callbacks)
    digests = digests or save_checkpoint(trainer, half=half, recorded=recorded)
    if not known:
        _finish(trainer, digests, half)
    elif other := {kind: digest for kind, digest in digests.items() if digest != recorded.get(kind)}:
        _differs(trainer, other, half)


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
    """Are the weights of the finished training here?  One that was stopped left its own under the same names."""
    path = weights_path(run, checkpoint)
    if not path.exists() or run.imported is not None:
        return path.exists()
    if not store.is_trained(run):
        return False
    if weights.digest_of(path) == store.environment(run).get("checkpoints", {}).get(checkpoint):
        return True
    if weights.meta_of(path).get("unfinished"):
        return False
    state = state_path(run)  # being trained again, or trained again elsewhere
    return not state.exists() or weights.meta_of(state).get("epoch", 0) > run.epochs


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
            log.warning(
                "%s: its %s weights are not here, so it is trained again; its record stays", run_id(run), checkpoint
            )
        _train(run, options)
    if not path.exists():
        raise CorruptFile(
            f"{path} is missing although the training is complete; move state.safetensors away to retrain"
        )
    return weights.digest_of(path)


def load_model(run: Run, checkpoint: str = "last", options: Options | None = None):
    """The run's network with the checkpoint's weights, in eval mode, trained first when its weights are gone."""
    options = options or Options()
    if not has_weights(run, checkpoint):
        with locked(run, options):
            ensure_weights(run, checkpoint, options)
    device = options.torch_device
    known = run.dataset in DATASETS  # else the data say it: read to where they are used, not a second time
    model = model_of(run, num_classes=None if known else data_of(run, device).classes)
    path = weights_path(run, checkpoint)
    meta = weights.load_into(model, path)
    if (meta.get("run_id"), meta.get("checkpoint")) != (run_id(run), checkpoint):
        raise CorruptFile(f"{path} holds the weights of {meta.get('run_id')}, {meta.get('checkpoint')}; move it away")
    return model.to(device).eval()
