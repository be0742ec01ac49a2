"""Feature separation and recalibration (Kim et al., CVPR 2023, after their code).

N images, C channels, H and W positions, K classes; f is the feature map (N, C, H, W) after one stage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fsr.config import FSRSpec
from fsr.files import UsageError, choose
from fsr.models.nets import conv3x3


def _noise(score: Tensor, u, stable_eps: float, part: tuple[int, int] | None) -> Tensor:
    """Difference of two Gumbel draws, like score: from two uniform draws, or as the one Logistic draw that it is."""
    if u is None:
        start, n = part or (0, len(score))  # our rows of what the whole batch would have drawn
        v = torch.rand_like(score.new_empty_strided((n, *score.shape[1:]), score.stride()))
        v = v[start : start + len(score)].clamp(1e-8, 1 - 2**-24)
        return torch.log(v) - torch.log1p(-v)
    first, second = (v.reshape(score.shape) for v in u)
    if not stable_eps:
        info = torch.finfo(score.dtype)
        first, second = (v.clamp(info.tiny, 1 - info.eps) for v in (first, second))
    first, second = (-torch.log(-torch.log(v + stable_eps) + stable_eps) for v in (first, second))
    return first - second


def gumbel_mask(
    score: Tensor, tau: float, *, noisy: bool, u=None, hard=False, stable_eps=0.0, backward_tau=None, part=None
) -> Tensor:
    """Soft two-way choice per activation, like score, in [0, 1]: towards 1 keeps it as robust, towards 0 as non-robust.

    The difference of two Gumbel draws is one Logistic draw, so the two-class Gumbel softmax of (log p, log(1 - p)),
    p = sigmoid(score), is one sigmoid (Jang et al. 2017). u: two uniform draws in place of fresh ones; hard: 0 or 1
    forward, soft backward; stable_eps: what the authors' code adds inside each logarithm and to tau; backward_tau: the
    gradient as if tau had this value (BPDA); part: (start, N) of a batch of N that several processes share.
    """
    if stable_eps:
        p = torch.sigmoid(score)
        score = torch.log(p + stable_eps) - torch.log(1 - p + stable_eps)
    if noisy:
        score = score + _noise(score, u, stable_eps, part)
    soft = torch.sigmoid(score / (tau + stable_eps))
    if not hard and backward_tau is None:
        return soft
    value = (score > 0).to(soft.dtype) if hard else soft
    slope = soft if backward_tau is None else torch.sigmoid(score / backward_tau)
    return value.detach() + (slope - slope.detach())  # exactly value, with the gradient of slope


class Streams(NamedTuple):
    """What one inserted module made of its input; a peer, or a control, that lacks a stream has None there."""

    features: Tensor  # (N, C, H, W)  what the network sees next: robust + recalibrated
    aux: dict[str, Tensor]  # stream's name, or `probe`, to logits (N, K)
    robust: Tensor | None = None  # (N, C, H, W)  mask * f
    nonrobust: Tensor | None = None  # (N, C, H, W)  (1 - mask) * f
    recalibrated: Tensor | None = None  # (N, C, H, W)  nonrobust + (1 - mask) * correction
    mask: Tensor | None = None  # (N, C, H, W)  in [0, 1]


class Intervention(NamedTuple):
    """mask: maps the module's own mask (N, C, H, W) to the one it uses, None keeps it; recalibrate=False sets R = 0."""

    mask: Callable[[Tensor], Tensor] | None = None
    recalibrate: bool = True


def _network(channels: int, hidden: int) -> nn.Sequential:
    layers = [part for c in (channels, hidden) for part in (conv3x3(c, hidden), nn.BatchNorm2d(hidden), nn.ReLU())]
    return nn.Sequential(*layers, conv3x3(hidden, channels))


