"""The training loop: the authors' recipe, resumable after any batch, writing nothing itself."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fsr.config import Run
from fsr.data import Data, as_float, augment, augmentation, batches
from fsr.files import Diverged, Interrupted, TimeUp
from fsr.models import FSR, model_of
from fsr.models.modes import copied, eval_mode
from fsr.train import distributed
from fsr.train.fast import Crafter
from fsr.train.objectives import Objective, draw_start
from fsr.train.update import Stepper, ema_update, learning_rate, sgd, stream_seed

EVAL_BATCH = 500  # held-out images at once


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
    """A model in training, its averages, its optimiser, and where it stands.

    run: what to train; data: from fsr.data.load, on `device`; switches: compile, graphs, channels_last (None: measured
    defaults) and update (compile that too; off), for speed alone. In a group of processes each works on its shard.
    """

    def __init__(self, run: Run, data: Data, *, device="cpu", switches: dict | None = None):
        self.run, self.data, self.device = run, data, torch.device(device)
        switches = {"update": False, **(switches or {})}
        update = bool(switches.pop("update"))
        with torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(stream_seed(run.seed, "init"))
            self.model = model_of(run, num_classes=data.classes).to(self.device)
        if run.sync_bn:
            distributed.synchronised(self.model)
        self.best: dict[str, Tensor] | None = None
        self.objective = Objective(self.model, run)
        self.optimizer = sgd(self.model, run, self.device)
        shard = replace(run, batch=math.ceil(run.batch / distributed.size()))
        self.crafter = Crafter(self.model, shard, self.device, **switches)
        self.crafter.switches["update"] = update
        # Copied now, in the memory layout that the crafter chose: averaging across two layouts is slow.
        self.ema = copied(self.model).requires_grad_(False).eval()
        smallest = min(len(part) for part in batches(len(data.train_y), run.batch))
        averaged = distributed.averaging(self.objective, smallest)
        self.stepper = Stepper(averaged, self.optimizer, run, self.device, compile=update)
        self.generator = torch.Generator(self.device)
        self.progress = TrainingProgress()

    def _cuda(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed training needs, by name: weights, averages, best, momentum and the epoch's sums."""
        states = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "best": self.best or {}}
        momenta = [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in self.model.parameters()]
        states["momentum"] = {str(i): momentum for i, momentum in enumerate(momenta) if momentum is not None}
        states["sums"] = self.stepper.sums
        return {f"{part}/{name}": tensor for part, state in states.items() for name, tensor in state.items()}

    def restore(self, tensors: dict[str, Tensor], progress: dict) -> None:
        """Continue from what `tensors` and `progress` (as JSON) said."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model/"))
        self.ema.load_state_dict(part("ema/"))
        self.best = part("best/") or None
        parameters = list(self.model.parameters())
        for i, momentum in part("momentum/").items():
            self.optimizer.state[parameters[int(i)]]["momentum_buffer"] = momentum.to(self.device)
        counted = distributed.rank() == 0  # what a group had summed up counts once
        self.stepper.load_sums({k: v if counted else torch.zeros_like(v) for k, v in part("sums/").items()})
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
        if not distributed.together():
            return x, y, None
        part, n = distributed.shard(len(y)), len(y)
        self.objective.share = distributed.share(n)
        for module in self.model.modules():
            if isinstance(module, FSR):
                module.part = (part.start, n)
        return x[part], y[part], draw_start(x, self.run, self.generator)[part]

    def order(self) -> list[Tensor]:
        """The batches of the epoch under way: positions of training images, a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(stream_seed(self.run.seed, "order", self.progress.epoch))
        parts = batches(len(self.data.train_y), self.run.batch, generator=generator)
        # copied now and once: copying from the host makes it wait for the device
        return list(torch.cat(parts).to(self.device).split([len(part) for part in parts]))

    def epoch(self, *, stop: Callable[[], bool] = lambda: False, on_batch: Callable[[int, int], None] | None = None):
        """Finish the epoch under way; returns False as soon as `stop()` says so, with everything ready to be saved."""
        progress, parts = self.progress, self.order()
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.run, progress.epoch)
        before, started = progress.epoch_seconds, time.monotonic()
        for index in parts[progress.batch :]:
            if distributed.any_of(stop()):
                self._merge_sums()
                return False
            self.step(index)
            progress.epoch_seconds = before + time.monotonic() - started
            if on_batch:
                on_batch(progress.batch, len(parts))
        self._close_epoch(started - before)
        return True

    def _merge_sums(self) -> None:
        """Make the epoch's sums those of all processes; to be tallied or saved by rank 0, then not used again."""
        if distributed.together():
            self.stepper.load_sums(distributed.summed(self.stepper.sums, largest=("steps", "bad")))

    def _close_epoch(self, started: float) -> None:
        """Tally, judge and write down the epoch that began at `started` (time.monotonic(), less earlier processes)."""
        run, progress = self.run, self.progress
        self._merge_sums()
        tally = self.stepper.tally()  # synchronises: only now is a GPU done with the epoch
        seconds = time.monotonic() - started
        bad = next((k for k, v in tally.items() if not math.isfinite(v)), None)
        if bad is not None:
            raise Diverged(
                f"{bad} is not finite in epoch {progress.epoch}, step {self.stepper.first_bad_step}; the last good "
                "checkpoint is kept: lower lr, or set precision to float32"
            )
        row = {"epoch": progress.epoch, "seconds": seconds, "lr": learning_rate(run, progress.epoch)}
        row |= {f"train_{name}": value for name, value in tally.items()} | self._held_out()
        progress.rows.append(row)
        progress.seconds += seconds
        if run.holdout and row["held_robust_acc"] > progress.best_acc:
            progress.best_acc, progress.best_epoch = row["held_robust_acc"], progress.epoch
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        progress.epoch, progress.batch, progress.epoch_seconds = progress.epoch + 1, 0, 0.0

    def _held_out(self) -> dict[str, float]:
        """Accuracies on held-out images, clean and under the training attack with a fixed start, live and EMA."""
        out: dict[str, float] = {}
        for prefix, model in (("", self.model), ("ema_", self.ema)):
            clean, robust = self._accuracies(model) if self.run.holdout else (math.nan, math.nan)
            out |= {f"{prefix}held_clean_acc": clean, f"{prefix}held_robust_acc": robust}
        return out

    @torch.no_grad()
    def _accuracies(self, model: nn.Module) -> tuple[float, float]:
        x_all, y_all = self.data.held_x, self.data.held_y
        counts = torch.zeros((2,), dtype=torch.int64, device=y_all.device)
        self.generator.manual_seed(stream_seed("held-out"))
        with eval_mode(model):
            for x, y in zip(as_float(x_all).split(EVAL_BATCH), y_all.split(EVAL_BATCH)):
                x, y, noise = self._shard(x, y)
                if len(y):  # none with more processes than images
                    x_adv = self.crafter.attack(x, y, self.generator, source=model, noise=noise)
                    counts += torch.stack([(model(images.clone()).argmax(1) == y).sum() for images in (x, x_adv)])
        correct = distributed.summed({"clean": counts[0], "robust": counts[1]})
        return float(correct["clean"]) / len(y_all), float(correct["robust"]) / len(y_all)


