"""Attacks that know FSR: the mask's slope restored, the mask held or driven, the auxiliary logits, the bypassed twins.

Every function here takes a model that holds FSR modules anywhere, in eval mode, changes their test-time attributes only
while it runs, and returns x_adv (N, C, H, W) in the L-inf ball of radius eps and in [0, 1]. The caller judges it on the
unchanged model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fsr.attacks.ascent import Objective, ascend, differentiated, lead, of, scale_free
from fsr.attacks.losses import Loss, cross_entropy
from fsr.models.fsr import FSR, Intervention
from fsr.models.insert import Inserted, Recorder


def masked(model: nn.Module) -> list[FSR]:
    """The FSR modules of a model that have a mask, in the order of `modules()`."""
    return [part for part in model.modules() if isinstance(part, FSR) and part.has_mask]


@contextmanager
def changed(modules: list[FSR], **attributes) -> Iterator[None]:
    """FSR's test-time attributes (backward_tau, noise, intervention) set inside the block, put back after it.

    A list gives each module its own value.
    """
    before = [{name: getattr(module, name) for name in attributes} for module in modules]
    try:
        for i, module in enumerate(modules):
            for name, value in attributes.items():
                setattr(module, name, value[i] if isinstance(value, list) else value)
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            for name, value in values.items():
                setattr(module, name, value)


def _insertions(model: nn.Module) -> list[Inserted]:
    return [part for part in model.modules() if isinstance(part, Inserted)]


def traced(model: nn.Module, x: Tensor) -> tuple[Tensor, list]:
    """Logits (N, K) and the streams of every inserted module, also when the classifier sits inside another one."""
    recorder = Recorder(None)
    places = _insertions(model)
    for place in places:
        place.recorder = recorder
    try:
        logits = model(x)
    finally:
        for place in places:
            place.recorder = None
    return logits, recorder.streams


def has_auxiliary(model: nn.Module) -> bool:
    """Are there auxiliary logits to attack, FSR's heads or CAS's and CIFS's probes?  The residual control has none."""
    parts = [place.module for place in _insertions(model)]
    return any(getattr(part, name, None) is not None for part in parts for name in ("aux", "probe"))


def smooth_mask(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    loss: Loss = cross_entropy,
    tau: float = 1.0,
    start: Tensor | None = None,
    draws: int = 1,
) -> Tensor:
    """APGD with the mask's backward pass at another temperature (BPDA, Athalye et al. 2018).

    draws: passes per gradient of a randomised model, for which one wrong draw ends nothing.
    """
    with changed(masked(model), backward_tau=tau):
        look = differentiated(of(model, loss), draws=draws)
        return ascend(look, x, y, eps=eps, steps=steps, start=start, until_wrong=draws == 1)


def frozen_mask(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    loss: Loss = cross_entropy,
    start: Tensor | None = None,
) -> Tensor:
    """APGD on the network whose masks stay what they are on the clean images.

    What breaks the true network is judged later: there the mask moves again.
    """
    modules = masked(model)
    kept: list[list[Tensor]] = [[] for _ in modules]
    with torch.no_grad(), changed(modules, intervention=[Intervention(mask=partial(_note, into)) for into in kept]):
        model(x)
    held = [Intervention(mask=partial(_hold, into[-1])) for into in kept]
    with changed(modules, intervention=held):
        return ascend(differentiated(of(model, loss)), x, y, eps=eps, steps=steps, start=start, until_wrong=False)


def _note(into: list[Tensor], mask: Tensor) -> Tensor:
    into.append(mask)
    return mask


def _hold(mask: Tensor, _: Tensor) -> Tensor:
    return mask


def driven_mask(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    towards: float,
    push: float = 400.0,
    start: Tensor | None = None,
    draws: int = 1,
) -> Tensor:
    """APGD on the margin plus `push` times how close the masks come to `towards` (0 or 1).

    push is large because a mask moves little: its mean by some hundredths, while the margin spans several units.
    The scores are differentiated at tau = 1. Ends with half the steps on the margin alone, from where the push led.
    draws: as for `smooth_mask`.
    """
    modules = masked(model)

    def objective(x_adv: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        with changed(modules, intervention=Intervention(mask=partial(_note, seen))):
            logits = model(x_adv)
        distance = sum((mask - towards).abs().flatten(1).mean(dim=1) for mask in seen) / len(seen)
        return lead(scale_free(logits), y) - push * distance, logits

    with changed(modules, backward_tau=1.0):
        look, more = differentiated(objective, draws=draws), steps // 2
        first = ascend(look, x, y, eps=eps, steps=steps - more, start=start, until_wrong=False)
        look = differentiated(of(model, lead), draws=draws)
        return ascend(look, x, y, eps=eps, steps=more, start=first - x, until_wrong=draws == 1)


def joint(model: nn.Module) -> Objective:
    """Cross-entropy of the final logits plus its mean over all auxiliary logits."""

    def objective(x_adv: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits, streams = traced(model, x_adv)
        aux = [cross_entropy(z, y) for s in streams for z in s.aux.values()]
        return cross_entropy(logits, y) + sum(aux) / len(aux), logits

    return objective


def joint_logits(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, start: Tensor | None = None, draws: int = 1
) -> Tensor:
    """APGD on the joint loss of the final and the auxiliary logits, masks differentiated at tau = 1.

    draws: as for `smooth_mask`.
    """
    with changed(masked(model), backward_tau=1.0):
        look = differentiated(joint(model), draws=draws)
        return ascend(look, x, y, eps=eps, steps=steps, start=start, until_wrong=draws == 1)


def bypassed(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    twin: str,
    loss: Loss = lead,
    start: Tensor | None = None,
) -> Tensor:
    """Images that break a twin with the same weights: `m1`, masks all 1, or `r0`, R = 0; both pass f on.

    The twin's highest image, not its first wrong one: a confident error transfers better.
    """
    twins = {"m1": Intervention(mask=torch.ones_like), "r0": Intervention(recalibrate=False)}
    with changed(masked(model), intervention=twins[twin]):
        return ascend(differentiated(of(model, loss)), x, y, eps=eps, steps=steps, start=start, until_wrong=False)


def noisy_mask(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    loss: Loss,
    draws: int = 20,
    start: Tensor | None = None,
) -> Tensor:
    """APGD through the training noise, averaged over draws (EOT): the noise also unsaturates the mask."""
    with changed(masked(model), noise=True):
        look = differentiated(of(model, loss), draws=draws)
        return ascend(look, x, y, eps=eps, steps=steps, start=start, until_wrong=False)
