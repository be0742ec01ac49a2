"""The audit's groups of attacks: plain functions of a context, in the order and with the numbers of T9."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsr.attacks import ATTACKS, auto
from fsr.attacks.gradient import Loss, cross_entropy, dlr, logit_margin
from fsr.audit.ascent import backward, differences, joint, scale_free, scaled_cross_entropy, slope, with_latent_heads
from fsr.audit.binarization import binary_problem
from fsr.audit.context import Attackable, Context, Craft, Group, watched
from fsr.audit.indicators import indicators
from fsr.files import UsageError
from fsr.models import Classifier, Intervention
from fsr.models.fsr import masked, switched

NO_MASK = "this model has no FSR mask"
PUSH = 400.0  # weight of the masks' distance: a mask's mean moves by hundredths and a margin by several units


def protocol(c: Context) -> Group:
    """No attack, FGSM, PGD-20, PGD-100 and C&W as the authors run them."""
    return Group({name: c.named(name) for name in ("clean", "fgsm", "pgd20", "pgd100", "cw")})


def autoattack(c: Context) -> Group:
    """AutoAttack standard with its own flags; fewer than four classes leave out the targeted APGD."""
    kinds = ("apgd-ce", "apgd-t", "fab-t", "square") if c.classes >= 4 else ("apgd-ce", "fab-t", "square")
    how: dict[str, Any] = {"version": "custom", "attacks": kinds, "seed": c.seed, "batch": c.batch}
    result = auto.autoattack(c.net, c.x, c.y, eps=c.eps, **how, **c.budget["autoattack"])
    return Group({"standard": lambda x, y, rows: result.x_adv[rows]}, dict(result.flags))


def bpda(c: Context) -> Group:
    """APGD with the mask's backward pass at tau = 1 (BPDA, Athalye et al. 2018)."""
    if not masked(c.net):
        return Group(missing={"": NO_MASK})
    losses: dict[str, Loss] = {"apgd-ce": cross_entropy, "apgd-dlr": dlr if c.classes >= 3 else logit_margin}
    return Group({name: c.climb(slope(c.net, loss), 30, backward_tau=1.0) for name, loss in losses.items()})


