"""The audit's groups of attacks: plain functions from a network and its context to what each attack left right.

`net` is the network as attacks see it, averaged over draws where it is randomised.
"""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fsr.attacks import ATTACKS
from fsr.attacks.auto import autoattack as run_autoattack
from fsr.attacks.losses import Loss, cross_entropy, dlr, logit_margin
from fsr.audit.ascent import backward, differences, of, scale_free
from fsr.audit.binarization import binary_problem
from fsr.audit.context import Context, Craft, GroupResult
from fsr.audit.latent import joint, with_auxiliary, with_latent_heads
from fsr.audit.network import Attackable, changed, fingerprint, masked, switched
from fsr.files import UsageError
from fsr.models.fsr import Intervention

NO_MASK = "this model has no FSR mask"


def scaled_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of scale-free logits, (N,)."""
    return cross_entropy(scale_free(logits), y)


def protocol(net: Attackable, context: Context) -> GroupResult:
    """No attack, FGSM, PGD-20, PGD-100 and C&W as the authors run them."""
    names = ("clean", "fgsm", "pgd20", "pgd100", "cw")
    return GroupResult(context.run({name: context.named(net, name) for name in names}))


def autoattack(net: Attackable, context: Context) -> GroupResult:
    """AutoAttack standard with its own flags; fewer than four classes leave out the targeted APGD."""
    kinds = ("apgd-ce", "apgd-t", "fab-t", "square") if context.classes >= 4 else ("apgd-ce", "fab-t", "square")
    options: dict[str, Any] = {"version": "custom", "attacks": kinds, "seed": context.seed, "batch": context.batch}
    result: Any = run_autoattack(net, context.x, context.y, eps=context.eps, **options, **context.budget.autoattack)
    return GroupResult(context.run({"standard": lambda x, y, rows: result.x_adv[rows]}), dict(result.flags))


def bpda(net: Attackable, context: Context) -> GroupResult:
    """APGD with the mask's backward pass at tau = 1 (BPDA, Athalye et al. 2018)."""
    if not masked(net):
        return GroupResult(not_applicable={"": NO_MASK})
    losses: dict[str, Loss] = {"apgd-ce": cross_entropy, "apgd-dlr": dlr if context.classes >= 3 else logit_margin}
    crafts = {name: context.climb(backward(of(net, loss)), 30, backward_tau=1.0) for name, loss in losses.items()}
    return GroupResult(context.run(crafts))


