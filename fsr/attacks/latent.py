"""Linear heads freshly trained on latent features, and the objective that climbs them all (LAFEAT, Yu et al. 2021).

For any nn.Module: a dry run with read-only hooks finds the stages. N images, D features, K classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.attacks.ascent import Objective, scale_free
from fsr.attacks.losses import Net, cross_entropy


def _is_feature(out) -> bool:
    return isinstance(out, Tensor) and out.is_floating_point() and out.ndim >= 2


@contextmanager
def listening(places: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Inside, the latest output of each place, in running order; the hooks only look, and are gone afterwards."""
    seen: dict[nn.Module, Tensor] = {}

    def hear(module, _, out):
        if _is_feature(out):
            seen.pop(module, None)
            seen[module] = out

    handles = [place.register_forward_hook(hear) for place in places]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pooled(features: Tensor) -> Tensor:
    """(N, D): 2x2 averages of a map (N, C, H, W), the mean over tokens (N, T, D), anything else flattened."""
    if features.ndim == 4:
        features = F.adaptive_avg_pool2d(features, 2) if min(features.shape[2:]) > 2 else features
    elif features.ndim == 3:
        features = features.mean(dim=1)
    return features.flatten(1)


def stages(model: nn.Module, x: Tensor, most: int = 4) -> list[nn.Module]:
    """The last `most` of a network's own stages whose outputs are features, in running order; [] where there are none.

    A stage is a child of the first module with at least two of them, going down by the child with most parameters,
    past a layer that normalises in front of a network. Outputs as small as the logits are no stages.
    """
    level, found = model, list[nn.Module]()
    while children := list(level.children()):
        with torch.no_grad(), listening(children) as seen:
            logits = model(x[:2])
        large = [m for m, out in seen.items() if len(out) == len(x[:2]) and out[0].numel() > logits.shape[1]]
        found = large or found
        if len(large) > 1:
            break
        level = max(children, key=lambda child: sum(p.numel() for p in child.parameters()))
    return found[-most:]


def _fit(features: Tensor, y: Tensor, classes: int, steps: int) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of multinomial regression on standardised features, by full-batch Adam from zero."""
    mean, spread = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-5
    inputs = (features - mean) / spread
    weight = torch.zeros(classes, inputs.shape[1], device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.05, weight_decay=1e-4)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(F.linear(inputs, weight, bias), y).backward()
            optimizer.step()
    weight = weight.detach() / spread
    return weight, bias.detach() - weight @ mean


class LatentHeads:
    """A network's stages, each with a linear head trained here on its features; the network itself is not changed."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, *, classes: int, steps: int = 100, batch: int = 500):
        """x (N, C, H, W), y (N,): what the heads learn from, training images where there are any."""
        self.places = stages(model, x)
        parts: list[list[Tensor]] = [[] for _ in self.places]
        with torch.no_grad(), listening(self.places) as seen:
            for rows in torch.arange(len(x), device=x.device).split(batch):
                model(x[rows])
                for part, place in zip(parts, self.places, strict=True):
                    part.append(_pooled(seen[place]).float())
        self.heads = [_fit(torch.cat(part), y, classes, steps) for part in parts]

    def __call__(self, net: Net, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """net's logits (N, K), and every head's logits; net runs the places of the model, as itself or wrapped."""
        with listening(self.places) as seen:
            logits = net(x)
        latents = [_pooled(seen[place]) for place in self.places]
        return logits, [F.linear(f.to(w.dtype), w, b) for f, (w, b) in zip(latents, self.heads, strict=True)]

    def objective(self, net: Net, weight: float = 1.0) -> Objective:
        """Cross-entropy of the final logits plus `weight` times its mean over the heads, all logits scale-free."""

        def objective(x_adv: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits, latent = self(net, x_adv)
            heads = [cross_entropy(scale_free(z), y) for z in latent]
            return cross_entropy(scale_free(logits), y) + weight * sum(heads) / len(heads), logits

        return objective
