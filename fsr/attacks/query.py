"""Attacks that read scores only: N-Attack and Square; arguments and result as in `fsr.attacks.gradient`."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fsr.attacks.auto import single
from fsr.attacks.gradient import Indices, Net, logit_margin, noise_for, project_linf

SIGMA, STEP = 0.1, 0.02  # of N-Attack's Gaussian, and of its mean
VALUES_PER_PASS = 6000 * 3 * 32 * 32  # pixel values that one forward pass may hold: bounds the memory


def _population(x: Tensor, members: int, seed: int, turn: int) -> Iterator[tuple[slice, Tensor]]:
    """(members, their standard normal noise (P, C, H, W)) in parts of 16s, which draw what one part would."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    size = max(1, min(members, VALUES_PER_PASS // x[0].numel()))
    size = size if size in (1, members) else max(1, size // 16 * 16)
    for first in range(0, members, size):
        shape = (min(size, members - first), *x.shape[1:])
        yield slice(first, first + size), torch.randn(shape, generator=generator, dtype=torch.float64).to(x)


def _search(model: Net, x: Tensor, y: Tensor, mean: Tensor, *, eps, population, queries, seed) -> Tensor:
    x_adv, rows = x.clone(), torch.arange(len(x), device=x.device)
    z = torch.atanh((2 * x - 1) * (1 - 1e-6))  # from [0, 1] into all real numbers, drawn in to stay finite

    def images(rows: Tensor, moved: Tensor, *more) -> Tensor:
        return project_linf((torch.tanh(moved) + 1) / 2, x[rows, *more], eps)

    for turn in range(queries // population):
        ahead = torch.empty(len(rows), population, dtype=x.dtype, device=x.device)
        won = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
        for part, noise in _population(x, population, seed, turn):
            members = images(rows, z[rows, None] + mean[rows, None] + SIGMA * noise, None)
            labels = y[rows, None].expand(-1, len(noise)).flatten()
            logits = model(members.flatten(0, 1))
            ahead[:, part] = -logit_margin(logits, labels).view(len(rows), -1).to(ahead)
            wrong = (logits.argmax(dim=1) != labels).view(len(rows), -1)
            new, first = wrong.any(dim=1) & ~won, wrong.int().argmax(dim=1)
            x_adv[rows[new]], won = members[new, first[new]], won | new
        rows, reward = rows[~won], -0.5 * ahead[~won].clamp_min(0)
        if len(rows) == 0:
            break
        score = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, correction=0, keepdim=True) + 1e-7)
        for part, noise in _population(x, population, seed, turn):
            mean[rows] += STEP / (population * SIGMA) * torch.einsum("np,pchw->nchw", score[:, part], noise)
    x_adv[rows] = images(rows, z[rows] + mean[rows])
    return x_adv


@torch.no_grad()
def nattack(
    model: Net, x: Tensor, y: Tensor, *, eps, queries=20_000, population=300, seed=0, indices: Indices = None
) -> Tensor:
    """Move a Gaussian in tanh space so that its members fool the model (N-Attack, Li et al. 2019, algorithm 1).

    Gives the first member that fools the model, else the projected mean. The first mean is each image's own.
    """
    settings = {"eps": eps, "population": (population := min(population, queries)), "queries": queries, "seed": seed}
    x_adv, mean = x.detach().clone(), 0.001 * noise_for(x, seed=seed, indices=indices, kind="standard_normal")
    rows = (model(x.clone()).argmax(dim=1) == y).nonzero().squeeze(1)
    for part in rows.split(max(1, VALUES_PER_PASS // x[0].numel() // population)) if len(rows) else ():
        x_adv[part] = _search(model, x[part], y[part], mean[part], **settings)
    return x_adv


def square(model: Net, x: Tensor, y: Tensor, *, eps: float, queries: int = 5000, seed: int = 0) -> Tensor:
    """Square Attack (Andriushchenko et al. 2020), margin loss, its schedule fitted to the queries as in that paper."""
    return single(model, x, y, name="square", eps=eps, seed=seed, queries=queries, rescale=True)
