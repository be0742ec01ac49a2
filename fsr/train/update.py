"""One optimiser step at a time: its seed and learning rate, the epoch's sums, the running average of the weights."""

import contextlib
import hashlib
import math
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from fsr.config import Run
from fsr.train import distributed
from fsr.train.fold import dtype_of, laid_out
from fsr.train.objectives import perturbed_weights


def stream_seed(*parts) -> int:
    """63 bits that are a function of (seed, purpose, step) alone: a resumed run needs no random state to be kept."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def learning_rate(run: Run, epoch: int) -> float:
    """x0.1 from epoch ceil(0.75 E) and x0.01 from ceil(0.9 E), epochs counted from 1 (authors' code: 75, 90 of 100)."""
    late, last = (epoch >= math.ceil(share * run.epochs) for share in (0.75, 0.9))
    return run.lr * (0.01 if last else 0.1 if late else 1)


def sgd(model: nn.Module, run: Run, device: torch.device) -> torch.optim.SGD:
    """The authors' optimiser, SGD with momentum: one kernel for all weights on a GPU, grouped operations on a CPU."""
    how: dict[str, Any] = {"lr": run.lr, "momentum": run.momentum, "weight_decay": run.weight_decay}
    return torch.optim.SGD(model.parameters(), **how, **{"fused" if device.type == "cuda" else "foreach": True})


class Stepper:
    """One optimiser step at a time on an Objective, or DDP around one; sums stay on the device until `tally`.

    compile: the objective and its gradients, on a GPU as CUDA graphs; on a CPU that gained nothing.
    """

    def __init__(self, objective: nn.Module, optimizer: torch.optim.SGD, run: Run, device="cpu", *, compile=False):
        self.optimizer, self.run, self.device = optimizer, run, torch.device(device)
        self.bare: Any = getattr(objective, "module", objective)  # the Objective itself
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self.objective: Any = torch.compile(objective, mode=mode) if compile else objective
        self.autocast = dtype_of(run.precision, self.bare, self.device) == torch.bfloat16
        layouts = [p.is_contiguous(memory_format=torch.channels_last) for p in objective.parameters() if p.ndim == 4]
        self.channels_last = layouts[:1] == [True]
        self.sums: dict[str, Tensor] = {}  # of the epoch so far, for a resumed run too; empty before its first step
        self.first_bad_step = 0  # of the last tallied epoch, from 1, with a loss that is not finite; 0 for none

    def step(self, x: Tensor, x_adv: Tensor, y: Tensor, awp: bool = False) -> None:
        """One update on a batch: images (N, C, H, W) in [0, 1], labels (N,); awp: at perturbed weights."""
        x, x_adv = (laid_out(t, self.channels_last) for t in (x, x_adv))
        perturb = awp and self.run.awp > 0  # moves weights in place, which autocast's cache of them would not see
        how: dict[str, Any] = {"enabled": self.autocast, "cache_enabled": not perturb}
        with torch.autocast(self.device.type, torch.bfloat16, **how), contextlib.ExitStack() as stack:
            if perturb:
                stack.enter_context(perturbed_weights(self.bare, self.run.awp, x, x_adv, y))
            parts, logits = self.objective(x, x_adv, y)
            total = self.bare.total(parts)
            self.optimizer.zero_grad(set_to_none=True)  # of whatever a caller left there
            (total * self.bare.share).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)  # a recorded update reuses their memory in its next forward pass
        parts["total"] = total
        if not self.sums:
            names = (*parts, "adv_acc", "images", "steps", "bad")
            self.sums = {name: torch.zeros((), dtype=torch.float64, device=y.device) for name in names}
        sums, values = self.sums, torch.stack([v.detach().double() for v in parts.values()])
        sums["steps"] += 1
        sums["bad"] += sums["steps"] * ((sums["bad"] == 0) & ~torch.isfinite(values).all())
        sums["images"] += len(y)
        sums["adv_acc"] += (logits.argmax(1) == y).sum()
        for name, value in zip(parts, values * len(y)):
            sums[name] += value

    def merge_sums(self) -> None:
        """Make the sums those of all processes; to be tallied or saved by rank 0, then not used again."""
        if distributed.size() > 1 and self.sums:
            rows = distributed.gathered(torch.stack([*self.sums.values()])).unbind(1)
            largest = ("steps", "bad")
            self.sums = {k: row.max() if k in largest else row.sum() for k, row in zip(self.sums, rows)}

    def load_sums(self, sums: dict[str, Tensor]) -> None:
        """Go on from these; momentum takes on its weights' memory layout, which files do not keep."""
        self.sums = {k: v.clone().to(self.device) for k, v in sums.items()}
        for parameter, own in self.optimizer.state.items():
            if (momentum := own.get("momentum_buffer")) is not None:
                own["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)

    def tally(self) -> dict[str, float]:
        """Means over the epoch's images of every loss part, their total and adv_acc; waits for the device, once."""
        self.merge_sums()
        if not self.sums:
            return {}
        values = dict(zip(self.sums, torch.stack([*self.sums.values()]).tolist()))
        self.sums, self.first_bad_step = {}, int(values.pop("bad"))
        images, _ = values.pop("images"), values.pop("steps")
        return {name: value / images for name, value in values.items()}


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, run: Run, step: int) -> None:
    """ema = d ema + (1 - d) model at step t from 0, d = min(ema_decay, (1 + t) / (10 + t)); counters are copied."""
    decay = min(run.ema_decay, (1 + step) / (10 + step))
    averages, live = ([*net.parameters(), *net.buffers()] for net in (ema, model))
    floating = [tensor.is_floating_point() for tensor in averages]
    torch._foreach_lerp_(list(compress(averages, floating)), list(compress(live, floating)), 1 - decay)
    for average, tensor, moving in zip(averages, live, floating, strict=True):
        if not moving:
            average.copy_(tensor)
