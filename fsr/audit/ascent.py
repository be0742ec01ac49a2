"""Gradient ascent for the audit's own attacks, and two gradient oracles for it: backpropagation and finite differences.

An objective maps images and labels to (values (N,), logits (N, K)). An oracle maps them to (values (N,), gradient like
the images, wrong (N,) bool).
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from fsr.attacks.gradient import project_linf
from fsr.attacks.losses import Loss, Net, is_wrong

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Oracle = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
STAGES = 6  # between two of them the step is halved


def scale_free(logits: Tensor) -> Tensor:
    """Logits (N, K) with each row's mean 0 and largest size 4: the cross-entropy of large logits has no gradient."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return 4 * centred / centred.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-30)


def of(net: Net, loss: Loss) -> Objective:
    """The objective that is `loss` on the logits of `net`."""

    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(x)
        return loss(logits, y), logits

    return objective


def backward(objective: Objective, draws: int = 1) -> Oracle:
    """Gradients by backpropagation, the mean over `draws` passes (EOT, Athalye et al. 2018)."""

    def oracle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def differences(net: Net, loss: Loss, *, sigma: float, pairs: int, seed: int, momentum: float = 0.75) -> Oracle:
    """Gradients by antithetic Gaussian differences of width sigma in pixels (NES, Ilyas et al. 2018, algorithm 1).

    For one batch: every call draws new directions, half of which move all channels together, and adds to earlier ones.
    """
    calls, memory = itertools.count(), torch.zeros(())

    @torch.no_grad()
    def oracle(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal memory
        generator = torch.Generator(device=x.device).manual_seed(seed * 1_000_003 + next(calls))
        memory, logits = momentum * memory.to(x), net(x)
        for i in range(pairs):
            shape = x.shape if i % 2 else (len(x), 1, *x.shape[2:])
            direction = sigma * torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
            slope = loss(net(x + direction), y) - loss(net(x - direction), y)
            memory = memory + slope.view(-1, 1, 1, 1) * direction
        return loss(logits, y), memory, is_wrong(logits, y)

    return oracle


def ascend(
    oracle: Oracle, x: Tensor, y: Tensor, *, eps: float, steps: int, start: Tensor | None = None, stop: bool = True
) -> Tensor:
    """Sign ascent with APGD's momentum; the step is halved from 2 * eps on, each time from the best image so far.

    x: (N, C, H, W) in [0, 1]; y: (N,); start: a first perturbation. Returns each sample's first wrong image, else (with
    stop=False always) its highest, in the ball and in [0, 1]. After Croce & Hein 2020.
    """
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
