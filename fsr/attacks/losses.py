"""What attacks climb and what counts as an error, from logits (N, K) and labels (N,) int64 of N images, K classes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Net = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where argmax is not y, (N,) bool; a row whose largest logit is not finite is wrong too."""
    return (logits.argmax(dim=1) != y) | ~torch.isfinite(logits.amax(dim=1))


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per image, (N,)."""
    return F.cross_entropy(logits, y, reduction="none")


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y, (N,): positive where the network is wrong."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], float("-inf")).amax(dim=1) - true


def margin(logits: Tensor, y: Tensor, kappa: float = 50.0) -> Tensor:
    """C&W margin min(logit_margin - kappa, 0), (N,); flat beyond kappa (Carlini & Wagner 2017, eq. 6)."""
    return -(kappa - logit_margin(logits, y)).clamp_min(0)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_target - z_y, (N,); target: (N,) int64 wrong classes (Gowal et al. 2019)."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (N,), K >= 3: scaling the logits does not change it (Croce & Hein 2020, eq. 6)."""
    top = logits.topk(3, dim=1).values
    return logit_margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)
