"""Losses, the white-box and transfer attacks, all of which are PGD (Madry et al. 2018), and N-Attack.

An attack is (model, x, y, *, eps, ...) -> x_adv, like x (N, C, H, W) in [0, 1], within eps of it; y: (N,) int64. Losses
map logits (N, K) and labels to (N,) and are summed: no image's step depends on another.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.attacks.inputs import check_images, check_numbers
from fsr.files import UsageError

Net = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Indices = Iterable[int] | None  # the images' places in the data set, 0..N-1 if None
RESTARTS, STEP_SIZES, TARGETS = 10, (0.25, 0.1, 0.025), 9  # of `pgd_restarts` and `multi_targeted`
SIGMA, STEP = 0.1, 0.02  # of N-Attack's Gaussian, and of its mean
VALUES_PER_PASS = 6000 * 3 * 32 * 32  # pixel values that one forward pass may hold: bounds the memory

cross_entropy = partial(F.cross_entropy, reduction="none")


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where argmax is not y, (N,) bool; a row whose largest logit is not finite is wrong too."""
    return (logits.argmax(dim=1) != y) | ~torch.isfinite(logits.amax(dim=1))


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive where the network is wrong."""
    return logits.scatter(1, y[:, None], float("-inf")).amax(dim=1) - logits.gather(1, y[:, None]).squeeze(1)


def margin(logits: Tensor, y: Tensor, kappa: float = 50.0) -> Tensor:
    """C&W margin min(logit_margin - kappa, 0); flat beyond kappa (Carlini & Wagner 2017, eq. 6)."""
    return -(kappa - logit_margin(logits, y)).clamp_min(0)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_target - z_y; target: (N,) int64 wrong classes (Gowal et al. 2019)."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def joint_loss(traced, y: Tensor, weight: float = 2.0) -> Tensor:
    """CE of the logits + weight * mean CE of auxiliary logits (Bai 2021, Yan 2021); traced: of `Classifier.trace`."""
    logits, streams = traced
    heads = [head for stream in streams for head in stream.aux.values()]
    if not heads:
        raise UsageError("pgd20-joint needs a model whose modules have auxiliary classifiers: cas, cifs or fsr")
    return cross_entropy(logits, y) + weight * sum(cross_entropy(z.to(logits.dtype), y) for z in heads) / len(heads)


def project_linf(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point to x_adv within eps of x and within [0, 1]; all (N, C, H, W)."""
    return torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)


def noise_for(x: Tensor, *, seed: int, indices: Indices = None, stream: int = 0, kind: str = "random") -> Tensor:
    """Random numbers like x, uniform or of another `kind`, by place, seed and stream (Philox, Salmon et al. 2011)."""
    keys = [[seed, int(index)] for index in (range(len(x)) if indices is None else indices)]
    made = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream])) for key in keys]
    return torch.from_numpy(np.stack([getattr(rng, kind)(x.shape[1:]) for rng in made])).to(x.device, x.dtype)


def uniform_start(x: Tensor, *, eps: float, **own) -> Tensor:
    """A perturbation uniform in [-eps, eps] for each image, like x; own: see `noise_for`."""
    return eps * (2 * noise_for(x, **own) - 1)


