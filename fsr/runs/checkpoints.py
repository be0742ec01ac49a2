"""What lies in a run's folder of checkpoints, and when it may be replaced."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from fsr import files
from fsr.config import Run, run_id
from fsr.files import Diverged
from fsr.store import weights
from fsr.train import Trainer


def state_path(run: Run) -> Path:
    """Everything a resumed training needs, in one file, so that a kill cannot leave two halves."""
    return files.checkpoint_dir(run_id(run)) / "state.safetensors"


def weights_path(run: Run, checkpoint: str) -> Path:
    """results/checkpoints/<id>/<checkpoint>.safetensors."""
    return files.checkpoint_dir(run_id(run)) / f"{checkpoint}.safetensors"


def _refuse_diverged(trainer: Trainer) -> None:
    """A stop, or an epoch's last step, may find losses or weights that are not finite: they replace nothing good."""
    progress, sums = trainer.progress, trainer.stepper.sums
    good = [torch.isfinite(v).all() for v in trainer.model.state_dict().values() if v.is_floating_point()]
    if (sums and float(sums["bad"])) or not bool(torch.stack(good).all()):  # all at once: each look stops a GPU
        epoch = progress.epoch if progress.batch else progress.epoch - 1
        raise Diverged(
            f"losses or weights are not finite in epoch {epoch}, at step {progress.step} of the training or before; "
            "the last good checkpoint is kept: lower lr, or set precision to float32"
        )


def _rounded(tensors: dict[str, Tensor], parameters: set[str]) -> dict[str, Tensor]:
    """Parameters in float16, but for one beyond its range; BatchNorm's statistics and counters as they are."""
    half = {k: v.half() for k, v in tensors.items() if k in parameters}
    return tensors | {k: v for k, v in half.items() if bool(torch.isfinite(v).all())}


def save_checkpoint(trainer: Trainer, *, half: bool = False, recorded: dict[str, str] | None = None) -> dict[str, str]:
    """Resume state and named weights; returns the weights' digests.  Diverged when they are not finite.

    Weights are taken for final once the state says that the training is finished: it is written first while that is
    not so, and last when it is. half: the named weights of a finished training are kept in float16; the state is never
    rounded. recorded: digests of a run that is on record; a file that holds these weights is left as it is while others
    are trained again.
    """
    _refuse_diverged(trainer)
    run, named = trainer.run, trainer.checkpoints()
    final = trainer.progress.epoch > run.epochs

    def save_state() -> None:
        own = {"run_id": run_id(run), "switches": trainer.crafter.switches}
        weights.save_tensors(state_path(run), trainer.tensors(), asdict(trainer.progress) | own)

    if half and final:
        parameters = {name for name, _ in trainer.model.named_parameters()}
        named = {kind: _rounded(tensors, parameters) for kind, tensors in named.items()}
    if not final:
        save_state()
    found = {}
    for kind, tensors in named.items():
        path = weights_path(run, kind)
        known = (recorded or {}).get(kind)
        if known is not None and path.exists() and weights.digest_of(path) == known:
            found[kind] = known
        else:
            own = {"run_id": run_id(run), "checkpoint": kind} | ({} if final else {"unfinished": True})
            found[kind] = weights.save_tensors(path, tensors, own)
    if final:
        save_state()
    return found
