"""Losses, and white-box attacks: PGD, FGSM, restarts, multi-targeted PGD, PGD on a joint loss; a noise control.

N images, C channels, H and W pixels, K classes. An attack is (model, x, y, *, eps, ...) -> x_adv: x (N, C, H, W) in
[0, 1], y (N,) int64, eps and alpha the L-inf radius and step in pixels of [0, 1]; x_adv is like x, within eps of it and
in [0, 1]. The caller chooses the model's mode. Losses are summed over the batch: no image's step depends on another.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.files import UsageError

Net = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
cross_entropy = partial(F.cross_entropy, reduction="none")  # of logits (N, K) and labels (N,), per image
Indices = Iterable[int] | None  # the images' places in the data set, 0..N-1 if None
RESTARTS, STEP_SIZES, TARGETS = 10, (0.25, 0.1, 0.025), 9  # of `pgd_restarts` and `multi_targeted`


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where argmax is not y, (N,) bool; a row whose largest logit is not finite is wrong too."""
    return (logits.argmax(dim=1) != y) | ~torch.isfinite(logits.amax(dim=1))


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


def project_linf(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point to x_adv within eps of x and within [0, 1]; all (N, C, H, W)."""
    return torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)


def noise_for(x: Tensor, *, seed: int, indices: Indices = None, stream: int = 0, kind: str = "random") -> Tensor:
    """Each image's own random numbers, like x: uniform in [0, 1), or of another `kind` of numpy's Generator.

    They depend on place in the data set, seed and stream (a restart), never on the batch: Philox (Salmon et al. 2011).
    """
    rows = []
    for index in range(len(x)) if indices is None else indices:
        rng = np.random.Generator(np.random.Philox(key=[seed, int(index)], counter=[0, 0, 0, stream]))
        rows.append(getattr(rng, kind)(x.shape[1:]))
    return torch.from_numpy(np.stack(rows)).to(device=x.device, dtype=x.dtype)


def uniform_start(x: Tensor, *, eps: float, seed: int, indices: Indices = None, stream: int = 0) -> Tensor:
    """A perturbation uniform in [-eps, eps] for each image, like x (see `noise_for`)."""
    return eps * (2 * noise_for(x, seed=seed, indices=indices, stream=stream) - 1)


def input_gradient(model: Net, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradient of the summed loss at x, like x; zero where the model cuts the graph, UsageError in inference_mode."""
    if torch.is_inference_mode_enabled():
        raise UsageError("an attack needs gradients: call it outside torch.inference_mode()")
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        objective = loss(model(leaf.clone()), y).sum()
    if not objective.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(objective, leaf, allow_unused=True, materialize_grads=True)[0]


def pgd(
    model: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float | None = None,
    steps: int = 20,
    loss: Loss = cross_entropy,
    random_start: bool = True,
    start: Tensor | None = None,
    direction: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """L-inf projected gradient ascent on `loss`, last iterate (Madry et al. 2018, section 2.1).

    alpha: 0.1 * eps if None. start: the first perturbation, like x; else uniform in the ball, or none. direction:
    changes the gradient.
    """
    x, alpha = x.detach(), 0.1 * eps if alpha is None else alpha
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    if start is None and random_start:
        start = eps * (2 * torch.rand(x.shape, device=x.device, dtype=x.dtype) - 1)
    x_adv = x if start is None else torch.clamp(x + start, low, high)
    for _ in range(steps):
        gradient = direction(input_gradient(model, x_adv, y, loss))
        x_adv = torch.clamp(x_adv + alpha * gradient.sign(), low, high)
    return x_adv.detach()


def fgsm(model: Net, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    """Fast gradient sign method: one step of eps, no random start (Goodfellow et al. 2015)."""
    return pgd(model, x, y, eps=eps, alpha=eps, steps=1, random_start=False)


def strongest(model: Net, x: Tensor, y: Tensor, attempts: int, craft: Callable[[int, Tensor], Tensor]) -> Tensor:
    """For each image the first attempt that the model gets wrong, else the one of largest cross-entropy.

    craft: (attempt, places (M,) of the images not yet wrong) to x_adv (M, C, H, W). The clean images come first.
    """
    x_adv, rows = x.detach().clone(), torch.arange(len(x), device=x.device)
    worst = torch.full((len(x),), float("-inf"), dtype=x.dtype, device=x.device)
    for attempt in range(-1, attempts):
        images = x_adv if attempt < 0 else craft(attempt, rows)
        with torch.no_grad():
            logits = model(images.clone())
        height, wrong = cross_entropy(logits, y[rows]).to(worst.dtype), is_wrong(logits, y[rows])
        better = wrong | (height > worst[rows])
        x_adv[rows[better]], worst[rows[better]] = images[better], height[better]
        rows = rows[~wrong]
        if len(rows) == 0:
            break
    return x_adv


def pgd_restarts(model: Net, x: Tensor, y: Tensor, *, eps, steps: int = 100, seed=0, indices: Indices = None) -> Tensor:
    """PGD from RESTARTS uniform starts, its step going round STEP_SIZES * eps; see `strongest`, `uniform_start`."""

    def craft(restart: int, rows: Tensor) -> Tensor:
        start = uniform_start(x, eps=eps, seed=seed, indices=indices, stream=restart)[rows]
        return pgd(model, x[rows], y[rows], eps=eps, alpha=STEP_SIZES[restart % 3] * eps, start=start, steps=steps)

    return strongest(model, x, y, RESTARTS, craft)


def multi_targeted(model: Net, x: Tensor, y: Tensor, *, eps, steps=50, seed=0, indices: Indices = None) -> Tensor:
    """PGD towards each of the TARGETS most probable wrong classes; see `strongest` (Gowal et al. 2019)."""
    with torch.no_grad():
        others = model(x.clone()).scatter(1, y[:, None], float("-inf"))
    aims = others.topk(min(TARGETS, others.shape[1] - 1), dim=1).indices

    def craft(rank: int, rows: Tensor) -> Tensor:
        start = uniform_start(x, eps=eps, seed=seed, indices=indices, stream=rank)[rows]
        towards = partial(targeted_margin, target=aims[rows, rank])
        return pgd(model, x[rows], y[rows], eps=eps, steps=steps, start=start, loss=towards)

    return strongest(model, x, y, aims.shape[1], craft)


def joint_loss(traced, y: Tensor, weight: float = 2.0) -> Tensor:
    """CE of the final logits + weight * mean CE of the modules' auxiliary logits, (N,) (Bai 2021, Yan 2021).

    traced: what `Classifier.trace` returns. UsageError without auxiliary logits.
    """
    logits, streams = traced
    heads = [head for stream in streams for head in stream.aux.values()]
    if not heads:
        raise UsageError("pgd20-joint needs a model whose modules have auxiliary classifiers: cas, cifs or fsr")
    auxiliary = sum(cross_entropy(head.to(logits.dtype), y) for head in heads) / len(heads)
    return cross_entropy(logits, y) + weight * auxiliary


def joint(model, x: Tensor, y: Tensor, *, eps: float, steps: int = 20) -> Tensor:
    """PGD on `joint_loss`, of a model with `trace`."""
    return pgd(model.trace, x, y, eps=eps, steps=steps, loss=joint_loss, random_start=False)


def random_noise(model, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, indices: Indices = None) -> Tensor:
    """The control that asks no model: every pixel moved by eps up or down at random, clipped to [0, 1]."""
    return project_linf(x + eps * uniform_start(x, eps=1.0, seed=seed, indices=indices).sign(), x, eps)
