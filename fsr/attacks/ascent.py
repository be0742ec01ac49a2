"""One strong ascent for every white-box attack of the audit, and the looks at a model that it can climb by.

A *look* maps (x_adv, y, rows) to (value (N,), gradient like x_adv, wrong (N,) bool): what is climbed, where up is, and
whether the model errs there. rows (N,) int64 are the samples' numbers in the batch that the look was built for. Looks
differ in how they find the gradient; the ascent does not care.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fsr.attacks.gradient import project_linf
from fsr.attacks.losses import Loss, Net, is_wrong

Look = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def lead(logits: Tensor, y: Tensor) -> Tensor:
    """How far the best wrong class leads the label, max_{j != y} z_j - z_y, (N,); positive where the model errs."""
    true = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], float("-inf")).amax(dim=1) - true


def scale_free(logits: Tensor) -> Tensor:
    """Logits (N, K) with each row's mean 0 and largest size 4, which is a constant of the backward pass.

    Multiplying a network's logits by 1000 changes nothing here, while its cross-entropy's gradient underflows.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    spread = centred.detach().abs().amax(dim=1, keepdim=True)
    return 4 * centred / spread.clamp_min(1e-30)


def of(net: Net, loss: Loss) -> Objective:
    """The objective that climbs `loss` on the logits of `net`."""

    def objective(x_adv: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(x_adv)
        return loss(logits, y), logits

    return objective


def differentiated(objective: Objective, draws: int = 1, jitter: float = 0.0, seed: int = 0) -> Look:
    """Look by backpropagation, averaged over `draws` passes (EOT, Athalye et al. 2018).

    objective: (x_adv, y, rows) to the value (N,) and the logits (N, K). jitter: each pass sees x_adv plus uniform
    noise of this size, which finds slopes that a saturated unit hides at x_adv itself. A model that cuts the graph
    (casts, detach, no_grad) gives a zero gradient here, never an exception.
    """

    def look(x_adv: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(device=x_adv.device).manual_seed(seed)
        value, gradient = torch.zeros_like(y, dtype=x_adv.dtype), torch.zeros_like(x_adv)
        scores = torch.zeros((), device=x_adv.device)
        for _ in range(draws):
            leaf = x_adv.detach()
            if jitter:
                noise = torch.rand(leaf.shape, generator=generator, device=leaf.device, dtype=leaf.dtype)
                leaf = (leaf + jitter * (2 * noise - 1)).clamp(0, 1)
            leaf.requires_grad_()
            with torch.enable_grad():
                height, logits = objective(leaf, y, rows)
                total = height.sum()
            value = value + height.detach() / draws
            scores = scores + (logits.detach() if draws == 1 else logits.detach().softmax(dim=1) / draws)
            if total.requires_grad:
                (up,) = torch.autograd.grad(total, leaf, allow_unused=True)
                gradient = gradient if up is None else gradient + up.nan_to_num(0, 0, 0)
        return value.nan_to_num(torch.inf, torch.inf, -torch.inf), gradient, is_wrong(scores, y)

    return look


class _State(NamedTuple):
    """Where each sample is, was and did best."""

    x_adv: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_value: Tensor
    best_gradient: Tensor
    found: Tensor  # an image that the model gets wrong, once there is one
    broken: Tensor


def windows(steps: int) -> list[int]:
    """Lengths of the stretches between decisions on the step size; they add up to `steps` (Croce & Hein 2020, 3.1)."""
    lengths: list[int] = []
    share = 0.22
    while sum(lengths) < steps:
        lengths.append(min(max(1, int(share * steps)), steps - sum(lengths)))
        share = max(share - 0.03, 0.06)
    return lengths


def _rows(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """yes where mask (N,) holds, else no; both (N, ...)."""
    return torch.where(mask.view(-1, *[1] * (yes.ndim - 1)), yes, no)


def _arrive(state: _State, x_adv: Tensor, value: Tensor, gradient: Tensor, wrong: Tensor) -> _State:
    """The state after one look at x_adv; the first wrong image stays the one that was found."""
    better, first = value > state.best_value, wrong & ~state.broken
    return _State(
        x_adv=x_adv,
        previous=state.x_adv,
        gradient=gradient,
        best=_rows(better, x_adv, state.best),
        best_value=torch.where(better, value, state.best_value),
        best_gradient=_rows(better, gradient, state.best_gradient),
        found=_rows(first, x_adv, state.found),
        broken=state.broken | wrong,
    )


def ascend(
    look: Look,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    start: Tensor | None = None,
    until_wrong: bool = True,
    rows: Tensor | None = None,
) -> Tensor:
    """Momentum sign ascent; its step starts at 2*eps and halves per sample when it stops paying (Croce & Hein 2020).

    x: (N, C, H, W) in [0, 1]; y: (N,); start: a first perturbation like x, else none. Returns x_adv like x in the ball
    and in [0, 1]: the first image that the looked-at model gets wrong, else the highest. until_wrong=False always gives
    the highest: right for randomised models, where one wrong draw means nothing.
    """
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    x_adv = x.detach() if start is None else project_linf(x + start, x, eps)
    value, gradient, wrong = look(x_adv, y, rows)
    state = _State(x_adv, x_adv, gradient, x_adv, value, gradient, x_adv, wrong)
    size = torch.full((len(x), 1, 1, 1), 2 * eps, dtype=x.dtype, device=x.device)
    halved, first = torch.ones_like(wrong), True
    for length in windows(steps):
        before, gains = state.best_value, torch.zeros_like(value)
        for _ in range(length):
            moved = project_linf(state.x_adv + size * state.gradient.sign(), x, eps)
            pull = 0.0 if first else 0.25
            moved = state.x_adv + (1 - pull) * (moved - state.x_adv) + pull * (state.x_adv - state.previous)
            moved, last, first = project_linf(moved, x, eps), value, False
            value, gradient, wrong = look(moved, y, rows)
            gains = gains + (value > last)
            state = _arrive(state, moved, value, gradient, wrong)
            if until_wrong and bool(state.broken.all()):
                return state.found
        stalled = (gains < 0.75 * length) | (~halved & (before >= state.best_value))
        state = state._replace(
            x_adv=_rows(stalled, state.best, state.x_adv), gradient=_rows(stalled, state.best_gradient, state.gradient)
        )
        value, size, halved = torch.where(stalled, state.best_value, value), _rows(stalled, size / 2, size), stalled
    return _rows(state.broken, state.found, state.best) if until_wrong else state.best
