"""The training loop: the authors' recipe, resumable after any batch, writing nothing itself."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fsr.config import Run
from fsr.data import Data, as_float, augment, augmentation, batches
from fsr.files import FSRError, Interrupted, TimeUp
from fsr.models import FSR, model_of
from fsr.models.modes import copied, eval_mode
from fsr.train import distributed
from fsr.train.fast import Crafter
from fsr.train.fold import layout_of
from fsr.train.objectives import Objective, Stepper, draw_start, ema_update, learning_rate, stream_seed

EVAL_BATCH = 500  # held-out images at once


@dataclass(frozen=True)
class Callbacks:
    """What the caller of `fit` is told and asks for; every field may be left out."""

    on_epoch: Callable[["Trainer"], None] = lambda _: None  # after every epoch: save, show
    on_batch: Callable[[int, int], None] = lambda *_: None  # (done, of) within the epoch
    on_stop: Callable[["Trainer"], object] = lambda _: None  # before TimeUp or Interrupted is raised: save
    deadline: float | None = None  # time.monotonic() at which to stop
    interrupted: Callable[[], bool] = lambda: False


@dataclass
class TrainingProgress:
    """Where a training stands; JSON-able, saved beside the tensors."""

    epoch: int = 1  # the epoch under way, from 1
    batch: int = 0  # batches of it that are done
    step: int = 0  # optimiser steps done in all
    seconds: float = 0.0  # of training, over all processes that trained it
    epoch_seconds: float = 0.0
    best_acc: float = -1.0
    best_epoch: int = 0
    rows: list[dict] = field(default_factory=list)
    sittings: list[dict] = field(default_factory=list)  # with what each process began to train, and from which step


class Trainer:
    """A model in training, its averages and optimiser."""

    def __init__(self, run: Run, data: Data, *, device="cpu"):
        self.run, self.data, self.device = run, data, torch.device(device)
        self.progress, processes = TrainingProgress(), distributed.size()
        self.best: dict[str, Tensor] | None = None
        with torch.random.fork_rng([self.device] * (self.device.type == "cuda")):
            torch.manual_seed(stream_seed(run.seed, "init"))
            self.model = model_of(run, num_classes=data.classes).to(self.device)
        if run.sync_bn and processes > 1:
            distributed.synchronise(self.model)
        self.objective = Objective(self.model, run)
        share, some = replace(run, batch=math.ceil(run.batch / processes)), as_float(data.train_x[:2])
        self.crafter = Crafter(self.model, share, self.device, layout=layout_of(self.model, self.device, some))
        # Copied now, in the memory layout that the crafter chose: averaging across two layouts is slow.
        self.ema = copied(self.model).requires_grad_(False).eval()
        self.stepper = Stepper(self.objective, run, self.device)
        self.generator = torch.Generator(self.device)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed training needs, by name: weights, averages, best, momentum and the epoch's sums."""
        states = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "best": self.best or {}}
        momenta = self.stepper.optimizer.state_dict()["state"].items()
        states |= {"momentum": {i: own["momentum_buffer"] for i, own in momenta}, "sums": self.stepper.sums}
        return {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}

    def restore(self, tensors: dict[str, Tensor], progress: dict) -> None:
        """Continue where another Trainer of this run stood: what its `tensors` gave, and its progress."""

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}

        self.model.load_state_dict(part("model/"))
        self.ema.load_state_dict(part("ema/"))
        self.best, parameters = part("best/") or None, list(self.model.parameters())
        for i, momentum in part("momentum/").items():  # in the memory layout of its weights, which files do not keep
            own = self.stepper.optimizer.state[parameters[int(i)]]
            own["momentum_buffer"] = torch.empty_like(parameters[int(i)]).copy_(momentum)
        counted = distributed.rank() == 0  # what a group had summed up counts once
        self.stepper.sums = {name: value.to(self.device) * counted for name, value in part("sums/").items()}
        self.progress = TrainingProgress(**progress)

    def checkpoints(self) -> dict[str, dict[str, Tensor]]:
        """The weights that are kept and always named: last, ema and, with a held-out part, best."""
        weights = {"last": self.model.state_dict(), "ema": self.ema.state_dict()}
        return weights | ({"best": self.best} if self.best else {})

    def step(self, index: Tensor) -> None:
        """Craft on one batch, update the weights and their average; no host synchronisation on a GPU."""
        run, progress = self.run, self.progress
        self.generator.manual_seed(stream_seed(run.seed, "batch", progress.step))
        torch.manual_seed(stream_seed(run.seed, "mask", progress.step))
        index = index.to(self.device)
        pad, flip = augmentation(run)
        x = as_float(augment(self.data.train_x[index], pad=pad, flip=flip, generator=self.generator))
        x, y, noise = self._shard(x, self.data.train_y[index])
        x_adv = x if run.method == "natural" else self.crafter.craft(x, y, self.generator, noise=noise)
        self.stepper.step(x, x_adv, y, awp=progress.epoch > run.epochs / 10)  # Wu et al. 2020: after a tenth
        distributed.average_buffers(self.model)
        ema_update(self.ema, self.model, run, progress.step)
        progress.step += 1
        progress.batch += 1

    def _shard(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """This process's shard of a batch and of the start noise that one process alone would draw (None: draw it)."""
        if distributed.size() == 1:
            return x, y, None
        part, n = distributed.shard(len(y)), len(y)
        self.objective.share = (part.stop - part.start) * distributed.size() / n  # the mean of means is that over n
        for module in self.model.modules():
            if isinstance(module, FSR):
                module.part = (part.start, n)
        return x[part], y[part], draw_start(x, self.run, self.generator)[part]

    def epoch(self, callbacks: Callbacks = Callbacks()) -> None:
        """Finish the epoch under way, or raise TimeUp, Interrupted or FSRError."""
        run, progress = self.run, self.progress
        order = torch.Generator().manual_seed(stream_seed(run.seed, "order", progress.epoch))
        parts = batches(len(self.data.train_y), run.batch, generator=order)
        parts = list(torch.cat(parts).to(self.device).split([len(part) for part in parts]))  # one copy, one wait
        self.model.train()
        for group in self.stepper.optimizer.param_groups:
            group["lr"] = lr = learning_rate(run, progress.epoch)
        started = time.monotonic() - progress.epoch_seconds
        for index in parts[progress.batch :]:
            late = time.monotonic() >= (callbacks.deadline or math.inf)
            stop = torch.tensor([late, callbacks.interrupted()]).int()
            late, interrupted = distributed.gathered(stop).any(0).tolist()
            if late or interrupted:
                self.stepper.merge_sums()
                callbacks.on_stop(self)
                where = f"epoch {progress.epoch} of {run.epochs}, batch {progress.batch}"
                raise (Interrupted if interrupted else TimeUp)(f"stopped in {where}; run it again")
            self.step(index)
            progress.epoch_seconds = time.monotonic() - started
            callbacks.on_batch(progress.batch, len(parts))
        tally = self.stepper.tally()  # synchronises: only now is a GPU done with the epoch
        progress.seconds += (seconds := time.monotonic() - started)
        if bad := [name for name, value in tally.items() if not math.isfinite(value)]:
            advice = "the last good checkpoint is kept: lower lr, or set precision to float32"
            raise FSRError(f"{bad[0]} is not finite in epoch {progress.epoch}; {advice}")
        row = {"epoch": progress.epoch, "seconds": seconds, "lr": lr}
        row |= {f"train_{name}": value for name, value in tally.items()} | self._held_out()
        progress.rows.append(row)
        if run.holdout and row["held_robust_acc"] > progress.best_acc:
            progress.best_acc, progress.best_epoch = row["held_robust_acc"], progress.epoch
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        progress.epoch, progress.batch, progress.epoch_seconds = progress.epoch + 1, 0, 0.0

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        images, labels, accuracies = as_float(self.data.held_x), self.data.held_y, dict[str, float]()
        for prefix, model in (("", self.model), ("ema_", self.ema)):
            counts = torch.zeros((2,), dtype=torch.int64, device=labels.device)
            self.generator.manual_seed(stream_seed("held-out"))
            with eval_mode(model):
                for x, y in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH)) if self.run.holdout else ():
                    x, y, noise = self._shard(x, y)
                    x_adv = self.crafter.craft(x, y, self.generator, source=model, noise=noise)
                    counts += torch.stack([(model(some.clone()).argmax(1) == y).sum() for some in (x, x_adv)])
            shares = (distributed.gathered(counts).sum(0).double() / len(labels)).tolist()  # NaN without images
            accuracies |= {f"{prefix}held_clean_acc": shares[0], f"{prefix}held_robust_acc": shares[1]}
        return accuracies


def fit(trainer: Trainer, callbacks: Callbacks = Callbacks()) -> Trainer:
    """Train to the last epoch of the run, or raise TimeUp, Interrupted or FSRError; files are the caller's."""
    with torch.random.fork_rng([trainer.device] * (trainer.device.type == "cuda")):
        while trainer.progress.epoch <= trainer.run.epochs:
            trainer.epoch(callbacks)
            callbacks.on_epoch(trainer)
    return trainer
