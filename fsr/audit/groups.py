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
from fsr.attacks.gradient import Loss, cross_entropy, dlr, logit_margin
from fsr.audit.ascent import backward, differences, joint, scale_free, scaled_cross_entropy, slope, with_latent_heads
from fsr.audit.context import Attackable, Context, Craft, watched
from fsr.audit.proofs import binary_problem, indicators
from fsr.files import UsageError
from fsr.models import Classifier, Intervention
from fsr.models.fsr import masked, switched

Found = Iterable[tuple[str, Craft | str]]
NO_MASK = "this model has no FSR mask"
PUSH = 400.0  # weight of the masks' distance: a mask's mean moves by hundredths and a margin by several units


def protocol(c: Context, details: dict) -> Found:
    """No attack, FGSM, PGD-20, PGD-100 and C&W as the authors run them."""
    return [(name, c.named(name)) for name in ("clean", "fgsm", "pgd20", "pgd100", "cw")]


def autoattack(c: Context, details: dict) -> Found:
    """AutoAttack standard with its own flags; fewer than four classes leave out the targeted APGD."""
    kinds = ("apgd-ce", "apgd-t", "fab-t", "square") if c.classes >= 4 else ("apgd-ce", "fab-t", "square")
    how: dict[str, Any] = {"version": "custom", "attacks": kinds, "seed": c.seed, "batch": c.batch}
    result = auto.autoattack(c.net, c.x, c.y, eps=c.eps, **how, **c.budget["autoattack"])
    details |= result.flags
    return [("standard", lambda x, y, rows: result.x_adv[rows])]


def bpda(c: Context, details: dict) -> Found:
    """APGD with the mask's backward pass at tau = 1 (BPDA, Athalye et al. 2018)."""
    if not masked(c.net):
        return [("", NO_MASK)]
    losses: dict[str, Loss] = {"apgd-ce": cross_entropy, "apgd-dlr": dlr if c.classes >= 3 else logit_margin}
    return [(name, c.climb(slope(c.net, loss), 30, backward_tau=1.0)) for name, loss in losses.items()]


