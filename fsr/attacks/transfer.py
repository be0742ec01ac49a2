"""Attacks made to transfer from a surrogate: input diversity, translation invariance, momentum.

N images, C channels, H and W pixels. Each climbs cross-entropy on the net it is given (a surrogate, or the model
itself) without a random start; its randomness depends on the seed and the step only, never on the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.attacks.gradient import pgd
from fsr.attacks.losses import Loss, Net, cross_entropy


def resize_and_pad(x: Tensor, size: int, top: int, left: int) -> Tensor:
    """x (N, C, H, W) shrunk to size x size pixels (nearest) and put at (top, left) on zeros of x's own size."""
    height, width = x.shape[-2:]
    small = F.interpolate(x, size=(size, size), mode="nearest")
    return F.pad(small, (left, width - size - left, top, height - size - top))


def diversity(seed: int, *, probability: float = 0.5, resize: float = 0.9) -> Callable[[Tensor], Tensor]:
    """A transform that draws anew at each call: with `probability`, shrink x and place it at random (Xie et al. 2019).

    The size is uniform in [int(resize * H), H), the place anywhere inside; one draw serves the whole batch, as in the
    authors' code. Square images.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def transform(x: Tensor) -> Tensor:
        full = x.shape[-1]
        chosen = float(torch.rand((), generator=generator)) < probability
        size = draw(min(int(resize * full), full - 1), full)
        top, left = draw(0, full - size + 1), draw(0, full - size + 1)
        return resize_and_pad(x, size, top, left) if chosen else x

    return transform


def di_fgsm(
    net: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    seed: int = 0,
    probability: float = 0.5,
    resize: float = 0.9,
    loss: Loss = cross_entropy,
) -> Tensor:
    """PGD whose every gradient is taken at a randomly shrunk and moved copy (DI, Xie et al. 2019, section 3.2).

    Shapes and ranges as in `fsr.attacks.gradient.pgd`; no momentum.
    """
    transform = diversity(seed, probability=probability, resize=resize)
    return pgd(
        lambda image: net(transform(image)), x, y, eps=eps, alpha=alpha, steps=steps, loss=loss, random_start=False
    )


def gaussian_kernel(size: int, sigmas: float = 3.0) -> Tensor:
    """A (size, size) float64 Gaussian that sums to 1 and reaches `sigmas` at its border (Dong et al. 2019, code)."""
    line = torch.exp(-(torch.linspace(-sigmas, sigmas, size, dtype=torch.float64) ** 2) / 2)
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()


def smoothing(size: int) -> Callable[[Tensor], Tensor]:
    """Convolve each channel of a gradient (N, C, H, W) with a Gaussian of odd `size`, zeros outside."""
    kernel = gaussian_kernel(size)

    def smooth(gradient: Tensor) -> Tensor:
        channels = gradient.shape[1]
        weight = kernel.to(gradient).expand(channels, 1, size, size)
        return F.conv2d(gradient, weight, padding=size // 2, groups=channels)

    return smooth


def kernel_for(pixels: int) -> int:
    """The TI kernel's size at this image size: 7, and 3 for images of 8 pixels."""
    return 3 if pixels <= 8 else 7


def ti_fgsm(
    net: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    kernel: int | None = None,
    loss: Loss = cross_entropy,
) -> Tensor:
    """PGD that follows the Gaussian-smoothed gradient (TI, Dong et al. 2019, eq. 8); kernel None: see `kernel_for`.

    Shapes and ranges as in `fsr.attacks.gradient.pgd`; no momentum, no input diversity.
    """
    return pgd(
        net,
        x,
        y,
        eps=eps,
        alpha=alpha,
        steps=steps,
        loss=loss,
        random_start=False,
        direction=smoothing(kernel or kernel_for(x.shape[-1])),
    )


def momentum(decay: float) -> Callable[[Tensor], Tensor]:
    """Accumulate gradients (N, C, H, W), each divided by its own L1 norm: g <- decay * g + gradient / |gradient|_1."""
    memory = None

    def accumulate(gradient: Tensor) -> Tensor:
        nonlocal memory
        size = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        memory = gradient / size if memory is None else decay * memory + gradient / size
        return memory

    return accumulate


def mi_fgsm(
    net: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    decay: float = 1.0,
    loss: Loss = cross_entropy,
) -> Tensor:
    """PGD that follows accumulated gradients (MI, Dong et al. 2018, eq. 6 and 7).

    Shapes and ranges as in `fsr.attacks.gradient.pgd`.
    """
    return pgd(net, x, y, eps=eps, alpha=alpha, steps=steps, loss=loss, random_start=False, direction=momentum(decay))


def transfer(
    surrogate: Net, x: Tensor, y: Tensor, *, eps: float, alpha: float, steps: int, loss: Loss = cross_entropy
) -> Tensor:
    """PGD on another net, to be judged by the model that it never saw (Papernot et al. 2016); shapes as in `pgd`."""
    return pgd(surrogate, x, y, eps=eps, alpha=alpha, steps=steps, loss=loss, random_start=False)
