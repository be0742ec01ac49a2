"""White-box attacks: FGSM and PGD with restarts.

N images, C channels, H and W pixels, K classes. Only sums of a loss over the batch are differentiated, so that no
sample's step depends on its neighbours.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fsr.attacks.losses import Loss, Net, cross_entropy, is_wrong, targeted_margin
from fsr.files import UsageError


def check_images(x: Tensor, y: Tensor, classes: int | None = None) -> None:
    """Refuse what no attack here can mean anything on; for callers, once, outside the hot loop.

    x: (N, C, H, W) floating point in [0, 1], N > 0; y: (N,) int64 in [0, classes). Raises UsageError.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"images must be (N, C, H, W) floating point in [0, 1], not {tuple(x.shape)} {x.dtype}")
    if y.ndim != 1 or y.dtype != torch.int64 or len(y) != len(x):
        raise UsageError(f"labels must be ({len(x)},) int64, one per image, not {tuple(y.shape)} {y.dtype}")
    if len(x) == 0:
        raise UsageError("there are no images: the batch is empty")
    if not torch.isfinite(x).all():
        raise UsageError("images hold NaN or infinite pixels")
    if x.min() < 0 or x.max() > 1:
        raise UsageError(f"pixels must lie in [0, 1], not from {x.min():g} to {x.max():g}; divide 0..255 by 255")
    if int(y.min()) < 0 or (classes is not None and int(y.max()) >= classes):
        raise UsageError(
            f"labels must lie in 0..{'K-1' if classes is None else classes - 1}, "
            f"these reach from {int(y.min())} to {int(y.max())}"
        )