def mask(c: Context, details: dict) -> Found:
    """The mask frozen at its clean value, and driven towards 0 and towards 1."""
    if not masked(c.net):
        return [("", NO_MASK)]

    def with_masks(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen: list[Tensor] = []

        def note(value: Tensor) -> Tensor:
            seen.append(value)
            return value

        with switched(c.net, intervention=Intervention(mask=note)):
            return c.net(x), seen

    def frozen(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            values = with_masks(x)[1][: len(masked(c.net))]
        held = [Intervention(mask=partial(lambda kept, _: kept, value)) for value in values]
        return c.climb(slope(c.net, cross_entropy), 40, stop=False, intervention=held)(x, y, rows)

    def driven(x: Tensor, y: Tensor, rows: Tensor, *, towards: float) -> Tensor:
        def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits, seen = with_masks(x)
            distance = sum((value - towards).abs().flatten(1).mean(dim=1) for value in seen) / len(seen)
            return logit_margin(scale_free(logits), y) - PUSH * distance, logits

        half: dict[str, Any] = {"steps": c.budget["steps"] // 2, "backward_tau": 1.0}
        first = c.climb(backward(objective), 41, stop=False, **half)(x, y, rows)
        return c.climb(slope(c.net, logit_margin), 41, start=first - x, **half)(x, y, rows)

    return [("frozen", frozen), *((f"towards-{end}", partial(driven, towards=float(end))) for end in (0, 1))]


def latent(c: Context, details: dict) -> Found:
    """Final and auxiliary logits together; final logits and freshly fitted heads on the stages (LAFEAT, Yu 2021)."""

    def with_auxiliary(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, streams = Classifier(c.net).trace(x)
        return logits, [z for one in streams for z in one.aux.values()]

    there, up = bool(with_auxiliary(c.x[:1])[1]), c.climb(joint(with_auxiliary, 1.0), 50, backward_tau=1.0)
    yield "joint", up if there else "this model has no auxiliary logits"
    heads, details["stages"] = with_latent_heads(c.net, *(c.train or (c.x, c.y)), classes=c.classes, batch=c.batch)
    for name, weight in {"heads": 1.0, "heads-strong": 10.0}.items() if details["stages"] else ():
        yield name, c.climb(joint(heads, weight), 51)
    if not details["stages"]:
        yield "heads", "this model has no stages below its logits"


def transfer(c: Context, details: dict) -> Found:
    """Images made on the network with m = 1, on it with R = 0, and on the surrogate, at their highest."""
    nets: dict[str, Any] = {"m1": (c.net, 60, {"intervention": Intervention(mask=torch.ones_like)})}
    nets["r0"] = (c.net, 60, {"intervention": Intervention(recalibrate=False)})
    nets["surrogate"] = (c.surrogate, 61, {})
    missing = {} if masked(c.net) else {"m1": NO_MASK, "r0": NO_MASK}
    if masked(c.net) and all(module.correct is None for module in masked(c.net)):
        missing["r0"] = "this model has no recalibration"
    if c.surrogate is None:
        missing["surrogate"] = "no surrogate network was given"
    for kind, (net, stream, switches) in nets.items():
        if kind in missing:
            yield kind, missing[kind]
            continue
        for name, loss in {"margin": logit_margin, "ce": scaled_cross_entropy}.items():
            yield f"{kind}-{name}", c.climb(slope(net, loss), stream, stop=False, **switches)


def restarts(c: Context, details: dict) -> Found:
    """PGD on cross-entropy with ten restarts at several step sizes, and on the margin to every likely wrong class."""
    yield "pgd", c.named("pgd100-restarts", steps=c.budget["pgd_steps"])
    yield "multi-targeted", c.named("pgd-mt", steps=c.budget["targeted_steps"])


def noise(c: Context, details: dict) -> Found:
    """Gradients averaged over 20 draws (EOT), and AutoAttack `rand`: on FSR with its training noise switched on."""
    if not c.randomised and all(module.spec.mask == "soft" for module in masked(c.net)):
        yield "", "this model draws no noise"
        return
    switches, draws, own = {} if c.randomised else {"noise": True}, c.budget["draws"], c.clean.clone()
    details["noisy_accuracy"] = own

    def rand(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        how: dict[str, Any] = {"version": "rand", "judge": Attackable(c.model, x, draws), "seed": c.seed}
        return auto.autoattack(c.reference, x, y, eps=c.eps, batch=c.batch, **how, **c.budget["rand"]).x_adv

    def through_noise(craft: Craft, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with switched(c.net, **switches):
            x_adv = craft(x, y, rows)
            own[rows] &= c.correct(x_adv, rows, randomised=True)
        return x_adv

    for name, loss in {"eot-margin": logit_margin, "eot-ce": scaled_cross_entropy}.items():
        up = c.climb(slope(c.reference, loss, draws), 70, steps=c.budget["noisy_steps"], stop=False)
        yield name, partial(through_noise, up)
    yield "rand", "APGD-DLR needs three classes" if c.classes < 3 else partial(through_noise, rand)


def queries(c: Context, details: dict) -> Found:
    """Attacks that read scores only: Square, and finite differences (NES); random noise as a control."""

    def nes(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        oracle = differences(c.reference, logit_margin, sigma=c.eps, pairs=c.budget["pairs"], seed=c.seed)
        return c.climb(oracle, 80, steps=c.budget["estimated_steps"])(x, y, rows)

    square = c.named("square", queries=c.budget["queries"] // c.net.draws)
    return [("square", square), ("nes", nes), ("random-noise", c.named("random-noise"))]


def binarization(c: Context, details: dict) -> Found:
    """The binarization test of ATTACKS and of the audit's own; attacks on scores get a boundary half as far."""
    images, shares, changed = c.x[c.clean][: c.budget["binary"]], dict[str, float](), list[str]()
    for scores_only, closeness in ((False, 0.99), (True, 0.5)):
        try:
            model, x, y = binary_problem(c.model, images, c.eps, seed=c.seed, closeness=closeness)
        except UsageError as error:
            return [("", str(error))]
        inner = Context(model=model, x=x, y=y, eps=c.eps, seed=c.seed, budget=c.budget, batch=c.batch)
        options = {"queries": c.budget["queries"]} if scores_only else {}
        kept = dict[str, Tensor]()
        for name, attack in ATTACKS.items():
            if name not in ("clean", *c.budget["untested"]) and ("queries" in attack.takes) == scores_only:
                # UsageError: it needs another network, or auxiliary heads, which know nothing of this problem
                with suppress(UsageError), watched(inner.net, name, changed):
                    kept |= inner.run([(name, inner.named(name, **options))])
        for group in (queries,) if scores_only else (autoattack, bpda, mask):
            kept |= {f"{group.__name__}/{name}": right for name, right in inner.run(group(inner, {})).items()}
        shares |= {name: 1 - float(right.double().mean()) for name, right in kept.items()}
    details |= {"shares": shares, "images": len(images), "changed": changed}
    return []


_ALL = (protocol, autoattack, bpda, mask, latent, transfer, restarts, noise, queries, indicators, binarization)
GROUPS: dict[str, Callable[[Context, dict], Found]] = {group.__name__: group for group in _ALL}
