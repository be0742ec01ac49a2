"""The training loop: the authors' recipe, resumable after any batch, writing nothing itself."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fsr.config import Run
from fsr.data import Data, as_float, augment, augmentation, batches
from fsr.files import Diverged, Interrupted, TimeUp, UsageError
from fsr.models import FSR, model_of
from fsr.models.modes import copied, eval_mode
from fsr.train import distributed
from fsr.train.fast import Crafter
from fsr.train.objectives import Objective, Stepper, draw_start, ema_update, learning_rate, sgd, stream_seed

EVAL_BATCH = 500  # held-out images at once


@dataclass(frozen=True)
class Callbacks:
    """What the caller of `fit` is told and asks for; every field may be left out."""

    on_epoch: Callable[["Trainer"], None] = lambda _: None  # after every epoch: save, show
    on_batch: Callable[[int, int], None] = lambda *_: None  # (done, of) within the epoch
    on_stop: Callable[["Trainer"], object] = lambda _: None  # before TimeUp or Interrupted is raised: save
    deadline: float | None = None  # time.monotonic() at which to stop
    interrupted: Callable[[], bool] = lambda: False

    def stop(self) -> bool:
        return self.interrupted() or (self.deadline is not None and time.monotonic() >= self.deadline)


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
        self.cuda = [self.device] if self.device.type == "cuda" else []
        self.progress, processes = TrainingProgress(), distributed.size()
        self.best: dict[str, Tensor] | None = None
        smallest = min(len(part) for part in batches(len(data.train_y), run.batch))
        if processes > 1 and smallest < 2 * processes:
            few = f"the smallest batch has {smallest} images, fewer than two for each of {processes} processes"
            raise UsageError(f"{few}; give torchrun a smaller --nproc-per-node")
        with torch.random.fork_rng(devices=self.cuda):
            torch.manual_seed(stream_seed(run.seed, "init"))
            self.model = model_of(run, num_classes=data.classes).to(self.device)
        if run.sync_bn and processes > 1:
            distributed.synchronised(self.model)
        self.objective, self.optimizer = Objective(self.model, run), sgd(self.model, run, self.device)
        self.crafter = Crafter(self.model, replace(run, batch=math.ceil(run.batch / processes)), self.device)
        # Copied now, in the memory layout that the crafter chose: averaging across two layouts is slow.
        self.ema = copied(self.model).requires_grad_(False).eval()
        averaged = DistributedDataParallel(self.objective) if processes > 1 else self.objective
        self.stepper = Stepper(averaged, self.optimizer, run, self.device)
        self.generator = torch.Generator(self.device)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed training needs, by name: weights, averages, best, momentum and the epoch's sums."""
        states = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "best": self.best or {}}
        momenta = ((i, self.optimizer.state[p].get("momentum_buffer")) for i, p in enumerate(self.model.parameters()))
        states |= {"momentum": {i: own for i, own in momenta if own is not None}, "sums": self.stepper.sums}
        return {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}

    def restore(self, tensors: dict[str, Tensor], progress: dict) -> None:
        states: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            states[part][name] = tensor
        self.model.load_state_dict(states["model"])
        self.ema.load_state_dict(states["ema"])
        self.best, parameters = states["best"] or None, list(self.model.parameters())
        for i, momentum in states["momentum"].items():  # in the memory layout of its weights, which files do not keep
            own = self.optimizer.state[parameters[int(i)]]
            own["momentum_buffer"] = torch.empty_like(parameters[int(i)]).copy_(momentum)
        counted = distributed.rank() == 0  # what a group had summed up counts once
        self.stepper.sums = {name: value.to(self.device) * counted for name, value in states["sums"].items()}
        self.progress = TrainingProgress(**progress)

    def checkpoints(self) -> dict[str, dict[str, Tensor]]:
        """The weights that are kept and always named: last, ema and, with a held-out part, best."""
        kept = {"last": self.model.state_dict(), "ema": self.ema.state_dict()}
        return kept | ({"best": self.best} if self.best is not None else {})

    def step(self, index: Tensor) -> None:
        """Craft on one batch, update the weights and their average; no host synchronisation on a GPU."""
        run, progress = self.run, self.progress
        self.generator.manual_seed(stream_seed(run.seed, "batch", progress.step))
        torch.manual_seed(stream_seed(run.seed, "mask", progress.step))
        index = index.to(self.device)
        pad, flip = augmentation(run)
        x = as_float(augment(self.data.train_x[index], pad=pad, flip=flip, generator=self.generator))
        x, y, noise = self._shard(x, self.data.train_y[index])
        x_adv = self.crafter.craft(x, y, self.generator, noise=noise)
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

    def order(self) -> list[Tensor]:
        """The batches of the epoch under way: positions of training images, a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(stream_seed(self.run.seed, "order", self.progress.epoch))
        return batches(len(self.data.train_y), self.run.batch, generator=generator)

    def epoch(self, callbacks: Callbacks = Callbacks()) -> bool:
        """Finish the epoch under way; False as soon as the callbacks say stop, with everything ready to be saved."""
        progress, parts, lr = self.progress, self.order(), learning_rate(self.run, self.progress.epoch)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        started = time.monotonic() - progress.epoch_seconds
        for index in parts[progress.batch :]:
            if distributed.gathered(torch.tensor(int(callbacks.stop()))).any():
                self.stepper.merge_sums()
                return False
            self.step(index)
            progress.epoch_seconds = time.monotonic() - started
            callbacks.on_batch(progress.batch, len(parts))
        tally = self.stepper.tally()  # synchronises: only now is a GPU done with the epoch
        progress.seconds += (seconds := time.monotonic() - started)
        if bad := [name for name, value in tally.items() if not math.isfinite(value)]:
            where = f"{bad[0]} is not finite in epoch {progress.epoch}"
            raise Diverged(f"{where}; the last good checkpoint is kept: lower lr, or set precision to float32")
        row = {"epoch": progress.epoch, "seconds": seconds, "lr": lr}
        row |= {f"train_{name}": value for name, value in tally.items()} | self._held_out()
        progress.rows.append(row)
        if self.run.holdout and row["held_robust_acc"] > progress.best_acc:
            progress.best_acc, progress.best_epoch = row["held_robust_acc"], progress.epoch
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        progress.epoch, progress.batch, progress.epoch_seconds = progress.epoch + 1, 0, 0.0
        return True

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        images, labels, found = as_float(self.data.held_x), self.data.held_y, dict[str, float]()
        for prefix, model in (("", self.model), ("ema_", self.ema)):
            counts = torch.zeros((2,), dtype=torch.int64, device=labels.device)
            self.generator.manual_seed(stream_seed("held-out"))
            with eval_mode(model):
                for x, y in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH)) if self.run.holdout else ():
                    x, y, noise = self._shard(x, y)
                    if len(y):  # none with more processes than images
                        x_adv = self.crafter.attack(x, y, self.generator, source=model, noise=noise)
                        counts += torch.stack([(model(some.clone()).argmax(1) == y).sum() for some in (x, x_adv)])
            shares = (distributed.gathered(counts).sum(0).double() / len(labels)).tolist()  # NaN without images
            found |= {f"{prefix}held_clean_acc": shares[0], f"{prefix}held_robust_acc": shares[1]}
        return found


def fit(trainer: Trainer, callbacks: Callbacks = Callbacks()) -> Trainer:
    """Train to the last epoch of the run, or raise TimeUp, Interrupted or Diverged; files are the caller's."""
    run, progress = trainer.run, trainer.progress
    with torch.random.fork_rng(devices=trainer.cuda):
        while progress.epoch <= run.epochs:
            if not trainer.epoch(callbacks):
                callbacks.on_stop(trainer)
                asked = distributed.gathered(torch.tensor(int(callbacks.interrupted()))).any()
                kind = Interrupted if asked else TimeUp
                raise kind(f"stopped in epoch {progress.epoch} of {run.epochs}, batch {progress.batch}; run it again")
            callbacks.on_epoch(trainer)
    return trainer