def project_linf(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point to x_adv within eps of x and within [0, 1]; all (N, C, H, W)."""
    return torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)


def noise_for(
    indices: Iterable[int],
    shape: tuple[int, ...],
    seed: int,
    *,
    stream: int = 0,
    kind: str = "uniform",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Each image's own random numbers, (N, *shape): uniform in [0, 1) or standard normal.

    They depend on the image's index in its data set, the seed and the stream (a restart, a draw), never on the
    batch or the device. Counter-based generator: Philox (Salmon et al. 2011).
    """
    rows = []
    for index in indices:
        rng = np.random.Generator(np.random.Philox(key=[seed, int(index)], counter=[0, 0, 0, stream]))
        rows.append(rng.random(shape) if kind == "uniform" else rng.standard_normal(shape))
    return torch.from_numpy(np.stack(rows)).to(device=device, dtype=dtype)


def uniform_start(x: Tensor, *, eps: float, seed: int, indices: Iterable[int] | None = None, stream: int = 0) -> Tensor:
    """A perturbation uniform in [-eps, eps] for each image, like x; indices default to 0..N-1 (see `noise_for`)."""
    indices = range(len(x)) if indices is None else indices
    noise = noise_for(indices, tuple(x.shape[1:]), seed, stream=stream, dtype=x.dtype, device=x.device)
    return eps * (2 * noise - 1)


def input_gradient(model: Net, x: Tensor, y: Tensor, loss: Loss, draws: int = 1) -> Tensor:
    """Gradient of the loss at x, like x; mean over `draws` passes for a randomised model (EOT, Athalye et al. 2018).

    Only x is differentiated: parameters and their gradients stay untouched, also inside no_grad. A model that cuts the
    graph (rounding, detach) gives zero: attacks after this one still run, and failure indicators see it. Inside
    inference_mode every model would look so, hence UsageError.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError("an attack needs gradients: call it outside torch.inference_mode()")
    total = _one_gradient(model, x, y, loss)
    for _ in range(draws - 1):
        total = total + _one_gradient(model, x, y, loss)
    return total if draws == 1 else total / draws


def _one_gradient(model: Net, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        objective = loss(model(leaf), y).sum()
    if not objective.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(objective, leaf, allow_unused=True, materialize_grads=True)[0]


def _ascend(model, x, y, delta, *, eps, alpha, steps, loss, direction, draws) -> Tensor:
    """One run of projected sign ascent from x + delta; the last iterate."""
    x, low, high = x.detach(), (x - eps).clamp_min(0), (x + eps).clamp_max(1)  # the ball inside [0, 1], once
    x_adv = x if delta is None else torch.clamp(x + delta, low, high)
    for _ in range(steps):
        gradient = input_gradient(model, x_adv, y, loss, draws)
        gradient = gradient if direction is None else direction(gradient)
        x_adv = torch.clamp(x_adv + alpha * gradient.sign(), low, high)
    return x_adv.detach()


def pgd(
    model: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    loss: Loss = cross_entropy,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    start: Tensor | Callable[[int], Tensor] | None = None,
    restarts: int = 1,
    direction: Callable[[Tensor], Tensor] | None = None,
    draws: int = 1,
) -> Tensor:
    """L-inf projected gradient ascent on `loss`, last iterate (Madry et al. 2018, section 2.1).

    x: (N, C, H, W) in [0, 1]; y: (N,) int64; eps, alpha: radius and step in pixels of [0, 1]. Returns x_adv like x,
    |x_adv - x| <= eps, in [0, 1]. Reads `model`, never changes it: the caller chooses its mode.
    start: the first perturbation, like x, or a function of the restart that gives it; else uniform in the ball from
    `generator` (on x's device), else, with random_start=False, none. direction: replaces the gradient before its sign
    (smoothing, momentum). draws: gradients averaged per step. restarts > 1: see `strongest`; needs a differing start.
    """

    def delta(restart: int) -> Tensor | None:
        if callable(start):
            return start(restart)
        if start is not None or not random_start:
            return start
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return eps * (2 * noise - 1)

    ascend = partial(_ascend, model, eps=eps, alpha=alpha, steps=steps, loss=loss, direction=direction, draws=draws)
    if restarts == 1:
        return ascend(x, y, delta(0))

    def attempt(restart: int):
        first = delta(restart)
        return lambda rows: ascend(x[rows], y[rows], None if first is None else first[rows])

    return strongest(model, x, y, (attempt(restart) for restart in range(restarts)))


def strongest(model: Net, x: Tensor, y: Tensor, attempts: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """Each sample's first image that `model` gets wrong, over the clean image and several attempts; x_adv like x.

    An attempt maps the rows still unbroken, (M,) int64, to their images (M, C, H, W). A sample that nothing breaks
    keeps its image with the largest cross-entropy: it may still break a model that only resembles `model`.
    """
    x_adv, worst = x.detach().clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    rows = torch.arange(len(x), device=x.device)

    def keep(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits = model(images)
            height = cross_entropy(logits, y[rows]).to(worst.dtype)
            wrong = is_wrong(logits, y[rows])
        better = wrong | (height > worst[rows])
        x_adv[rows[better]], worst[rows[better]] = images[better], height[better]
        return rows[~wrong]

    rows = keep(x_adv)
    for attempt in attempts if len(rows) else ():
        rows = keep(attempt(rows))
        if len(rows) == 0:
            break
    return x_adv


def fgsm(model: Net, x: Tensor, y: Tensor, *, eps: float, loss: Loss = cross_entropy) -> Tensor:
    """Fast gradient sign method: one step of eps, no random start (Goodfellow et al. 2015). Shapes as in `pgd`."""
    return pgd(model, x, y, eps=eps, alpha=eps, steps=1, loss=loss, random_start=False)


def wrong_classes(model: Net, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` most probable wrong classes of the clean images, most probable first, (N, min(count, K - 1))."""
    with torch.no_grad():
        logits = model(x).scatter(1, y[:, None], float("-inf"))
    return logits.topk(min(count, logits.shape[1] - 1), dim=1).indices


def multi_targeted(
    model: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    targets: int = 9,
    loss=targeted_margin,
    start: Callable[[int], Tensor] | None = None,
    draws: int = 1,
    judge: Net | None = None,
) -> Tensor:
    """PGD towards each of the most probable wrong classes in turn, on what is left unbroken (Gowal et al. 2019).

    loss: (logits, y, target) to (N,); start: the class's rank to a first perturbation, like x; draws: as for `pgd`;
    judge: what says which classes are near and what is broken, by default the model. See `strongest`.
    """
    judge = model if judge is None else judge
    aims = wrong_classes(judge, x, y, targets)

    def attempt(rank: int):
        first = None if start is None else start(rank)

        def run(rows: Tensor) -> Tensor:
            return pgd(
                model,
                x[rows],
                y[rows],
                eps=eps,
                alpha=alpha,
                steps=steps,
                random_start=False,
                draws=draws,
                loss=partial(loss, target=aims[rows, rank]),
                start=None if first is None else first[rows],
            )

        return run

    return strongest(judge, x, y, (attempt(rank) for rank in range(aims.shape[1])))


def random_noise(x: Tensor, *, eps: float, seed: int = 0, indices: Iterable[int] | None = None) -> Tensor:
    """The control that reads no model: every pixel moved by +eps or -eps at random, clipped to [0, 1]; like x."""
    return project_linf(x + eps * uniform_start(x, eps=1.0, seed=seed, indices=indices).sign(), x, eps)