def mask(c: Context) -> Group:
    """The mask frozen at its clean value, and driven towards 0 and towards 1."""
    if not masked(c.net):
        return Group(missing={"": NO_MASK})
    seen: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    def pass_with_masks(x: Tensor) -> Tensor:
        seen.clear()
        with switched(c.net, intervention=Intervention(mask=note)):
            return c.net(x)

    def frozen(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            pass_with_masks(x)
        held = [Intervention(mask=partial(lambda kept, _: kept, value)) for value in seen[: len(masked(c.net))]]
        return c.climb(slope(c.net, cross_entropy), 40, stop=False, intervention=held)(x, y, rows)

    def driven(x: Tensor, y: Tensor, rows: Tensor, *, towards: float) -> Tensor:
        def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = pass_with_masks(x)
            distance = sum((value - towards).abs().flatten(1).mean(dim=1) for value in seen) / len(seen)
            return logit_margin(scale_free(logits), y) - PUSH * distance, logits

        half: dict[str, Any] = {"steps": c.budget["steps"] // 2, "backward_tau": 1.0}
        first = c.climb(backward(objective), 41, stop=False, **half)(x, y, rows)
        return c.climb(slope(c.net, logit_margin), 41, start=first - x, **half)(x, y, rows)

    return Group({"frozen": frozen} | {f"towards-{end}": partial(driven, towards=float(end)) for end in (0, 1)})


def latent(c: Context) -> Group:
    """Final and auxiliary logits together; final logits and freshly fitted heads on the stages (LAFEAT, Yu 2021)."""
    crafts, missing = dict[str, Craft](), dict[str, str]()

    def with_auxiliary(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, streams = Classifier(c.net).trace(x)
        return logits, [z for one in streams for z in one.aux.values()]

    if with_auxiliary(c.x[:1])[1]:
        crafts["joint"] = c.climb(joint(with_auxiliary, 1.0), 50, backward_tau=1.0)
    else:
        missing["joint"] = "this model has no auxiliary logits"
    heads, stages = with_latent_heads(c.net, *(c.train or (c.x, c.y)), classes=c.classes, batch=c.batch)
    if stages:
        for name, weight in {"heads": 1.0, "heads-strong": 10.0}.items():
            crafts[name] = c.climb(joint(heads, weight), 51)
    else:
        missing["heads"] = "this model has no stages below its logits"
    return Group(crafts, {"stages": stages}, missing)


def transfer(c: Context) -> Group:
    """Images made on the network with m = 1, on it with R = 0, and on the surrogate, at their highest."""
    crafts, missing = dict[str, Craft](), dict[str, str]()
    bypasses = {"m1": Intervention(mask=torch.ones_like), "r0": Intervention(recalibrate=False)}
    if not masked(c.net):
        missing |= dict.fromkeys(bypasses, NO_MASK)
    elif all(module.correct is None for module in masked(c.net)):
        missing["r0"] = "this model has no recalibration"
    if c.surrogate is None:
        missing["surrogate"] = "no surrogate network was given"
    for name, loss in {"margin": logit_margin, "ce": scaled_cross_entropy}.items():
        for bypass in bypasses.keys() - missing.keys():
            oracle = slope(c.net, loss)
            crafts[f"{bypass}-{name}"] = c.climb(oracle, 60, stop=False, intervention=bypasses[bypass])
        if c.surrogate is not None:
            crafts[f"surrogate-{name}"] = c.climb(slope(c.surrogate, loss), 61, stop=False)
    return Group(crafts, missing=missing)


def restarts(c: Context) -> Group:
    """PGD on cross-entropy with ten restarts at several step sizes, and on the margin to every likely wrong class."""
    pgd = c.named("pgd100-restarts", steps=c.budget["pgd_steps"])
    return Group({"pgd": pgd, "multi-targeted": c.named("pgd-mt", steps=c.budget["targeted_steps"])})


def noise(c: Context) -> Group:
    """Gradients averaged over 20 draws (EOT), and AutoAttack `rand`.

    On a randomised network as it is; on FSR with its training noise switched on, judged on the network as it is. The
    detail `noisy_accuracy`: the share of images that the mean softmax of that noisy network still gets right.
    """
    if not c.randomised and all(module.spec.mask == "soft" for module in masked(c.net)):
        return Group(missing={"": "this model draws no noise"})
    switches, own, draws = {} if c.randomised else {"noise": True}, c.clean.clone(), c.budget["draws"]

    def rand(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        how: dict[str, Any] = {"version": "rand", "judge": Attackable(c.model, x, draws), "seed": c.seed}
        return auto.autoattack(c.reference, x, y, eps=c.eps, batch=c.batch, **how, **c.budget["rand"]).x_adv

    def through_noise(x: Tensor, y: Tensor, rows: Tensor, *, craft: Craft) -> Tensor:
        with switched(c.net, **switches):
            x_adv = craft(x, y, rows)
            own[rows] &= c.correct(x_adv, rows, randomised=True)
        return x_adv

    crafts = dict[str, Craft]()
    for name, loss in {"eot-margin": logit_margin, "eot-ce": scaled_cross_entropy}.items():
        crafts[name] = c.climb(slope(c.reference, loss, draws), 70, steps=c.budget["noisy_steps"], stop=False)
    missing = {"rand": "APGD-DLR needs three classes"} if c.classes < 3 else {}
    crafts |= {} if missing else {"rand": rand}
    crafts = {name: partial(through_noise, craft=craft) for name, craft in crafts.items()}
    return Group(crafts, {"noisy_accuracy": own}, missing)


def queries(c: Context) -> Group:
    """Attacks that read scores only: Square, and finite differences (NES); random noise as a control.

    Of a randomised network Square asks fewer, averaged questions; the differences average over theirs anyway.
    """

    def nes(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        oracle = differences(c.reference, logit_margin, sigma=c.eps, pairs=c.budget["pairs"], seed=c.seed)
        return c.climb(oracle, 80, steps=c.budget["estimated_steps"])(x, y, rows)

    square = c.named("square", queries=c.budget["queries"] // c.net.draws)
    return Group({"square": square, "nes": nes, "random-noise": c.named("random-noise")})


def binarization(c: Context) -> Group:
    """The binarization test of ATTACKS and of the audit's own attacks: `shares` of known adversarial images found.

    Attacks that only read scores get the problem whose boundary is half as far.
    """
    images, shares, changed = c.x[c.clean][: c.budget["binary"]], dict[str, float](), list[str]()
    for scores_only, closeness in ((False, 0.99), (True, 0.5)):
        try:
            model, x, y = binary_problem(c.model, images, c.eps, seed=c.seed, closeness=closeness)
        except UsageError as error:
            return Group(missing={"": str(error)})
        inner = Context(model=model, x=x, y=y, eps=c.eps, seed=c.seed, budget=c.budget, batch=c.batch)
        options = {"queries": c.budget["queries"]} if scores_only else {}
        for name, attack in ATTACKS.items():
            if name in ("clean", *c.budget["untested"]) or ("queries" in attack.takes) != scores_only:
                continue
            try:
                with watched(inner.net, name, changed):
                    kept = inner.run({name: inner.named(name, **options)})[name]
            except UsageError:  # it needs another network, or auxiliary heads, which know nothing of this problem
                continue
            shares[name] = 1 - float(kept.double().mean())
        for group in (queries,) if scores_only else (autoattack, bpda, mask):
            for name, kept in inner.run(group(inner).crafts).items():
                shares[f"{group.__name__}/{name}"] = 1 - float(kept.double().mean())
    return Group(details={"shares": shares, "images": len(images), "changed": changed})


GROUPS = {
    f.__name__: f
    for f in (protocol, autoattack, bpda, mask, latent, transfer, restarts, noise, queries, indicators, binarization)
}
