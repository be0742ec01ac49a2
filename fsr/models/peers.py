"""Modules that FSR is compared with, after the map f (N, C, H, W) of a block or stage; K classes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.models.fsr import Streams


class FeatureDenoising(nn.Module):
    """Residual non-local mean with dot-product weights and a 1x1 convolution (Xie et al. 2019, section 4.2, eq. 2).

    Starts as the identity, since the dot products grow with the cube of the features: their BatchNorm's scale is zero.
    """

    def __init__(self, channels: int, num_classes: int, is_last: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn.weight)

    def forward(self, f: Tensor) -> Tensor:
        flat = f.flatten(2)  # (N, C, HW)
        narrow = flat.shape[1] < flat.shape[2]  # the cheaper of the two orders of the same product
        mean = (flat @ flat.mT) @ flat if narrow else flat @ (flat.mT @ flat)
        return f + self.bn(self.conv((mean / flat.shape[2]).view_as(f)))

    def streams(self, f: Tensor, y: Tensor | None = None) -> Streams:
        return Streams(self(f), {})


class _Probed(nn.Module):
    """Scales channels by a gate made of the labels in training, of the probe's own predictions otherwise."""

    gate: Callable[..., tuple[Tensor, Tensor]]  # (f, labels or None) to a weight per channel (N, C) and logits (N, K)

    def forward(self, f: Tensor) -> Tensor:
        return self.streams(f).features

    def streams(self, f: Tensor, y: Tensor | None = None) -> Streams:
        """Features and the probe's logits; y: (N,) int64, read in training mode only."""
        gate, logits = self.gate(f, y if self.training else None)
        return Streams(f * gate[:, :, None, None].to(f.dtype), {"probe": logits})


class CAS(_Probed):
    """Channel-wise activation suppressing: times the class's row of a linear probe (Bai et al. 2021, section 3.2)."""

    def __init__(self, channels: int, num_classes: int, is_last: bool):
        super().__init__()
        self.probe = nn.Linear(channels, num_classes)

    def gate(self, f: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = self.probe(f.mean((2, 3)))
        return self.probe.weight[logits.argmax(1) if y is None else y], logits


class CIFS(_Probed):
    """Channel-wise importance-based feature selection (Yan et al. 2021, section 4).

    A channel's weight is the softmax of its relevance: the gradient, summed over positions, of the probe's logits of
    the label (or largest) and the second. Only the probe is differentiated through it; the last probe is linear.
    """

    def __init__(self, channels: int, num_classes: int, is_last: bool):
        super().__init__()
        self.bottleneck = None if is_last else nn.Linear(channels, 128)
        self.probe = nn.Linear(channels if is_last else 128, num_classes)

    def gate(self, f: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        pooled = f.mean((2, 3))
        hidden = pooled if self.bottleneck is None else F.softplus(self.bottleneck(pooled), beta=5)
        logits = self.probe(hidden)
        top = logits.topk(2, dim=1).indices
        # The pooled gradient in closed form: d logit_k / d pooled is the probe's row k, through the layer's slopes.
        relevance = self.probe.weight[top[:, 0] if y is None else y] + self.probe.weight[top[:, 1]]
        if self.bottleneck is not None:
            slope = torch.sigmoid(5 * self.bottleneck(pooled.detach()))
            relevance = (relevance * slope) @ self.bottleneck.weight
        return relevance.softmax(dim=1), logits