@dataclass(frozen=True)
class Callbacks:
    """What the caller of `fit` is told and asks for; every field may be left out."""

    on_epoch: Callable[[Trainer], None] | None = None  # after every epoch: save, show
    on_batch: Callable[[int, int], None] | None = None  # (done, of) within the epoch
    on_stop: Callable[[Trainer], None] | None = None  # before TimeUp or Interrupted is raised: save
    deadline: float | None = None  # time.monotonic() at which to stop
    interrupted: Callable[[], bool] = lambda: False

    def stop(self) -> bool:
        """Is it time to stop?"""
        return self.interrupted() or (self.deadline is not None and time.monotonic() >= self.deadline)


def fit(trainer: Trainer, callbacks: Callbacks = Callbacks()) -> Trainer:
    """Train to the last epoch of the run, or raise TimeUp, Interrupted or Diverged; files are the caller's."""
    run, progress = trainer.run, trainer.progress
    with torch.random.fork_rng(devices=trainer._cuda()):
        while progress.epoch <= run.epochs:
            with distributed.noticing_losses():
                whole = trainer.epoch(stop=callbacks.stop, on_batch=callbacks.on_batch)
            if not whole:
                if callbacks.on_stop:
                    callbacks.on_stop(trainer)
                kind = Interrupted if distributed.any_of(callbacks.interrupted()) else TimeUp
                raise kind(f"stopped in epoch {progress.epoch} of {run.epochs}, batch {progress.batch}; run it again")
            if callbacks.on_epoch:
                callbacks.on_epoch(trainer)
    return trainer
