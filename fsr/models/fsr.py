"""Feature separation and recalibration (Kim et al., CVPR 2023, after their code).

N images, C channels, H and W positions, K classes; f is the feature map (N, C, H, W) after one stage.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fsr.config import FSRSpec
from fsr.models.interventions import Intervention
from fsr.models.resnet import conv3x3

HIDDEN = 64  # of the authors, at 512 channels (ResNet, VGG) and at 640 (WRN)


def hidden_channels(channels: int, reference: int = 512) -> int:
    """Hidden channels of S and R: the authors' 64 from `reference` channels on, in proportion below, at least 8.

    A constant 64 would add 126 % of the parameters at width 8 and confound every narrow result.
    """
    return min(HIDDEN, max(8, round(HIDDEN * channels / reference)))


def _uniform(score: Tensor, part: tuple[int, int] | None) -> Tensor:
    """Uniform draws like score; part (start, N): its rows of what a whole batch of N images would have drawn."""
    if part is None:
        return torch.rand_like(score)
    start, n = part
    whole = torch.empty_strided((n, *score.shape[1:]), score.stride(), dtype=score.dtype, device=score.device)
    return whole.uniform_()[start : start + len(score)]


def _noise(score: Tensor, u: tuple[Tensor, Tensor] | None, stable_eps: float, part: tuple[int, int] | None) -> Tensor:
    """Difference of two Gumbel draws, like score: from two uniform draws, or as the one Logistic draw that it is."""
    if u is None:
        v = _uniform(score, part).clamp(1e-8, 1 - 2**-24)
        return torch.log(v) - torch.log1p(-v)
    first, second = (v.reshape(score.shape) for v in u)
    if not stable_eps:
        tiny = torch.finfo(score.dtype).tiny
        first, second = (v.clamp(tiny, 1 - torch.finfo(score.dtype).eps) for v in (first, second))
    gumbel = [-torch.log(-torch.log(v + stable_eps) + stable_eps) for v in (first, second)]
    return gumbel[0] - gumbel[1]


def gumbel_mask(
    score: Tensor,
    tau: float,
    *,
    noisy: bool,
    u: tuple[Tensor, Tensor] | None = None,
    hard: bool = False,
    stable_eps: float = 0.0,
    backward_tau: float | None = None,
    part: tuple[int, int] | None = None,
) -> Tensor:
    """Soft two-way choice per activation: towards 1 keeps it as robust, towards 0 as non-robust.

    score: any shape, real; returns the same shape, in [0, 1]. The difference of two Gumbel draws is one Logistic
    draw, so the two-class Gumbel softmax of (log p, log(1 - p)), p = sigmoid(score), is one sigmoid (Jang et al. 2017).
    noisy=False uses no noise; u: two uniform draws with score's number of values, in place of fresh ones; hard: 0 or 1
    forward, soft backward (straight through); stable_eps: what the authors' code adds inside each logarithm and to tau
    (1e-8; 0 is the clean formula); backward_tau: the gradient as if tau had this value (BPDA, Athalye et al. 2018);
    part: (start, N) when score is the rows from start of a batch of N that several processes share: the draws too.
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
    """What one FSR module made of its input; a control that lacks a stream has None there."""

    features: Tensor  # (N, C, H, W)  what the network sees next: robust + recalibrated
    robust: Tensor | None  # (N, C, H, W)  mask * f
    nonrobust: Tensor | None  # (N, C, H, W)  (1 - mask) * f
    recalibrated: Tensor | None  # (N, C, H, W)  nonrobust + (1 - mask) * correction
    mask: Tensor | None  # (N, C, H, W)  in [0, 1]
    aux: dict[str, Tensor]  # stream's name to the auxiliary head's logits (N, K)


