"""Logits below a network's own: its auxiliary heads', and those of linear heads fitted here to its stages.

N images, D features, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.attacks.losses import cross_entropy
from fsr.audit.ascent import Objective, scale_free
from fsr.audit.network import reading
from fsr.models.insert import Classifier

WithHeads = Callable[[Tensor], tuple[Tensor, list[Tensor]]]  # images to the final logits and those of other heads


def joint(network: WithHeads, weight: float) -> Objective:
    """Cross-entropy of the final logits plus `weight` times its mean over the other heads, all logits scale-free."""

    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits, others = network(x)
        losses = [cross_entropy(scale_free(z), y) for z in others]
        return cross_entropy(scale_free(logits), y) + weight * sum(losses) / len(losses), logits

    return objective


def with_auxiliary(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (N, K), and the auxiliary logits of FSR's heads or of CAS's and CIFS's probes; [] where there are none."""
    logits, streams = Classifier(net).trace(x)
    return logits, [z for one in streams for z in one.aux.values()]


@torch.no_grad()
def find_stages(net: nn.Module, x: Tensor, most: int = 4) -> list[nn.Module]:
    """For each size of features above the logits', the last module to give it; the `most` last, in running order."""
    last, classes = dict[torch.Size, nn.Module](), net(x).shape[1]

    def note(module: nn.Module, _, out: Tensor) -> None:
        if isinstance(out, Tensor) and out.is_floating_point() and out.ndim > 1 and out[0].numel() > classes:
            last.pop(out.shape, None)
            last[out.shape] = module

    with reading(list(net.modules()), note):
        net(x)
    return list(dict.fromkeys(last.values()))[-most:]


def _pooled(features: Tensor) -> Tensor:
    """(N, D): 2x2 averages of a map (N, C, H, W), the mean over tokens (N, T, D), anything else flattened."""
    if features.ndim == 4 and min(features.shape[2:]) > 2:
        features = F.adaptive_avg_pool2d(features, 2)
    return (features.mean(dim=1) if features.ndim == 3 else features).flatten(1)


def _fit(features: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of ridge regression from standardised features to one-hot labels."""
    mean, spread = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-5
    inputs, targets = (features - mean) / spread, F.one_hot(y, classes).to(features.dtype) - 1 / classes
    gram = inputs.T @ inputs / len(y)
    gram.diagonal().add_(0.1)
    weight = torch.linalg.solve(gram, inputs.T @ targets / len(y)).T / spread
    return weight, -weight @ mean


@torch.no_grad()
def with_latent_heads(net: nn.Module, x: Tensor, y: Tensor, *, classes: int, batch: int) -> tuple[WithHeads, int]:
    """The network with a head fitted to each stage from images x (N, C, H, W) and labels y (N,); how many there are."""
    stages = find_stages(net, x[:2])

    def features(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen: dict[nn.Module, Tensor] = {}
        with reading(stages, lambda module, _, out: seen.update({module: out})):
            logits = net(images)
        return logits, [_pooled(seen[stage]) for stage in stages]

    parts = [features(images)[1] for images in x.split(batch)]
    heads = [_fit(torch.cat(part), y, classes) for part in zip(*parts)]

    def with_heads(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, pooled = features(images)
        return logits, [F.linear(f, *head) for f, head in zip(pooled, heads, strict=True)]

    return with_heads, len(stages)