def mask(net: Attackable, context: Context, push: float = 400.0) -> GroupResult:
    """The mask frozen at its clean value, and driven towards 0 and towards 1.

    push: weight of the masks' distance; large, since a mask's mean moves by hundredths and a margin by several units.
    """
    if not masked(net):
        return GroupResult(not_applicable={"": NO_MASK})
    seen: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    def pass_with_masks(x: Tensor) -> Tensor:
        seen.clear()
        with switched(net, intervention=Intervention(mask=note)):
            return net(x)

    def frozen(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            pass_with_masks(x)
        held = [Intervention(mask=partial(lambda kept, _: kept, value)) for value in seen[: len(masked(net))]]
        return context.climb(backward(of(net, cross_entropy)), 40, stop=False, intervention=held)(x, y, rows)

    def driven(x: Tensor, y: Tensor, rows: Tensor, *, towards: float) -> Tensor:
        def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = pass_with_masks(x)
            distance = sum((value - towards).abs().flatten(1).mean(dim=1) for value in seen) / len(seen)
            return logit_margin(scale_free(logits), y) - push * distance, logits

        half: dict[str, Any] = {"steps": context.budget.steps // 2, "backward_tau": 1.0}
        first = context.climb(backward(objective), 41, stop=False, **half)(x, y, rows)
        return context.climb(backward(of(net, logit_margin)), 41, start=first - x, **half)(x, y, rows)

    crafts: dict[str, Craft] = {f"towards-{end}": partial(driven, towards=float(end)) for end in (0, 1)}
    return GroupResult(context.run({"frozen": frozen} | crafts))


def latent(net: Attackable, context: Context) -> GroupResult:
    """Final and auxiliary logits together; final logits and freshly fitted heads on the stages (LAFEAT, Yu 2021)."""
    crafts, missing = dict[str, Craft](), dict[str, str]()
    if with_auxiliary(net, context.x[:1])[1]:
        crafts["joint"] = context.climb(backward(joint(partial(with_auxiliary, net), 1.0)), 50, backward_tau=1.0)
    else:
        missing["joint"] = "this model has no auxiliary logits"
    images, labels = context.train or (context.x, context.y)
    heads, stages = with_latent_heads(net, images, labels, classes=context.classes, batch=context.batch)
    if stages:
        for name, weight in {"heads": 1.0, "heads-strong": 10.0}.items():
            crafts[name] = context.climb(backward(joint(heads, weight)), 51)
    else:
        missing["heads"] = "this model has no stages below its logits"
    return GroupResult(context.run(crafts), {"stages": stages}, missing)


def transfer(net: Attackable, context: Context) -> GroupResult:
    """Images made on the network with m = 1, on it with R = 0, and on the surrogate, at their highest."""
    crafts, missing = dict[str, Craft](), dict[str, str]()
    losses: dict[str, Loss] = {"margin": logit_margin, "ce": scaled_cross_entropy}
    bypasses = {"m1": Intervention(mask=torch.ones_like), "r0": Intervention(recalibrate=False)}
    if not masked(net):
        missing |= dict.fromkeys(bypasses, NO_MASK)
    elif all(module.correct is None for module in masked(net)):
        missing["r0"] = "this model has no recalibration"
    if context.surrogate is None:
        missing["surrogate"] = "no surrogate network was given"
    for name, loss in losses.items():
        for bypass in bypasses.keys() - missing.keys():
            change = {"stop": False, "intervention": bypasses[bypass]}
            crafts[f"{bypass}-{name}"] = context.climb(backward(of(net, loss)), 60, **change)
        if context.surrogate is not None:
            crafts[f"surrogate-{name}"] = context.climb(backward(of(context.surrogate, loss)), 61, stop=False)
    return GroupResult(context.run(crafts), not_applicable=missing)


def restarts(net: Attackable, context: Context) -> GroupResult:
    """PGD on cross-entropy with ten restarts at several step sizes, and on the margin to every likely wrong class."""
    pgd = context.named(net, "pgd100-restarts", steps=context.budget.pgd_steps)
    targeted = context.named(net, "pgd-mt", steps=context.budget.targeted_steps)
    return GroupResult(context.run({"pgd": pgd, "multi-targeted": targeted}))


def noise(net: Attackable, context: Context) -> GroupResult:
    """Gradients averaged over 20 draws (EOT), and AutoAttack `rand`.

    On a randomised network as it is; on FSR with its training noise switched on, judged on the network as it is. The
    detail `noisy_accuracy`: the share of images that the mean softmax of that noisy network still gets right.
    """
    if not context.randomised and all(module.spec.mask == "soft" for module in masked(net)):
        return GroupResult(not_applicable={"": "this model draws no noise"})
    switches, single, own = {} if context.randomised else {"noise": True}, context.reference, context.clean.clone()
    budget, missing = context.budget, dict[str, str]()

    def rand(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        mean = Attackable(single.model, x, draws=budget.draws)
        options: dict[str, Any] = {"version": "rand", "judge": mean, "seed": context.seed, "batch": context.batch}
        return cast(Tensor, run_autoattack(single, x, y, eps=context.eps, **options, **budget.rand).x_adv)

    def through_noise(x: Tensor, y: Tensor, rows: Tensor, *, craft: Craft) -> Tensor:
        with switched(net, **switches):
            x_adv = craft(x, y, rows)
            own[rows] &= context.correct(x_adv, rows, randomised=True)
        return x_adv

    losses: dict[str, Loss] = {"eot-margin": logit_margin, "eot-ce": scaled_cross_entropy}
    oracles = {name: backward(of(single, loss), draws=budget.draws) for name, loss in losses.items()}
    crafts = {name: context.climb(o, 70, steps=budget.noisy_steps, stop=False) for name, o in oracles.items()}
    if context.classes >= 3:
        crafts["rand"] = rand
    else:
        missing["rand"] = "APGD-DLR needs three classes"
    attacks = context.run({name: partial(through_noise, craft=craft) for name, craft in crafts.items()})
    return GroupResult(attacks, {"noisy_accuracy": float(own.double().mean())}, missing)


def queries(net: Attackable, context: Context) -> GroupResult:
    """Attacks that read scores only: Square, and finite differences (NES); random noise as a control.

    Of a randomised network Square asks fewer, averaged questions; the differences average over theirs anyway.
    """
    budget, single = context.budget, context.reference

    def nes(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        oracle = differences(single, logit_margin, sigma=context.eps, pairs=budget.pairs, seed=context.seed)
        return context.climb(oracle, 80, steps=budget.estimated_steps)(x, y, rows)

    crafts = {
        "square": context.named(net, "square", queries=budget.queries // net.draws),
        "nes": nes,
        "random-noise": context.named(net, "random-noise"),
    }
    return GroupResult(context.run(crafts))


def binarization(net: Attackable, context: Context) -> GroupResult:
    """The binarization test of ATTACKS and of the audit's own attacks: `shares` of known adversarial images found.

    Attacks that only read scores get the problem whose boundary is half as far.
    """
    images, shares, left = context.x[context.clean][: context.budget.binary], dict[str, float](), list[str]()
    for scores_only, closeness in ((False, 0.99), (True, 0.5)):
        try:
            problem, x, y = binary_problem(net.model, images, context.eps, seed=context.seed, closeness=closeness)
        except UsageError as error:
            return GroupResult(not_applicable={"": str(error)})
        problem.draws = net.draws
        inner = replace(context, reference=Attackable(problem.model, x), x=x, y=y, train=None)
        for name, attack in ATTACKS.items():
            if name in ("clean", *context.budget.untested) or ("queries" in attack.takes) != scores_only:
                continue
            before = fingerprint(problem)
            options = {"queries": context.budget.queries} if scores_only else {}
            try:
                kept = inner.run({name: inner.named(problem, name, **options)})[name]
            except UsageError:  # it needs another network, or auxiliary heads, which know nothing of this problem
                continue
            shares[name] = 1 - float(kept.double().mean())
            left += [f"{name}: {what}" for what in changed(before, problem)]
        for group in (queries,) if scores_only else (autoattack, bpda, mask):
            outcomes = group(problem, inner).attacks
            shares |= {f"{group.__name__}/{name}": 1 - float(kept.double().mean()) for name, kept in outcomes.items()}
    return GroupResult(details={"shares": shares, "images": len(images), "changed": left})
