"""PGD made to transfer: input diversity (DI), translation invariance (TI), momentum (MI).

Arguments and result as in `fsr.attacks.gradient`; no random start. Randomness depends on the seed and the step only.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.attacks.gradient import Net, pgd


def resize_and_pad(x: Tensor, size: int, top: int, left: int) -> Tensor:
    """x (N, C, H, W) shrunk to size x size pixels (nearest) and put at (top, left) on zeros of x's own size."""
    height, width = x.shape[-2:]
    small = F.interpolate(x, size=(size, size), mode="nearest")
    return F.pad(small, (left, width - size - left, top, height - size - top))


def diversity(seed: int, *, probability: float = 0.5, resize: float = 0.9) -> Callable[[Tensor], Tensor]:
    """A transform that, at each call with `probability`, shrinks x and moves it at random (Xie et al. 2019).

    The size is uniform in [int(resize * H), H); one draw serves the batch, as in the authors' code. Square images.
    """
    generator = torch.Generator().manual_seed(seed)

    def transform(x: Tensor) -> Tensor:
        full = x.shape[-1]
        chosen = float(torch.rand((), generator=generator, dtype=torch.float32)) < probability
        size = int(torch.randint(min(int(resize * full), full - 1), full, (), generator=generator))
        top, left = (int(torch.randint(0, full - size + 1, (), generator=generator)) for _ in range(2))
        return resize_and_pad(x, size, top, left) if chosen else x

    return transform


def di_fgsm(model: Net, x: Tensor, y: Tensor, *, seed: int = 0, probability=0.5, resize=0.9, **options) -> Tensor:
    """PGD whose every gradient is taken at a randomly shrunk and moved copy (Xie et al. 2019, section 3.2)."""
    transform = diversity(seed, probability=probability, resize=resize)
    return pgd(lambda image: model(transform(image)), x, y, random_start=False, **options)


def ti_fgsm(model: Net, x: Tensor, y: Tensor, *, kernel: int | None = None, **options) -> Tensor:
    """PGD along the gradient smoothed by a Gaussian that ends at 3 sigma (Dong et al. 2019, eq. 8).

    kernel: its odd size; None: 7, and 3 up to 8 pixels.
    """
    size, channels = kernel or (3 if x.shape[-1] <= 8 else 7), x.shape[1]
    line = torch.exp(-(torch.linspace(-3, 3, size, dtype=torch.float64) ** 2) / 2)
    weight = (torch.outer(line, line) / torch.outer(line, line).sum()).to(x).expand(channels, 1, size, size)

    def smooth(gradient: Tensor) -> Tensor:
        return F.conv2d(gradient, weight, padding=size // 2, groups=channels)

    return pgd(model, x, y, random_start=False, direction=smooth, **options)


def mi_fgsm(model: Net, x: Tensor, y: Tensor, *, decay: float = 1.0, **options) -> Tensor:
    """PGD along accumulated gradients, each divided by its L1 norm (Dong et al. 2018, eq. 6 and 7)."""
    memory = torch.zeros_like(x)

    def accumulate(gradient: Tensor) -> Tensor:
        nonlocal memory
        size = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        memory = decay * memory + gradient / size
        return memory

    return pgd(model, x, y, random_start=False, direction=accumulate, **options)
