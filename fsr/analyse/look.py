"""One look inside a network: the features around its last inserted module, on clean and on adversarial images.

N images, C channels, h and w positions, K classes; f is the feature map (N, C, h, w) that the module was given.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fsr.attacks import attack_named
from fsr.config import Analysis, Run
from fsr.data import Data, as_float, batches, part_of_test
from fsr.models import BACKBONES, FSR, Classifier, Inserted
from fsr.models.insert import submodule_at

ATTACK = "pgd20"  # of every analysis
STREAMS = ("robust", "nonrobust", "recalibrated")


@dataclass(frozen=True)
class Job:
    """What an analysis is given: a network in eval mode on `device`, and data on any device."""

    model: Classifier
    run: Run
    analysis: Analysis
    data: Data
    device: torch.device
    batch: int
    seconds_per_epoch: float | None = None
    weights: str | None = None  # their digest: with it the attacked images are kept for the next analysis
    place: str | None = None  # where to look into a network without a module; None: where the authors put FSR

    def images(self) -> tuple[Tensor, Tensor, Tensor]:
        """(x uint8, y, index) of the test images: as many as asked for, or all there are when they are fewer."""
        wanted, there = self.analysis.images, len(self.data.test_y)
        return part_of_test(self.data, None if wanted is None else min(wanted, there))

    def facts(self, index: Tensor) -> dict:
        """What every record says: which images, attacked how, and where in the network."""
        return {"n": len(index), "attack": ATTACK, "eps": self.run.eps, "classes": self.data.classes,
                "class_names": list(self.data.class_names), "place": last_place(self)[0]}  # fmt: skip


class Seen(NamedTuple):
    """One batch seen at the last inserted module."""

    logits: Tensor  # (N, K) of the network
    maps: dict[str, Tensor]  # f, the streams that exist, and output: each (N, C, h, w)
    mask: Tensor  # (N, C, h, w) in [0, 1]; (0,) where there is none: ask `lacks`


def last_place(job: Job) -> tuple[str, Inserted | None]:
    """(path, insertion) that runs last; without one the job's own place, or the authors' for FSR, and None.

    Paths are those of the network as it was before the insertion.
    """
    order: list[Inserted] = []
    places = {part: name for name, part in job.model.named_modules() if isinstance(part, Inserted)}
    if not places:
        return job.place or BACKBONES[job.run.backbone].fsr_stage, None
    handles = [part.register_forward_hook(lambda module, args, output: order.append(module)) for part in places]
    try:
        with torch.no_grad():
            job.model(as_float(job.data.test_x[:1].to(job.device)))
    finally:
        for handle in handles:
            handle.remove()
    last = order[-1]
    return places[last].removeprefix("net.").replace(".submodule", ""), last


def fsr_module(job: Job) -> FSR | None:
    """The last inserted module when it is FSR or one of its controls."""
    place = last_place(job)[1]
    return place.module if place is not None and isinstance(place.module, FSR) else None


def lacks(job: Job, *, recalibrated: bool = True) -> str | None:
    """Why this network has no mask (or no recalibrated stream), in words; None when it has."""
    module = fsr_module(job)
    if module is None or not module.has_mask:
        return f"{job.run.label} has no FSR mask, so its features are not split into streams"
    if recalibrated and module.correct is None:
        return f"{job.run.label} has no recalibration"
    return None


@contextlib.contextmanager
def module_inputs(model: Classifier) -> Iterator[list[Tensor]]:
    """f of every inserted module, in running order: what the place gives before the module sees it."""
    seen: list[Tensor] = []
    hooks = [p.submodule.register_forward_hook(lambda _m, _x, f: seen.append(f)) for p in model.inserted()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def see(job: Job, x: Tensor) -> Seen:
    """The network on x (N, 3, H, W) in [0, 1]; no gradients. A control without a mask shows f and its output only."""
    with torch.no_grad():
        if not job.model.inserted():
            return _see_stage(job, x)
        with module_inputs(job.model) as seen:
            logits, streams = job.model.trace(x)
    last = streams[-1]
    maps = {"f": seen[-1], "output": last.features}
    if getattr(last, "mask", None) is None:
        return Seen(logits, maps, torch.empty(0))
    maps |= {name: getattr(last, name) for name in STREAMS if getattr(last, name) is not None}
    return Seen(logits, maps, last.mask)


def _see_stage(job: Job, x: Tensor) -> Seen:
    """f alone, of a network into which nothing was inserted; the hook only reads, and is gone afterwards."""
    found: list[Tensor] = []
    stage = submodule_at(job.model.net, last_place(job)[0])
    handle = stage.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        logits = job.model(x)
    finally:
        handle.remove()
    return Seen(logits, {"f": found[-1]}, torch.empty(0))


def pooled(features: Tensor) -> Tensor:
    """Mean over positions: (N, C, h, w) to (N, C) float32."""
    return features.float().mean((2, 3))


class Pair(NamedTuple):
    """A batch of test images, clean and under attack."""

    x: Tensor  # (N, 3, H, W) in [0, 1]
    x_adv: Tensor
    y: Tensor  # (N,)


_latest: dict[tuple, list[Tensor]] = {}  # attacked images of one network, on the CPU: T7, F2 and F8 share them


def pairs(job: Job) -> Iterator[Pair]:
    """The job's images in batches, each with its PGD-20 twin, crafted and judged in float32.

    Attacking costs most of an analysis, so what was crafted last in this process serves again on equal weights.
    """
    x, y, index = job.images()
    key = (job.weights, job.run, job.analysis.images, job.batch, job.device)
    known = [] if job.weights is None else _latest.get(key, [])
    attack, made = attack_named(ATTACK), []
    for i, rows in enumerate(batches(len(y), job.batch)):
        chosen = rows.to(x.device)
        xs, ys = as_float(x[chosen].to(job.device)), y[chosen].to(job.device)
        if known:
            x_adv = known[i].to(job.device)
        else:
            x_adv = attack(job.model, xs, ys, eps=job.run.eps, indices=index[rows])
            made.append(x_adv.cpu())
        yield Pair(xs, x_adv, ys)
    if made and job.weights is not None:  # all of them, or a reader that stopped would leave a part for the whole
        _latest.clear()
        _latest[key] = made


@contextlib.contextmanager
def exact():
    """Full float32 and repeatable convolutions on a GPU, whose default is TF32; afterwards as before."""
    settings = [(place, "fp32_precision", "ieee") for place in (torch.backends.cudnn.conv, torch.backends.cuda.matmul)]
    settings += [(torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False)]
    before = [getattr(place, name) for place, name, _ in settings]
    try:
        for place, name, value in settings:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(settings, before):
            setattr(place, name, value)
