"""What attacks may be given, and the network as they ask it."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import UsageError


def check_images(x: Tensor, y: Tensor, classes: int | None = None, *, empty: bool = False) -> None:
    """UsageError unless x is (N, C, H, W) floating point in [0, 1] and y is (N,) int64 in [0, classes).

    empty: N may be 0.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"images must be (N, C, H, W) floating point in [0, 1], not {tuple(x.shape)} {x.dtype}")
    if y.ndim != 1 or y.dtype != torch.int64 or len(y) != len(x):
        raise UsageError(f"labels must be ({len(x)},) int64, one per image, not {tuple(y.shape)} {y.dtype}")
    if len(x) == 0:
        if empty:
            return
        raise UsageError("there are no images: the batch is empty")
    if not torch.isfinite(x).all():
        raise UsageError("images hold NaN or infinite pixels")
    if x.min() < 0 or x.max() > 1:
        raise UsageError(f"pixels must lie in [0, 1], not from {x.min():g} to {x.max():g}; divide 0..255 by 255")
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        last = "K-1" if classes is None else classes - 1
        raise UsageError(f"labels must lie in 0..{last}, these reach from {low} to {high}")


def check_eps(eps: float) -> float:
    """The radius as a Python float; UsageError unless it is a number in [0, 1]."""
    try:
        radius = float(eps)
    except (TypeError, ValueError):
        radius = float("nan")
    if not 0 <= radius <= 1:
        raise UsageError(f"eps must lie in [0, 1], in pixels of [0, 1] such as 8/255, not {eps!r}")
    return radius


def check_counts(**counts: int | None) -> None:
    """UsageError unless steps and queries are whole numbers from 0, or None."""
    for name, count in counts.items():
        if count is not None and (not isinstance(count, Integral) or count < 0):
            raise UsageError(f"{name} must be a whole number from 0, not {count!r}")


class Network(nn.Module):
    """A network as attacks ask it: every call gets its own copy of the images, in the precision of `x`.

    x, y: the images and labels under attack. A network that takes batches of len(x) only gets smaller ones padded.
    UsageError unless it gives logits (N, K) with a class for every label.
    """

    def __init__(self, model: Any, x: Tensor, y: Tensor):
        super().__init__()
        self.model, self.size, self.dtype = model, len(x), x.dtype
        self.labels = int(y.max()) + 1 if len(y) else 0
        self.training = getattr(model, "training", False)
        self.asked = self.fixed = False

    def forward(self, x: Tensor) -> Tensor:
        """Images (M, C, H, W) to logits (M, K)."""
        if self.fixed:
            logits = self._padded(x)
        else:
            try:
                logits = self.model(x.to(self.dtype, copy=True))
            except (RuntimeError, ValueError, AssertionError):
                if len(x) == self.size:
                    raise
                logits, self.fixed = self._padded(x), True
        self._check(logits, len(x))
        return logits

    def trace(self, x: Tensor) -> tuple[Tensor, Any]:
        """Logits and streams, see `fsr.models.Classifier.trace`; UsageError for a network without."""
        if not hasattr(self.model, "trace"):
            raise UsageError("this attack needs a network with `trace`, from fsr.models.build_model")
        logits, streams = self.model.trace(x.to(self.dtype, copy=True))
        self._check(logits, len(x))
        return logits, streams

    def _padded(self, x: Tensor) -> Tensor:
        """The logits of x, asked for in batches of `size`, the last filled up with its first image."""
        logits = []
        for part in x.split(self.size):
            filled = torch.cat([part, part[:1].expand(self.size - len(part), *part.shape[1:])])
            logits.append(self.model(filled.to(self.dtype, copy=True))[: len(part)])
        return torch.cat(logits)

    def _check(self, logits: Tensor, images: int) -> None:
        if self.asked:
            return
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != images or logits.shape[1] < 2:
            raise UsageError("the network must give logits (N, K), K at least 2, and nothing else")
        if logits.shape[1] < self.labels:
            raise UsageError(f"labels must lie in 0..{logits.shape[1] - 1}, these reach to {self.labels - 1}")
        self.asked = True