def pgd(model, x, y, *, eps, alpha=None, steps=20, loss: Loss = cross_entropy, start=None, turn=None) -> Tensor:
    """Projected gradient ascent on `loss`, last iterate (Madry et al. 2018, section 2.1); alpha: 0.1 * eps if None.

    start: the first perturbation, none if None; turn: maps a gradient to the direction of the step.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError("an attack needs gradients: call it outside torch.inference_mode()")
    check_images(x, y)
    check_numbers(eps, steps=steps)
    x, alpha = x.detach(), 0.1 * eps if alpha is None else alpha
    if not 0 <= alpha < float("inf") or not (start is None or bool(start.isfinite().all())):
        raise UsageError(f"pgd needs a finite start and a finite alpha from 0, not alpha = {alpha}")
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    x_adv = x if start is None else torch.clamp(x + start, low, high)
    for _ in range(steps):
        leaf, gradient = x_adv.detach().requires_grad_(), torch.zeros_like(x)
        with torch.enable_grad():
            objective = loss(model(leaf.clone()), y).sum()
        if objective.requires_grad:
            (gradient,) = torch.autograd.grad(objective, leaf, allow_unused=True, materialize_grads=True)
        x_adv = torch.clamp(x_adv + alpha * (turn(gradient) if turn else gradient).sign(), low, high)
    return x_adv.detach()


def strongest(model: Net, x: Tensor, y: Tensor, attempts: int, craft: Callable[[int, Tensor], Tensor]) -> Tensor:
    """For each image the first of craft(attempt, places) that the model gets wrong, else that of the largest CE."""
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


def random_noise(model, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, indices: Indices = None) -> Tensor:
    """The control that asks no model: every pixel moved by eps up or down at random, clipped to [0, 1]."""
    return project_linf(x + eps * uniform_start(x, eps=1.0, seed=seed, indices=indices).sign(), x, eps)


def resize_and_pad(x: Tensor, size: int, top: int, left: int) -> Tensor:
    """x (N, C, H, W) shrunk to size pixels of width (nearest) and put at (top, left) on zeros of x's own size."""
    height, width = x.shape[-2:]
    rows, top = max(1, size * height // width), top * height // width
    small = F.interpolate(x, size=(rows, size), mode="nearest")
    return F.pad(small, (left, width - size - left, top, height - rows - top))


def diversity(seed: int, *, probability: float = 0.5, resize: float = 0.9) -> Callable[[Tensor], Tensor]:
    """A transform that shrinks the batch and moves it at random, or leaves it (Xie et al. 2019)."""
    generator = torch.Generator().manual_seed(seed)

    def transform(x: Tensor) -> Tensor:
        full = x.shape[-1]
        chosen = float(torch.rand((), generator=generator, dtype=torch.float32)) < probability
        size = int(torch.randint(max(1, min(int(resize * full), full - 1)), max(2, full), (), generator=generator))
        top, left = (int(torch.randint(0, full - size + 1, (), generator=generator)) for _ in range(2))
        return resize_and_pad(x, size, top, left) if chosen else x

    return transform


def di_fgsm(model: Net, x: Tensor, y: Tensor, *, seed: int = 0, probability=0.5, resize=0.9, **options) -> Tensor:
    """PGD whose every gradient is taken at a randomly shrunk and moved copy (Xie et al. 2019, section 3.2)."""
    transform = diversity(seed, probability=probability, resize=resize)
    return pgd(lambda image: model(transform(image)), x, y, **options)


def ti_fgsm(model: Net, x: Tensor, y: Tensor, **options) -> Tensor:
    """PGD along the gradient smoothed by a Gaussian to 3 sigma (Dong et al. 2019, eq. 8)."""
    size, channels = 3 if x.shape[-1] <= 8 else 7, x.shape[1]
    line = torch.exp(-(torch.linspace(-3, 3, size, dtype=torch.float64) ** 2) / 2)
    weight = (torch.outer(line, line) / torch.outer(line, line).sum()).to(x).expand(channels, 1, size, size)
    return pgd(model, x, y, turn=lambda g: F.conv2d(g, weight, padding=size // 2, groups=channels), **options)


def mi_fgsm(model: Net, x: Tensor, y: Tensor, *, decay: float = 1.0, **options) -> Tensor:
    """PGD along accumulated gradients, each divided by its L1 norm (Dong et al. 2018, eq. 6 and 7)."""
    memory = torch.zeros_like(x)

    def accumulate(gradient: Tensor) -> Tensor:
        size = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        return memory.mul_(decay).add_(gradient / size)

    return pgd(model, x, y, turn=accumulate, **options)


def _search(model: Net, x: Tensor, y: Tensor, mean: Tensor, *, eps, population, queries, seed) -> Tensor:
    x_adv, rows = x.clone(), torch.arange(len(x), device=x.device)
    z = torch.atanh((2 * x - 1) * (1 - 1e-6))  # from [0, 1] into all real numbers, drawn in to stay finite

    def images(rows: Tensor, moved: Tensor, *more) -> Tensor:
        return project_linf((torch.tanh(moved) + 1) / 2, x[rows, *more], eps)

    for turn in range(queries // population):
        generator, won = torch.Generator().manual_seed(seed * 1_000_003 + turn), rows < 0  # none so far
        noise = torch.randn((population, *x.shape[1:]), generator=generator, dtype=torch.float64).to(x)
        margins = list[Tensor]()
        for part in noise.split(max(1, VALUES_PER_PASS // x[0].numel())):
            members = images(rows, z[rows, None] + mean[rows, None] + SIGMA * part, None)
            labels = y[rows, None].expand(-1, len(part)).flatten()
            logits = model(members.flatten(0, 1))
            margins.append(logit_margin(logits, labels).view(len(rows), -1).to(x))
            wrong = (logits.argmax(dim=1) != labels).view(len(rows), -1)
            new, first = wrong.any(dim=1) & ~won, wrong.int().argmax(dim=1)
            x_adv[rows[new]], won = members[new, first[new]], won | new
        rows, reward = rows[~won], 0.5 * torch.cat(margins, dim=1)[~won].clamp_max(0)
        if len(rows) == 0:
            break
        score = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, correction=0, keepdim=True) + 1e-7)
        mean[rows] += STEP / (population * SIGMA) * torch.einsum("np,pchw->nchw", score, noise)
    x_adv[rows] = images(rows, z[rows] + mean[rows])
    return x_adv


@torch.no_grad()
def nattack(model: Net, x, y, *, eps, queries=20_000, population=300, seed=0, indices: Indices = None) -> Tensor:
    """Move a Gaussian in tanh space until a member fools the model (N-Attack, Li et al. 2019, algorithm 1)."""
    settings = {"eps": eps, "population": (population := min(population, queries)), "queries": queries, "seed": seed}
    x_adv, mean = x.detach().clone(), 0.001 * noise_for(x, seed=seed, indices=indices, kind="standard_normal")
    rows = (model(x.clone()).argmax(dim=1) == y).nonzero().squeeze(1)
    for part in rows.split(max(1, VALUES_PER_PASS // x[0].numel() // population)) if len(rows) else ():
        x_adv[part] = _search(model, x[part], y[part], mean[part], **settings)
    return x_adv
