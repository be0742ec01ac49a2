"""The features around a network's last inserted module, on clean and on adversarial images.

N images, C channels, h and w positions, K classes; f is the feature map (N, C, h, w) that the module was given.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fsr.attacks import attack_named
from fsr.config import Analysis, Run
from fsr.data import Data, as_float, batches, part_of_test
from fsr.hardware import exact_float32
from fsr.models import BACKBONES, FSR, Classifier, Inserted
from fsr.models.insert import submodule_at

ATTACK = "pgd20"  # of every analysis
STREAMS = ("robust", "nonrobust", "recalibrated")


@dataclass(frozen=True)
class Inspection:
    """A network in eval mode on `device`, and data on any device; weights: digest of the network's weights or None."""

    model: Classifier
    run: Run
    analysis: Analysis
    data: Data
    device: torch.device
    batch: int
    seconds_per_epoch: float | None = None
    weights: str | None = None

    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        """(x uint8, y, index) of the required test images, of all where there are fewer."""
        required, available = self.analysis.images, len(self.data.test_y)
        return part_of_test(self.data, None if required is None else min(required, available))

    def facts(self, index: Tensor) -> dict:
        """What every record says: which images, attacked how, and where in the network."""
        return {"n": len(index), "attack": ATTACK, "eps": self.run.eps, "classes": self.data.classes,
                "class_names": list(self.data.class_names), "place": last_place(self)[0]}  # fmt: skip


class Seen(NamedTuple):
    """One batch at the last inserted module."""

    logits: Tensor  # (N, K) of the network
    maps: dict[str, Tensor]  # f, output, and the streams that exist: each (N, C, h, w)
    mask: Tensor  # (N, C, h, w) in [0, 1]; (0,) where there is none


@contextlib.contextmanager
def _hooked(parts, hook: Callable) -> Iterator[None]:
    """Call hook(module, inputs, output) after every part inside the block; it must return None."""
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.callback(part.register_forward_hook(hook).remove)
        yield


@contextlib.contextmanager
def module_inputs(model: Classifier, stage: str | None = None) -> Iterator[list[Tensor]]:
    """f of every inserted module, in running order; of the stage where nothing was inserted."""
    parts = [place.submodule for place in model.inserted()] or ([submodule_at(model.net, stage)] if stage else [])
    seen: list[Tensor] = []
    with _hooked(parts, lambda _module, _x, f: seen.append(f)):
        yield seen


def last_place(job: Inspection) -> tuple[str, Inserted | None]:
    """(path in the bare network, insertion) of the module that runs last; without one: where to inspect, None."""
    places = {part: name for name, part in job.model.named_modules() if isinstance(part, Inserted)}
    if not places:
        return BACKBONES[job.run.backbone].fsr_stage, None
    order: list[Inserted] = []
    with torch.no_grad(), _hooked(places, lambda module, _x, _f: order.append(module)):
        job.model(as_float(job.data.test_x[:1].to(job.device)))
    return places[order[-1]].removeprefix("net.").replace(".submodule", ""), order[-1]


def fsr_module(job: Inspection) -> FSR | None:
    """The last inserted module when it is FSR or one of its controls."""
    place = last_place(job)[1]
    return place.module if place is not None and isinstance(place.module, FSR) else None


def lacks(job: Inspection, *, recalibrated: bool = True) -> str | None:
    """Why this network has no mask (or no recalibrated stream), in words; None when it has."""
    module = fsr_module(job)
    if module is None or not module.has_mask:
        return f"{job.run.label} has no FSR mask, so its features are not split into streams"
    return f"{job.run.label} has no recalibration" if recalibrated and module.correct is None else None


def see(job: Inspection, x: Tensor) -> Seen:
    """The network on x (N, 3, H, W) in [0, 1]; no gradients."""
    stage = None if job.model.inserted() else last_place(job)[0]
    with torch.no_grad(), module_inputs(job.model, stage) as inputs:
        logits, streams = job.model.trace(x)
    last = streams[-1] if streams else None
    maps = {"f": inputs[-1]} | ({"output": last.features} if last is not None else {})
    mask = getattr(last, "mask", None)
    if mask is None:  # no module, peers, the residual and the heads alone
        return Seen(logits, maps, torch.empty(0))
    maps |= {name: stream for name in STREAMS if (stream := getattr(last, name)) is not None}
    return Seen(logits, maps, mask)


def pooled(features: Tensor) -> Tensor:
    """Mean over positions: (N, C, h, w) to (N, C) float32."""
    return features.float().mean((2, 3))


_latest: dict[tuple, list[Tensor]] = {}  # attacked images of one network, on the CPU: T7, F2 and F8 share them


def pairs(job: Inspection) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of (x, x_adv under PGD-20, y): images (N, 3, H, W) float32 in [0, 1], labels (N,).

    Attacking costs most of an analysis, so what was crafted last in this process serves again on equal weights.
    """
    x, y, index = job.images()
    key = (job.weights, job.run, job.analysis.images, job.batch, job.device)
    cached = [] if job.weights is None else _latest.get(key, [])
    attack, crafted = attack_named(ATTACK), []
    for i, rows in enumerate(batches(len(y), job.batch)):
        chosen = rows.to(x.device)
        xs, ys = as_float(x[chosen].to(job.device)), y[chosen].to(job.device)
        if cached:
            x_adv = cached[i].to(job.device)
        else:
            x_adv = attack(job.model, xs, ys, eps=job.run.eps, indices=index[rows])
            crafted.append(x_adv.cpu())
        yield xs, x_adv, ys
    if crafted and job.weights is not None:  # only when complete
        _latest.clear()
        _latest[key] = crafted


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Full float32 and repeatable convolutions on a GPU, whose default is TF32; afterwards as before."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        with exact_float32():
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
