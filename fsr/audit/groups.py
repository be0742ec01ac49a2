"""The audit's groups, as numbered in T9: (context, details) to (attack, how to craft it or why it is left out).

details: filled with JSON-able facts; a (N,) bool counts its share.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsr.attacks import ATTACKS, auto
from fsr.attacks.gradient import cross_entropy, logit_margin
from fsr.audit.ascent import backward, differences, joint, scale_free, slope, with_latent_heads
from fsr.audit.context import Context, Craft, attackable
from fsr.audit.proofs import binary_problem, indicators
from fsr.config import PROTOCOL
from fsr.files import UsageError
from fsr.models import Classifier, Intervention
from fsr.models.fsr import masked, switched

Found = Iterable[tuple[str, Craft | str]]
NO_MASK = "this model has no FSR mask"
PUSH = 400.0  # weight of the masks' distance: a mask's mean moves by hundredths and a margin by several units


def protocol(c: Context, details: dict) -> Found:
    """No attack, FGSM, PGD-20, PGD-100 and C&W as the authors run them."""
    return [(name, c.named(name)) for name in PROTOCOL]


def autoattack(c: Context, details: dict) -> Found:
    """AutoAttack standard with its own flags; fewer than four classes leave out the targeted APGD."""
    kinds = [name for name in auto.VERSIONS["standard"] if name != "apgd-t" or c.classes >= 4]
    how: dict[str, Any] = {"version": "custom", "attacks": kinds, "seed": c.seed, "batch": c.batch}
    result = auto.autoattack(c.net, c.x, c.y, eps=c.eps, **how, **c.budget.get("autoattack", {}))
    details |= result.flags
    return [("standard", lambda x, y, rows: result.x_adv[rows])]


def bpda(c: Context, details: dict) -> Found:
    """APGD with the mask's backward pass at tau = 1 (BPDA, Athalye et al. 2018)."""
    if not masked(c.net):
        return [("", NO_MASK)]
    up = partial(c.climb, backward_tau=1.0)
    return [("apgd-ce", up(slope(c.net, cross_entropy), 30)), ("apgd-margin", up(slope(c.net, logit_margin), 30))]