class FSR(nn.Module):
    """Splits features by a learned robustness mask and corrects the non-robust part: (N, C, H, W) to the same shape.

    spec.kind chooses the method or a control, see FSRSpec. Noise follows `training` unless `noise` is True or False;
    `backward_tau`, `stable_eps`, `part`: see `gumbel_mask`.
    """

    def __init__(self, channels: int, num_classes: int, spec: FSRSpec | None = None, *, reference: int = 512):
        super().__init__()
        self.spec = spec = FSRSpec() if spec is None else spec
        # The authors' 64 at `reference` channels: a constant 64 would add 126 % of the parameters at width 8.
        hidden = spec.hidden or min(64, max(8, round(64 * channels / reference)))
        self.tau = spec.tau
        self.has_mask = spec.kind in ("fsr", "separation")  # without, interventions and attacks on masks mean nothing
        self.noise: bool | None = None
        self.backward_tau: float | None = None
        self.stable_eps = 0.0
        self.intervention: Intervention | None = None
        self.part: tuple[int, int] | None = None
        self.score: Any = _network(channels, hidden) if spec.kind != "aux" else None
        self.correct: Any = _network(channels, hidden) if spec.kind in ("fsr", "residual") else None
        self.aux: Any = nn.Linear(channels, num_classes) if spec.kind != "residual" else None

    def mask(self, f: Tensor, u: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The mask of f, (N, C, H, W) in [0, 1]; float32 at least, because 1 - mask vanishes in bfloat16."""
        score = self.score(f)
        score = score if score.dtype == torch.float64 else score.float()
        if self.spec.granularity != "element":
            score = score.mean((2, 3) if self.spec.granularity == "channel" else 1, keepdim=True)
        noisy = self.spec.mask != "soft" and (self.training if self.noise is None else self.noise)
        how: dict[str, Any] = {"stable_eps": self.stable_eps, "backward_tau": self.backward_tau, "part": self.part}
        mask = gumbel_mask(score, self.tau, noisy=noisy, u=u, hard=self.spec.mask == "hard", **how).expand(f.shape)
        change = None if self.intervention is None else self.intervention.mask
        return mask if change is None else change(mask)

    def _split(self, f: Tensor, u: tuple[Tensor, Tensor] | None) -> Streams:
        if self.spec.kind == "aux":
            return Streams(f, {}, robust=f, recalibrated=f)
        if self.spec.kind == "residual":
            g = f + self.score(f)
            return Streams(g + self.correct(g), {})
        mask = self.mask(f, u)
        robust, nonrobust = f * mask, f * (1 - mask)
        if self.correct is None:
            return Streams(robust.to(f.dtype), {}, robust, nonrobust, mask=mask)
        off = self.intervention is not None and not self.intervention.recalibrate
        recalibrated = nonrobust if off else nonrobust + (1 - mask) * self.correct(nonrobust.to(f.dtype))
        return Streams((robust + recalibrated).to(f.dtype), {}, robust, nonrobust, recalibrated, mask)

    def forward(self, f: Tensor) -> Tensor:
        """Features (N, C, H, W) only: the auxiliary head is not run."""
        return self._split(f, None).features

    def streams(self, f: Tensor, y: Tensor | None = None, u: tuple[Tensor, Tensor] | None = None) -> Streams:
        """Everything; y is not read; u: the two uniform draws of the mask's noise, else fresh ones."""
        split = self._split(f, u)
        head, names = self.aux, ("robust", "nonrobust", "recalibrated")
        aux = {n: head(s.mean((2, 3)).to(head.weight.dtype)) for n in names if (s := getattr(split, n)) is not None}
        return split._replace(aux=aux)


def _drawn(draw: Callable, size, seed: int) -> Tensor:
    return draw(size, generator=torch.Generator().manual_seed(seed))


INTERVENTIONS: dict[str, Callable[..., Tensor] | None] = {  # what each makes of a mask; None: R = 0
    "mask_one": lambda mask, seed: torch.ones_like(mask),  # everything is robust: the module is bypassed
    "no_recalibration": None,
    # One mask for all images, uniform in [0, 1): fixed by the seed, so that attacks meet no randomness.
    "mask_random": lambda mask, seed: _drawn(torch.rand, mask.shape[1:], seed).to(mask).expand(mask.shape),
    # The mean of each image's own mask: the same share kept, without any choice.
    "mask_constant": lambda mask, seed: mask.mean((1, 2, 3), keepdim=True).expand(mask.shape),
    # Each image's own mask with its entries moved by one fixed permutation: the same values in the wrong places.
    "mask_shuffled": lambda mask, seed: mask.flatten(1)[:, _drawn(torch.randperm, mask[0].numel(), seed)].view_as(mask),
}


def masked(model: nn.Module) -> list[FSR]:
    """The FSR modules of a model that have a mask, in the order of `modules()`."""
    return [part for part in model.modules() if isinstance(part, FSR) and part.has_mask]


@contextmanager
def switched(model: nn.Module, **switches) -> Iterator[None]:
    """FSR's test-time attributes (backward_tau, noise, intervention) set inside; a list gives each module its own."""
    before = [(module, {name: getattr(module, name) for name in switches}) for module in masked(model)]
    try:
        for i, (module, _) in enumerate(before):
            vars(module).update({k: value[i] if isinstance(value, list) else value for k, value in switches.items()})
        yield
    finally:
        for module, values in before:
            vars(module).update(values)


@contextmanager
def intervene(model: nn.Module, name: str, seed: int = 0) -> Iterator[nn.Module]:
    """Every FSR module of model acts under the named intervention inside the block; UsageError where none can."""
    change = choose("intervention", name, INTERVENTIONS)
    if not masked(model):
        raise UsageError(f"intervention {name!r} needs a model with an FSR mask; this one has none")
    with switched(model, intervention=Intervention(change and partial(change, seed=seed), change is not None)):
        yield model
