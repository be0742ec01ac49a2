"""Who is right about an image: the float32 model on the final clipped image, or a randomised model's mean vote."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from fsr.attacks.gradient import project_linf
from fsr.attacks.losses import is_wrong
from fsr.hardware import exact_float32


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded torch, numpy and random inside; outside, all three go on as if nothing had been drawn."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@torch.no_grad()
def is_randomised(model: nn.Module, x: Tensor, passes: int = 5, tolerance: float = 1e-4) -> bool:
    """Do repeated passes over the same images differ by more than arithmetic does?  x: (N, C, H, W).

    Compared are the rows' logits, each divided by its own largest size, whatever mode the model says it is in.
    """
    first = model(x)
    scale = first.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    return any(bool((((model(x) - first) / scale).abs() > tolerance).any()) for _ in range(passes - 1))


class Judge:
    """Says which images a model still gets right; the same draws of a randomised model judge every attack."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, *, eps: float, draws: int, seed: int):
        """draws: 1 for a deterministic model; x (N, C, H, W) float32 in [0, 1], y (N,)."""
        self.model, self.x, self.y, self.eps, self.draws, self.seed = model, x, y, eps, draws, seed

    @torch.no_grad()
    def scores(self, x: Tensor, exact: bool = True) -> Tensor:
        """Logits, or the mean softmax over the draws of a randomised model, (N, K)."""
        with own_randomness(self.seed, x.device), exact_float32() if exact else nullcontext():
            if self.draws == 1:
                return self.model(x)
            return sum(self.model(x).softmax(dim=1) for _ in range(self.draws)) / self.draws

    def correct(self, x_adv: Tensor, rows: Tensor, exact: bool = True) -> Tensor:
        """Still right, (M,) bool; x_adv (M, C, H, W), of the images rows (M,), is first put into ball and [0, 1].

        exact: without TensorFloat-32; else in whatever is set.
        """
        clean = self.x[rows]
        x_adv = torch.where(torch.isfinite(x_adv), x_adv, clean).to(clean.dtype)
        return ~is_wrong(self.scores(project_linf(x_adv, clean, self.eps), exact), self.y[rows])
