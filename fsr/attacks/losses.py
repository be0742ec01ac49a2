"""What attacks climb: a loss maps (logits (N, K), y (N,)) to (N,), for N images and K classes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Net = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where the prediction is not y, (N,) bool; logits that are not finite are an error too."""
    return (logits.argmax(dim=1) != y) | ~torch.isfinite(logits).all(dim=1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per sample, (N,)."""
    return F.cross_entropy(logits, y, reduction="none")


def _true_and_best_wrong(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """z_y and max_{j != y} z_j, each (N,)."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    wrong = logits.scatter(1, y[:, None], float("-inf")).amax(dim=1)
    return true, wrong


def margin(logits: Tensor, y: Tensor, kappa: float = 50.0) -> Tensor:
    """C&W margin -max(z_y - max_{j != y} z_j + kappa, 0), (N,) (Carlini & Wagner 2017, eq. 6).

    Flat, with zero gradient, once the wrong class leads by kappa.
    """
    true, wrong = _true_and_best_wrong(logits, y)
    return -(true - wrong + kappa).clamp_min(0)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (N,), needs K >= 3: unchanged by scaling the logits (Croce & Hein 2020, eq. 6)."""
    true, wrong = _true_and_best_wrong(logits, y)
    top = logits.topk(3, dim=1).values
    return (wrong - true) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR, (N,), needs K >= 4; target: (N,) int64 wrong classes (Croce & Hein 2020, eq. 7)."""
    top = logits.topk(4, dim=1).values
    true, aim = logits.gather(1, y[:, None]).squeeze(1), logits.gather(1, target[:, None]).squeeze(1)
    return (aim - true) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted cross-entropy to climb, -CE(logits, target), (N,); y is not read (Kurakin et al. 2017)."""
    return -F.cross_entropy(logits, target, reduction="none")


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_target - z_y, (N,): positive where the target already beats the label (Gowal et al. 2019)."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