def _traced(c: Context, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, masks and auxiliary logits, in running order."""
    logits, streams = Classifier(c.net).trace(x)
    masks = [one.mask for one in streams if getattr(one, "mask", None) is not None]
    return logits, masks, [z for one in streams for z in one.aux.values()]


def mask(c: Context, details: dict) -> Found:
    """The mask frozen at its clean value, and driven towards 0 and towards 1."""
    if not masked(c.net):
        return [("", NO_MASK)]

    def frozen(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        values = _traced(c, x)[1][: len(masked(c.net))]
        held = [Intervention(mask=partial(lambda value, _: value, value.detach())) for value in values]
        return c.climb(slope(c.net, cross_entropy), 40, stop=False, intervention=held)(x, y, rows)

    def driven(end: float) -> Craft:
        def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits, masks, _ = _traced(c, x)
            distance = sum((value - end).abs().flatten(1).mean(dim=1) for value in masks) / len(masks)
            return logit_margin(scale_free(logits), y) - PUSH * distance, logits

        return c.climb(backward(objective), 41, backward_tau=1.0)

    return [("frozen", frozen), ("towards-0", driven(0.0)), ("towards-1", driven(1.0))]


def latent(c: Context, details: dict) -> Found:
    """Final and auxiliary logits together; final logits and freshly fitted heads on features (LAFEAT, Yu 2021)."""
    auxiliary = c.climb(joint(lambda x: _traced(c, x)[::2]), 50, backward_tau=1.0)
    heads, stages = with_latent_heads(c.net, c.x, c.y, classes=c.classes, batch=c.batch)
    yield "joint", auxiliary if _traced(c, c.x[:1])[2] else "this model has no auxiliary logits"
    yield "heads", c.climb(joint(heads), 51) if stages else "this model has no convolutions"


def transfer(c: Context, details: dict) -> Found:
    """Images made on the network with m = 1, on it with R = 0, and on the surrogate, at their highest margin."""
    up, own, there = partial(c.climb, stop=False), slope(c.net, logit_margin), bool(masked(c.net))
    yield "m1", up(own, 60, intervention=Intervention(mask=torch.ones_like)) if there else NO_MASK
    yield "r0", up(own, 60, intervention=Intervention(recalibrate=False)) if there else NO_MASK
    yield "surrogate", up(slope(c.surrogate, logit_margin), 61) if c.surrogate else "no surrogate network was given"


def restarts(c: Context, details: dict) -> Found:
    """PGD on cross-entropy with ten restarts at several step sizes, and on the margin to every likely wrong class."""
    yield "pgd", c.named("pgd100-restarts", steps=c.budget["steps"])
    yield "multi-targeted", c.named("pgd-mt", steps=c.budget["steps"] // 2)


def noise(c: Context, details: dict) -> Found:
    """Gradients averaged over draws (EOT, Athalye et al. 2018): on FSR with its training noise switched on."""
    if not c.randomised and all(module.spec.mask == "soft" for module in masked(c.net)):
        return [("", "this model draws no noise")]
    switches, own = {} if c.randomised else {"noise": True}, c.clean.clone()
    averaged, judge = (attackable(c.model, c.x, c.y, draws) for draws in (8, c.budget["draws"]))
    up = c.climb(slope(averaged, logit_margin), 70, stop=False, part=2, **switches)
    details["noisy_accuracy"] = own

    def eot(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        x_adv = up(x, y, rows)
        with switched(c.model, **switches):
            own[rows] &= c.correct(x_adv, rows, judge)
        return x_adv

    return [("eot", eot)]


def queries(c: Context, details: dict) -> Found:
    """Attacks that read scores only: Square, and finite differences (NES); random noise as a control."""
    square = c.named("square", queries=c.budget["queries"] // c.net.draws)
    nes = c.climb(differences(c.reference, logit_margin, sigma=c.eps, pairs=c.budget["pairs"]), 80, part=2)
    return [("square", square), ("nes", nes), ("random-noise", c.named("random-noise"))]


def binarization(c: Context, details: dict) -> Found:
    """The binarization test of ATTACKS and of the audit's own; attacks on scores get a boundary half as far."""
    images, shares = c.x[c.clean][: c.budget["binary"]], dict[str, float]()
    for scores_only, closeness in ((False, 0.99), (True, 0.5)):
        try:
            model, x, y = binary_problem(c.model, images, c.eps, seed=c.seed, closeness=closeness)
        except (UsageError, RuntimeError, IndexError) as error:  # a last layer that is not called with features (N, D)
            return [("", str(error))]
        inner = Context(model=model, x=x, y=y, eps=c.eps, seed=c.seed, budget=c.budget, batch=c.batch)
        options = {"queries": c.budget["queries"]} if scores_only else {}
        # auxiliary heads know nothing of this problem
        left_out = {"clean", "pgd20-joint", *c.budget.get("untested", ())}
        attacks = {name for name, attack in ATTACKS.items() if ("queries" in attack.takes) == scores_only}
        crafts: list = [(name, inner.named(name, **options)) for name in ATTACKS if name in attacks - left_out]
        for group in (queries,) if scores_only else (autoattack, bpda, mask):
            crafts += [(f"{group.__name__}/{name}", craft) for name, craft in group(inner, {})]
        for name, craft in crafts:
            with suppress(UsageError):  # it needs another network or more classes
                shares |= {each: 1 - float(o.double().mean()) for each, o in inner.run([(name, craft)]).items()}
    details |= {"shares": shares, "images": len(images)}
    return []


_ALL = (protocol, autoattack, bpda, mask, latent, transfer, restarts, noise, queries, indicators, binarization)
GROUPS: dict[str, Callable[[Context, dict], Found]] = {group.__name__: group for group in _ALL}
