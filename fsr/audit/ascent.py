"""Gradient ascent for the audit's own attacks.

An objective maps images and labels to (values (N,), logits (N, K)), an oracle to (values, gradient, wrong (N,) bool).
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.attacks.gradient import Loss, Net, cross_entropy, is_wrong, project_linf
from fsr.models.modes import hooked

Answer = tuple[Tensor, Tensor, Tensor]
Oracle = Callable[[Tensor, Tensor], Answer]
WithHeads = Callable[[Tensor], tuple[Tensor, list[Tensor]]]  # images to the final logits and those of other heads
STAGES = 6  # between two of them the step is halved


def scale_free(logits: Tensor) -> Tensor:
    """Logits (N, K) with each row's mean 0 and largest size 4: the cross-entropy of large logits has no gradient."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return 4 * centred / centred.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-30)


def scaled_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(scale_free(logits), y)


def backward(objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], draws: int = 1) -> Oracle:
    """Gradients by backpropagation, the mean over `draws` passes (EOT, Athalye et al. 2018)."""

    def oracle(x: Tensor, y: Tensor) -> Answer:
        value, gradient, scores = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(x), x.new_zeros(())
        for _ in range(draws):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                height, logits = objective(leaf, y)
                gradient = gradient + torch.autograd.grad(height.sum(), leaf)[0]
            value = value + height.detach() / draws
            scores = scores + (logits.detach() if draws == 1 else logits.detach().softmax(dim=1))
        return value, gradient, is_wrong(scores, y)

    return oracle


def slope(net: Net, loss: Loss, draws: int = 1) -> Oracle:
    """`backward` of a loss on the logits of a network."""
    return backward(lambda x, y: (loss(logits := net(x), y), logits), draws)


def differences(net: Net, loss: Loss, *, sigma: float, pairs: int, seed: int, momentum: float = 0.75) -> Oracle:
    """Gradients by antithetic Gaussian differences of width sigma (NES, Ilyas et al. 2018), added up call by call."""
    calls, memory = itertools.count(), torch.zeros(())

    @torch.no_grad()
    def oracle(x: Tensor, y: Tensor) -> Answer:
        nonlocal memory
        generator = torch.Generator(device=x.device).manual_seed(seed * 1_000_003 + next(calls))
        memory, logits = momentum * memory.to(x), net(x)
        for i in range(pairs):
            shape = x.shape if i % 2 else (len(x), 1, *x.shape[2:])
            direction = sigma * torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
            rise = loss(net(x + direction), y) - loss(net(x - direction), y)
            memory = memory + rise.view(-1, 1, 1, 1) * direction
        return loss(logits, y), memory, is_wrong(logits, y)

    return oracle


def ascend(oracle: Oracle, x: Tensor, y: Tensor, *, eps: float, steps: int, start=None, stop: bool = True) -> Tensor:
    """Sign ascent with APGD's momentum (Croce & Hein 2020) to the first wrong image, with stop=False to the highest."""
    x_adv = previous = x.detach() if start is None else project_linf(x + start, x, eps)
    best, best_gradient, size = x_adv, torch.zeros_like(x), 2 * eps
    height = torch.full((len(x), 1, 1, 1), -torch.inf, dtype=x.dtype, device=x.device)
    for step in range(steps + 1):
        value, gradient, wrong = oracle(x_adv, y)
        value = (torch.where(wrong, torch.inf, value) if stop else value).view_as(height)
        better = value > height
        best, height = torch.where(better, x_adv, best), torch.where(better, value, height)
        best_gradient = torch.where(better, gradient, best_gradient)
        if step == steps or (stop and bool(torch.isinf(height).all())):
            break
        if step and step % max(2, steps // STAGES) == 0:
            size, x_adv, previous, gradient = size / 2, best, best, best_gradient
        moved = project_linf(x_adv + size * gradient.sign(), x, eps)
        moved = x_adv + 0.75 * (moved - x_adv) + 0.25 * (x_adv - previous) if step else moved
        previous, x_adv = x_adv, project_linf(moved, x, eps)
    return best


def joint(network: WithHeads, weight: float) -> Oracle:
    """Up the CE of the final logits plus `weight` times its mean over the other heads, all logits scale-free."""

    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits, others = network(x)
        losses = [scaled_cross_entropy(z, y) for z in others]
        return scaled_cross_entropy(logits, y) + weight * sum(losses) / len(losses), logits

    return backward(objective)


def _stages(net: nn.Module, x: Tensor, most: int = 4) -> list[nn.Module]:
    """For each size of features above the logits', the last module to give it; the `most` last, in running order."""
    last, classes = dict[torch.Size, nn.Module](), net(x).shape[1]

    def note(module: nn.Module, _, out: Tensor) -> None:
        if isinstance(out, Tensor) and out.is_floating_point() and out.ndim > 1 and out[0].numel() > classes:
            last.pop(out.shape, None)
            last[out.shape] = module

    with hooked(net.modules(), note):
        net(x)
    return list(dict.fromkeys(last.values()))[-most:]


def _pooled(features: Tensor) -> Tensor:
    if features.ndim == 4 and min(features.shape[2:]) > 2:
        features = F.adaptive_avg_pool2d(features, 2)
    return (features.mean(dim=1) if features.ndim == 3 else features).flatten(1)


@torch.no_grad()
def with_latent_heads(net: nn.Module, x: Tensor, y: Tensor, *, classes: int, batch: int) -> tuple[WithHeads, int]:
    """The network with ridge regressions to the labels y on its stages as heads, and how many there are."""
    stages, heads = _stages(net, x[:2]), list[tuple]()

    def network(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen: dict[nn.Module, Tensor] = {}
        with hooked(stages, lambda module, _, out: seen.update({module: out})):
            logits = net(images)
        pooled = [_pooled(seen[stage]) for stage in stages]
        return logits, [F.linear(f, *head) for f, head in zip(pooled, heads)] if heads else pooled

    for part in zip(*[network(images)[1] for images in x.split(batch)]):
        features = torch.cat(part)
        mean, spread = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-5
        inputs, targets = (features - mean) / spread, F.one_hot(y, classes).to(features.dtype) - 1 / classes
        gram = inputs.T @ inputs / len(y)
        gram.diagonal().add_(0.1)
        weight = torch.linalg.solve(gram, inputs.T @ targets / len(y)).T / spread
        heads.append((weight, -weight @ mean))
    return network, len(stages)
