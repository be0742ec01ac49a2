"""Gradient ascent for the audit's own attacks; an objective maps images and labels to (values (N,), logits (N, K))."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.attacks.gradient import Loss, Net, cross_entropy, is_wrong, project_linf
from fsr.models.modes import hooked

Oracle = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # to (values (N,), gradient, wrong (N,) bool)
WithHeads = Callable[[Tensor], tuple[Tensor, list[Tensor]]]  # images to the final logits and those of other heads
STAGES = 6  # between two of them the step is halved


def scale_free(logits: Tensor) -> Tensor:
    """Logits (N, K) with each row's mean 0 and largest size 4: the cross-entropy of large logits has no gradient."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return 4 * centred / centred.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-30)


def backward(objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Oracle:
    """Gradients by backpropagation."""

    def oracle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            value, logits = objective(leaf, y)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient, is_wrong(logits.detach(), y)

    return oracle


def slope(net: Net, loss: Loss) -> Oracle:
    """`backward` of a loss on the logits of a network."""
    return backward(lambda x, y: (loss(logits := net(x), y), logits))


def differences(net: Net, loss: Loss, *, sigma: float, pairs: int) -> Oracle:
    """Gradients by antithetic Gaussian differences of width sigma (NES, Ilyas et al. 2018)."""

    @torch.no_grad()
    def oracle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, logits = torch.zeros_like(x), net(x)
        for _ in range(pairs):
            direction = sigma * torch.randn_like(x)
            ahead, behind = (loss(net((x + move).clamp(0, 1)), y) for move in (direction, -direction))
            gradient += (ahead - behind).view(-1, 1, 1, 1) * direction
        return loss(logits, y), gradient, is_wrong(logits, y)

    return oracle


def ascend(oracle: Oracle, x: Tensor, y: Tensor, *, eps: float, steps: int, start=0.0, stop: bool = True) -> Tensor:
    """Sign ascent with APGD's momentum (Croce & Hein 2020) to the first wrong image, with stop=False to the highest."""
    x_adv = previous = best = project_linf(x.detach() + start, x, eps)
    best_gradient, size = torch.zeros_like(x), 2 * eps
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


def joint(network: WithHeads) -> Oracle:
    """Up the CE of the final logits plus its mean over the other heads, all logits scale-free."""

    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits, others = network(x)
        own, *losses = [cross_entropy(scale_free(z), y) for z in (logits, *others)]
        return own + sum(losses) / len(losses), logits

    return backward(objective)


def _features(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what the last four convolutions give, pooled to (N, 4 C)."""
    seen, last = list[Tensor](), [module for module in net.modules() if isinstance(module, nn.Conv2d)][-4:]
    with hooked(last, lambda module, _, out: seen.append(out)):
        logits = net(x)
    return logits, [F.adaptive_avg_pool2d(out, 2).flatten(1).float() for out in seen[-4:] if len(out) == len(x)]


def before_output(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what the last linear layer gave if it has their shape: what lies between may hide the gradient."""
    seen, linear = list[Tensor](), [module for module in net.modules() if isinstance(module, nn.Linear)]
    with hooked(linear, lambda module, _, out: seen.append(out.float())):
        logits = net(x)
    return logits, [out for out in seen if out.shape == logits.shape][-1:]


@torch.no_grad()
def with_latent_heads(net: nn.Module, x: Tensor, y: Tensor, *, classes: int, batch: int) -> tuple[WithHeads, int]:
    """The network with linear regressions from its features to the labels y as heads, and how many there are."""
    heads = []
    for part in zip(*[_features(net, images)[1] for images in x.split(batch)]):
        mean = (features := torch.cat(part)).mean(dim=0)
        targets = F.one_hot(y, classes).to(features.dtype) - 1 / classes
        weight = (torch.linalg.pinv(features - mean, rtol=0.05) @ targets).T
        heads.append((weight, -weight @ mean))

    def network(images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, maps = _features(net, images)
        return logits, [F.linear(features, *head) for features, head in zip(maps, heads)]

    return network, len(heads)