def _network(channels: int, hidden: int) -> nn.Sequential:
    """The shape that S and R share: (N, C, H, W) to (N, C, H, W), real."""
    first = [conv3x3(channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU()]
    second = [conv3x3(hidden, hidden), nn.BatchNorm2d(hidden), nn.ReLU()]
    return nn.Sequential(*first, *second, conv3x3(hidden, channels))


class FSR(nn.Module):
    """Splits features by a learned robustness mask and corrects the non-robust part: (N, C, H, W) to the same shape.

    spec.kind chooses the method or a control: separation has no R and passes the robust part on; residual
    has S and R as two plain residual branches one after the other, no mask, no auxiliary head; aux has the head alone,
    trained on f with the weight that FSR gives to the label's two terms.
    Noise follows `training` unless `noise` is True or False; `backward_tau`, `stable_eps`, `part`: see `gumbel_mask`.
    """

    def __init__(self, channels: int, num_classes: int, spec: FSRSpec | None = None, *, hidden: int | None = None):
        super().__init__()
        self.spec = spec = FSRSpec() if spec is None else spec
        hidden = hidden or spec.hidden or hidden_channels(channels)
        self.tau = spec.tau
        self.noise: bool | None = None
        self.backward_tau: float | None = None
        self.stable_eps = 0.0
        self.intervention: Intervention | None = None
        self.part: tuple[int, int] | None = None
        self.score: Any = _network(channels, hidden) if spec.kind != "aux" else None
        self.correct: Any = _network(channels, hidden) if spec.kind in ("fsr", "residual") else None
        self.aux: Any = nn.Linear(channels, num_classes) if spec.kind != "residual" else None

    @property
    def has_mask(self) -> bool:
        """False for the controls without one, on which mask interventions and mask attacks mean nothing."""
        return self.spec.kind in ("fsr", "separation")

    def mask(self, f: Tensor, u: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The mask of f, (N, C, H, W) in [0, 1]; float32 at least, because 1 - mask vanishes in bfloat16."""
        score = self.score(f)
        score = score if score.dtype == torch.float64 else score.float()
        if self.spec.granularity != "element":
            score = score.mean((2, 3) if self.spec.granularity == "channel" else 1, keepdim=True)
        noisy = self.training if self.noise is None else self.noise
        mask = gumbel_mask(
            score,
            self.tau,
            noisy=noisy and self.spec.mask != "soft",
            u=u,
            hard=self.spec.mask == "hard",
            stable_eps=self.stable_eps,
            backward_tau=self.backward_tau,
            part=self.part,
        ).expand(f.shape)
        if self.intervention is not None and self.intervention.mask is not None:
            mask = self.intervention.mask(mask)
        return mask

    def _split(self, f: Tensor, u: tuple[Tensor, Tensor] | None) -> Streams:
        """The streams without the auxiliary logits."""
        if self.spec.kind == "aux":
            return Streams(f, f, None, f, None, {})
        if self.spec.kind == "residual":
            g = f + self.score(f)
            return Streams(g + self.correct(g), None, None, None, None, {})
        mask = self.mask(f, u)
        robust, nonrobust = f * mask, f * (1 - mask)
        if self.correct is None:
            return Streams(robust.to(f.dtype), robust, nonrobust, None, mask, {})
        recalibrated = nonrobust
        if self.intervention is None or self.intervention.recalibrate:
            recalibrated = nonrobust + (1 - mask) * self.correct(nonrobust.to(f.dtype))
        return Streams((robust + recalibrated).to(f.dtype), robust, nonrobust, recalibrated, mask, {})

    def forward(self, f: Tensor) -> Tensor:
        """Features (N, C, H, W) only: the auxiliary head is not run."""
        return self._split(f, None).features

    def streams(self, f: Tensor, y: Tensor | None = None, u: tuple[Tensor, Tensor] | None = None) -> Streams:
        """Everything; y is not read; u: the two uniform draws of the mask's noise, else fresh ones."""
        split = self._split(f, u)
        if self.aux is None:
            return split
        named = {"robust": split.robust, "nonrobust": split.nonrobust, "recalibrated": split.recalibrated}
        head = self.aux
        aux = {name: head(s.mean((2, 3)).to(head.weight.dtype)) for name, s in named.items() if s is not None}
        return split._replace(aux=aux)
