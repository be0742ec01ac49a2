"""What attacks may be given, the network as they ask it, and random numbers of their own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsr.files import UsageError


def check_images(x: Tensor, y: Tensor, classes: int | None = None, *, empty: bool = False) -> None:
    """UsageError unless x is (N, C, H, W) in [0, 1] and y (N,) int64 in [0, classes); empty: N may be 0."""
    if x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"images must be (N, C, H, W) floating point in [0, 1], not {tuple(x.shape)} {x.dtype}")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise UsageError(f"labels must be ({len(x)},) int64, one per image, not {tuple(y.shape)} {y.dtype}")
    if len(x) == 0 and empty:
        return
    if len(x) == 0:
        raise UsageError("there are no images: the batch is empty")
    dark, bright, low, high = float(x.min()), float(x.max()), int(y.min()), int(y.max())  # NaN where a pixel is NaN
    if not (dark >= 0 and bright <= 1):
        raise UsageError(f"pixels must lie in [0, 1], not from {dark:g} to {bright:g}; divide 0..255 by 255")
    if low < 0 or (classes is not None and high >= classes):
        last = "K-1" if classes is None else classes - 1
        raise UsageError(f"labels must lie in 0..{last}, these reach from {low} to {high}")


def check_eps(eps: float, **counts: int | None) -> float:
    """The radius as a Python float; UsageError unless it lies in [0, 1] and every count is a whole number or None."""
    for name, count in counts.items():
        if count is not None and (not isinstance(count, Integral) or count < 0):
            raise UsageError(f"{name} must be a whole number from 0, not {count!r}")
    try:
        radius = float(eps)
    except (TypeError, ValueError):
        radius = float("nan")
    if not 0 <= radius <= 1:
        raise UsageError(f"eps must lie in [0, 1], in pixels of [0, 1] such as 8/255, not {eps!r}")
    return radius


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeded torch, numpy and random, and float32 by default, inside; afterwards all are as they were before."""
    python, arrays, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            torch.set_default_dtype(dtype)


def inward(x: Tensor) -> Tensor:
    """Pixels of exactly 0 and 1 moved inside by 2^-20, so that a network's own clamp lets their gradient through."""
    return x + 2.0**-20 * ((x == 0).to(x.dtype) - (x == 1).to(x.dtype))


def clips(net: Any, x: Tensor) -> bool:
    """Has a network no gradient at pixels of 0 and 1, and one just inside?  So has clamp(0, 1) in newer torch."""

    def size(images: Tensor) -> float:
        leaf = images.clone().requires_grad_()
        with torch.enable_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            logits = net(leaf)
            total = (logits * torch.arange(logits.shape[1], device=x.device)).sum()
            return float(torch.autograd.grad(total, leaf)[0][edge].abs().sum())

    x = x[:8].detach()
    edge = (x == 0) | (x == 1)
    try:
        return bool(edge.any()) and size(x) == 0 and size(inward(x)) > 0
    except RuntimeError:  # it has no gradient anywhere
        return False


class Network(nn.Module):
    """A network as attacks ask it: its own copy of the images, in their precision; UsageError for unfit logits."""

    def __init__(self, model: Any, x: Tensor, y: Tensor):
        super().__init__()
        self.model, self.size, self.dtype = model, len(x), x.dtype
        self.labels = int(y.max()) + 1 if len(y) else 0
        self.asked = self.fixed = False
        self.clips: bool | None = None  # not known before the first gradient is asked for

    def forward(self, x: Tensor) -> Tensor:
        if self.clips is None and x.requires_grad:
            self.clips = False
            self.clips = clips(self, x)
        x = inward(x) if self.clips and x.requires_grad else x
        try:
            if not self.fixed:
                return self._checked(self.model(x.to(self.dtype, copy=True)), len(x))
        except (RuntimeError, ValueError, AssertionError):
            if len(x) == self.size:
                raise
            self.fixed = True  # it takes batches of its first size only: smaller ones are padded
        missing = -len(x) % self.size
        parts = torch.cat([x, x[:1].expand(missing, *x.shape[1:])]).to(self.dtype).split(self.size)
        return self._checked(torch.cat([self.model(part.clone()) for part in parts])[: len(x)], len(x))

    def trace(self, x: Tensor) -> tuple[Tensor, Any]:
        if not hasattr(self.model, "trace"):
            raise UsageError("this attack needs a network with `trace`, from fsr.models.build_model")
        logits, streams = self.model.trace(x.to(self.dtype, copy=True))
        return self._checked(logits, len(x)), streams

    def _checked(self, logits: Any, images: int) -> Tensor:
        if not self.asked:
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != images or logits.shape[1] < 2:
                raise UsageError("the network must give logits (N, K), K at least 2, and nothing else")
            if logits.shape[1] < self.labels:
                raise UsageError(f"labels must lie in 0..{logits.shape[1] - 1}, these reach to {self.labels - 1}")
            self.asked = True
        return logits
