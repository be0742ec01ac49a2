"""What attacks may be given, the network as they ask it, and random numbers of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import UsageError


def check_images(x: Tensor, y: Tensor, classes: int | None = None) -> None:
    """UsageError unless x is (N, C, H, W) in [0, 1] and y (N,) int64 in [0, classes)."""
    if wrong := [type(each).__name__ for each in (x, y) if not isinstance(each, Tensor) or each.is_sparse]:
        raise UsageError(f"images and labels must be dense tensors, not {wrong[0]}")
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[1:]:
        raise UsageError(f"images must be (N, C, H, W) floating point in [0, 1], not {tuple(x.shape)} {x.dtype}")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise UsageError(f"labels must be ({len(x)},) int64, one per image, not {tuple(y.shape)} {y.dtype}")
    if not len(x):
        return
    dark, bright, low, high = float(x.min()), float(x.max()), int(y.min()), int(y.max())  # NaN where a pixel is NaN
    if not (dark >= 0 and bright <= 1):
        raise UsageError(f"pixels must lie in [0, 1], not from {dark:.9g} to {bright:.9g}; divide 0..255 by 255")
    if low < 0 or (classes is not None and high >= classes):
        last = "K-1" if classes is None else classes - 1
        raise UsageError(f"labels must lie in 0..{last}, these reach from {low} to {high}")


def check_numbers(eps: float, **counts: int) -> dict[str, Any]:
    """All as Python numbers, by name; UsageError unless eps lies in [0, 1] and every count is whole, 0 to 2^32 - 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or not 0 <= count < 2**32:
            raise UsageError(f"{name} must be a whole number from 0, below 2^32, not {count!r}")
    if not isinstance(eps, Real) or isinstance(eps, bool) or not 0 <= eps <= 1:
        raise UsageError(f"eps must lie in [0, 1], in pixels of [0, 1] such as 8/255, not {eps!r}")
    return {"eps": float(eps)} | {name: int(count) for name, count in counts.items()}


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeded torch, and float32 by default, inside; afterwards both are as they were before."""
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def inward(x: Tensor, by: float = 2.0**-16) -> Tensor:
    """Pixels of exactly 0 and 1 moved inside, so that a network's own clamp lets their gradient through."""
    return x + by * ((x == 0).to(x.dtype) - (x == 1).to(x.dtype))


class Network(nn.Module):
    """What attacks call in place of a model: it gets a copy of the images, and gives logits that have a gradient.

    A class switched off becomes one below the row's lowest. UsageError for unfit logits and labels without a class.
    draws: of a randomised network, the logarithm of the mean softmax over so many passes, up to a constant.
    """

    def __init__(self, model: Any, x: Tensor, y: Tensor, draws: int = 1):
        super().__init__()
        self.model, self.x, self.y, self.draws = model, x.detach(), y, draws
        self.called = self.fixed = self.blind = self.seeds = False  # blind: no gradients; seeds: it seeds torch
        self.clips: float | None = None  # how far `inward` moves; not known before the first gradient is asked for
        self.states: tuple[Tensor, Tensor] | None = None  # of torch's random numbers, before and after its last pass

    def forward(self, x: Tensor) -> Tensor:
        if self.draws == 1:
            return self._logits(x)
        return torch.stack([self._logits(x).log_softmax(dim=1) for _ in range(self.draws)]).logsumexp(dim=0)

    def trace(self, x: Tensor) -> tuple[Tensor, Any]:
        if not hasattr(self.model, "trace"):
            raise UsageError("this attack needs a network with `trace`, from fsr.models.build_model")
        logits, streams = self.model.trace(self._ready(x))
        return self._checked(logits, len(x)), streams

    def _ready(self, x: Tensor) -> Tensor:
        """Its own copy of the images; where their gradient is asked for, moved off the edges that have none."""
        if self.clips is None and x.requires_grad:
            self.clips = 0.0
            self.clips = self._clips()
        images = (inward(x, self.clips) if self.clips and x.requires_grad else x).to(self.x.dtype, copy=True)
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient.nan_to_num(0, 0, 0))
        return images

    def _clips(self) -> float:
        """How far inside of 0 and 1 it has more gradients, 0 where nowhere; half precision sees no 1 - 2^-16."""

        def count(images: Tensor) -> int:
            leaf = images.clone().requires_grad_()
            with torch.enable_grad(), own_randomness(0):
                logits = self._logits(leaf)
                total = (logits * torch.arange(logits.shape[1], device=leaf.device)).sum()
                return int(torch.autograd.grad(total, leaf)[0].count_nonzero())

        here, near, far = (count(inward(self.x[:8].round(), by)) for by in (0.0, 2.0**-16, 2.0**-8))
        return 2.0**-8 if max(here, near) < 0.9 * far else 2.0**-16 * (here < 0.99 * near)

    def _logits(self, x: Tensor) -> Tensor:
        images = self._ready(x)
        with torch.random.fork_rng(range(torch.cuda.device_count()), enabled=self.seeds):
            before = torch.get_rng_state()
            logits = self._checked(self._passed(images.detach() if self.blind else images), len(x))
            (start, end), self.states = self.states or (before, before), (before, torch.get_rng_state())
        self.seeds |= torch.equal(end, self.states[1]) and not torch.equal(start, before)
        far = (logits < logits.amax(dim=1, keepdim=True) - 1e8) & (logits == logits[:1]).all(dim=0)
        off = torch.isneginf(logits) | (far if len(x) > 1 else False)  # by -inf, or by one number for all images
        lowest = logits.detach().masked_fill(off, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(off, lowest - 1 - 0.01 * lowest.abs(), logits) + 0 * x.flatten(1).mean(dim=1, keepdim=True)

    def _passed(self, x: Tensor) -> Any:
        try:
            if not self.fixed:
                return self.model(x.clone())
        except (RuntimeError, ValueError, AssertionError):
            kinds = [p.dtype for p in getattr(self.model, "parameters", tuple)() if p.is_floating_point()]
            if not self.called and kinds and x.dtype not in kinds:
                raise UsageError(f"the network is of {kinds[0]} and does not take images of {x.dtype}") from None
            if len(x) == len(self.x):
                raise
        parts = torch.cat([x, x[:1].expand(-len(x) % len(self.x), *x.shape[1:])]).split(len(self.x))
        logits = torch.cat([self.model(part.clone()) for part in parts])[: len(x)]
        self.fixed = True  # it takes batches of its first size only: smaller ones are padded
        return logits

    def _checked(self, logits: Any, images: int) -> Tensor:
        shape = logits.shape if isinstance(logits, Tensor) and logits.is_floating_point() else ()
        if len(shape) != 2 or shape[0] != images or shape[1] < 2:
            raise UsageError(f"the network must give float logits (N, K), K at least 2, of N = {images} images too")
        if not self.called:
            check_images(self.x[:1].expand(len(self.y), -1, -1, -1), self.y, logits.shape[1])
            self.called = True
        return logits
