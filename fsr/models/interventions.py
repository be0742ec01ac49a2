"""Changes to a trained FSR module at test time: what is left of its effect without its mask or its recalibration.

N images, C channels, H and W positions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import UsageError


@dataclass(frozen=True)
class Intervention:
    """mask: maps the module's own mask (N, C, H, W) to the one it uses, None keeps it; recalibrate=False sets R = 0."""

    mask: Callable[[Tensor], Tensor] | None = None
    recalibrate: bool = True


def _constant(mask: Tensor) -> Tensor:
    """Every entry is the mean of the sample's own mask: the same share kept, without any choice."""
    return mask.mean((1, 2, 3), keepdim=True).expand(mask.shape)


def _random(mask: Tensor, *, seed: int) -> Tensor:
    """One mask for all images, uniform in [0, 1): fixed by the seed, so that attacks meet no randomness."""
    return torch.rand(mask.shape[1:], generator=torch.Generator().manual_seed(seed)).to(mask).expand(mask.shape)


def _shuffled(mask: Tensor, *, seed: int) -> Tensor:
    """The sample's own mask with its entries moved by one fixed permutation: the same values in the wrong places."""
    order = torch.randperm(mask[0].numel(), generator=torch.Generator().manual_seed(seed)).to(mask.device)
    return mask.flatten(1)[:, order].view(mask.shape)


INTERVENTIONS: dict[str, Callable[[int], Intervention]] = {  # name to a function of the seed
    "mask_one": lambda seed: Intervention(mask=torch.ones_like),  # everything is robust: the module is bypassed
    "no_recalibration": lambda seed: Intervention(recalibrate=False),
    "mask_random": lambda seed: Intervention(mask=partial(_random, seed=seed)),
    "mask_constant": lambda seed: Intervention(mask=_constant),
    "mask_shuffled": lambda seed: Intervention(mask=partial(_shuffled, seed=seed)),
}


@contextmanager
def intervene(model: nn.Module, name: str, seed: int = 0) -> Iterator[nn.Module]:
    """Every FSR module of model acts under the named intervention inside the block; afterwards as before.

    Raises UsageError for an unknown name, and for a model that has no mask to act on.
    """
    if name not in INTERVENTIONS:
        raise UsageError(f"unknown intervention {name!r}; choose one of {', '.join(INTERVENTIONS)}")
    parts: list[Any] = [part for part in model.modules() if getattr(part, "has_mask", False)]
    if not parts:
        raise UsageError(f"intervention {name!r} needs a model with an FSR mask; this one has none")
    before = [part.intervention for part in parts]
    try:
        for part in parts:
            part.intervention = INTERVENTIONS[name](seed)
        yield model
    finally:
        for part, intervention in zip(parts, before):
            part.intervention = intervention
