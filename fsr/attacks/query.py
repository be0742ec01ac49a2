"""N-Attack: black-box search by scores only.

N images, C channels, H and W pixels, K classes; P members of a population.
"""

import torch
from torch import Tensor

from fsr.attacks.gradient import noise_for, project_linf
from fsr.attacks.losses import Net

MEMBERS_PER_PASS = 6000  # images that one forward pass may hold; it changes the speed, not the result


def box(z: Tensor) -> Tensor:
    """From all real numbers into [0, 1]: (tanh z + 1) / 2."""
    return (torch.tanh(z) + 1) / 2


def unbox(x: Tensor) -> Tensor:
    """The inverse of `box`; 0 and 1 are drawn in by a millionth, as in the authors' code, to stay finite."""
    return torch.atanh((2 * x - 1) * (1 - 1e-6))


def _lead(logits: Tensor, y: Tensor) -> Tensor:
    """max(z_y - max_{j != y} z_j, 0), (N, P) from (N, P, K): zero where the attack has won."""
    true = logits.gather(-1, y[..., None]).squeeze(-1)
    return (true - logits.scatter(-1, y[..., None], float("-inf")).amax(-1)).clamp_min(0)


def _population_noise(shape: torch.Size, seed: int, step: int, like: Tensor) -> Tensor:
    """The same standard normal draws (P, C, H, W) for every image: outcomes do not depend on the batch or device."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _search(model: Net, x: Tensor, y: Tensor, mean: Tensor, *, eps, population, sigma, step, queries, seed) -> Tensor:
    """Search for a few images at once, from their first means (N, C, H, W); see `nattack`."""
    x_adv, z = x.clone(), unbox(x)
    rows = torch.arange(len(x), device=x.device)
    for turn in range(queries // population):
        noise = _population_noise(torch.Size([population, *x.shape[1:]]), seed, turn, x)
        members = box(z[rows, None] + mean[rows, None] + sigma * noise)
        members = project_linf(members, x[rows, None], eps)
        logits = model(members.flatten(0, 1)).view(len(rows), population, -1)
        wrong = logits.argmax(dim=2) != y[rows, None]
        won, first = wrong.any(dim=1), wrong.int().argmax(dim=1)
        x_adv[rows[won]] = members[won, first[won]]
        rows, logits = rows[~won], logits[~won]
        if len(rows) == 0:
            break
        reward = -0.5 * _lead(logits, y[rows, None].expand(-1, population))
        score = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, correction=0, keepdim=True) + 1e-7)
        mean[rows] += step / (population * sigma) * torch.einsum("np,pchw->nchw", score, noise)
    x_adv[rows] = project_linf(box(z[rows] + mean[rows]), x[rows], eps)
    return x_adv


@torch.no_grad()
def nattack(
    model: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    queries: int = 20_000,
    population: int = 300,
    sigma: float = 0.1,
    step: float = 0.02,
    seed: int = 0,
    indices=None,
) -> Tensor:
    """Move a Gaussian in tanh space so that its members fool the model (N-Attack, Li et al. 2019, algorithm 1).

    x: (N, C, H, W) in [0, 1]; y: (N,) int64; at most `queries` forward passes per image (`population` per turn).
    Returns x_adv like x, within eps and [0, 1]: the first member that fools the model, else the projected mean. Only
    logits are read; the loss is the C&W margin, the update the score-normalised gradient estimate of the authors' code.
    Their first mean, N(0, 0.001^2), is each image's own; the members' noise is shared by all images.
    """
    indices, population = range(len(x)) if indices is None else list(indices), min(population, queries)
    mean = 0.001 * noise_for(indices, tuple(x.shape[1:]), seed, kind="normal", dtype=x.dtype, device=x.device)
    x_adv = x.detach().clone()
    rows = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)
    for part in rows.split(max(1, MEMBERS_PER_PASS // population)) if len(rows) else ():
        x_adv[part] = _search(
            model,
            x[part],
            y[part],
            mean[part],
            eps=eps,
            population=population,
            sigma=sigma,
            step=step,
            queries=queries,
            seed=seed,
        )
    return x_adv
