"""Groups that any classifier gets: the authors' columns, AutoAttack, restarts, what gradients hide, queries."""

from functools import partial

import torch
from torch import Tensor

from fsr.attacks import auto, query
from fsr.attacks.ascent import ascend, differentiated, lead, of, scale_free
from fsr.attacks.gradient import fgsm, multi_targeted, pgd, pgd_restarts, random_noise
from fsr.attacks.losses import Loss, cross_entropy, dlr, margin
from fsr.attacks.unmask import estimated
from fsr.audit.case import Case, Craft
from fsr.audit.result import Findings
from fsr.hardware import Exact, quick_float32


def scaled_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of scale-free logits, (N,): the same for a network and for 1000 times its logits."""
    return cross_entropy(scale_free(logits), y)


def ratio(case: Case) -> Loss:
    """DLR, or the margin where there are too few classes for it."""
    return dlr if case.classes >= 3 else lead


def protocol(case: Case) -> Findings:
    """Clean, FGSM, PGD-20, PGD-100, C&W as the authors run them; every column gets every image."""
    eps, net = case.eps, case.net
    walk = partial(pgd, eps=eps, alpha=0.1 * eps, random_start=False)
    crafts: dict[str, Craft] = {
        "clean": lambda x, y, rows: x,
        "fgsm": lambda x, y, rows: fgsm(net, x, y, eps=eps),
        "pgd20": lambda x, y, rows: walk(net, x, y, steps=20),
        "pgd100": lambda x, y, rows: walk(net, x, y, steps=100),
        "cw": lambda x, y, rows: walk(net, x, y, steps=30, loss=margin),
    }
    return Findings(case.sweep(crafts.items(), together=False))


def autoattack(case: Case) -> Findings:
    """AutoAttack standard with its own flags; fewer than four classes leave out the targeted APGD."""
    kinds = ("apgd-ce", "apgd-t", "fab-t", "square") if case.classes >= 4 else ("apgd-ce", "fab-t", "square")
    judge = case.steady if case.randomised else Exact(case.net) if case.quick else None
    with quick_float32():
        result = auto.autoattack(
            case.net,
            case.x,
            case.y,
            eps=case.eps,
            version="custom",
            attacks=kinds,
            seed=case.seed,
            batch=case.batch,
            judge=judge,
            **case.budget.autoattack,
        )
    found = case.x if result.x_adv is None else result.x_adv
    return Findings(case.sweep([("standard", lambda x, y, rows: found[rows])], together=False), dict(result.flags))


def restarts(case: Case) -> Findings:
    """PGD on cross-entropy with restarts at several step sizes, then every likely wrong class in turn.

    A randomised model is asked for its mean over draws: one unlucky draw ends no attack. The margin is taken of single
    draws' logits, which do not saturate as the mean's do.
    """
    budget, net = case.budget, case.steady if case.randomised else case.net

    def several(alpha: float, block: int) -> Craft:
        def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            own = {"seed": case.seed, "indices": rows.tolist(), "stream": 100 * block}
            budgeted = {"steps": budget.pgd_steps, "restarts": budget.restarts}
            return pgd_restarts(net, x, y, eps=case.eps, alphas=(alpha,), **budgeted, **own)

        return craft

    def targeted(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return multi_targeted(
            case.net,
            x,
            y,
            eps=case.eps,
            alpha=0.25 * case.eps,
            steps=budget.pgd_steps // 2,
            targets=budget.targets,
            seed=case.seed,
            indices=rows.tolist(),
            stream=1000,
            draws=case.draws,
            judge=net,
        )

    crafts = [(f"pgd-{alpha}", several(alpha, i)) for i, alpha in enumerate(budget.alphas)]
    return Findings(case.sweep([*crafts, ("multi-targeted", targeted)], together=True))


def unmasked(case: Case) -> Findings:
    """Attacks that a vanishing, missing or misleading gradient does not stop, for any model.

    Logits of any scale, slopes restored in the backward pass, gradients averaged over a neighbourhood, and finite
    differences with steps of eps that never ask for a gradient.
    """
    eps, steps = case.eps, case.budget.steps

    def nearby(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        look = differentiated(of(case.softened, lead), draws=4, jitter=eps / 2, seed=case.seed)
        return ascend(look, x, y, eps=eps, steps=steps // 2, start=case.start(rows, 23), until_wrong=False)

    def differences(sigma: float) -> Craft:
        def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            look = estimated(case.model, lead, sigma=sigma, pairs=case.budget.pairs, seed=case.seed)
            return ascend(look, x, y, eps=eps, steps=case.budget.estimated_steps, until_wrong=not case.randomised)

        return craft

    crafts: list[tuple[str, Craft]] = [
        ("scaled-ce", case.climb(case.net, scaled_cross_entropy, 20)),
        ("margin", case.climb(case.net, lead, 21)),
        ("softened-margin", case.climb(case.softened, lead, 22)),
        ("softened-ce", case.climb(case.softened, scaled_cross_entropy, 24)),
        ("softened-nearby", nearby),
        ("differences-wide", differences(eps)),
        ("differences-narrow", differences(eps / 4)),
    ]
    return Findings(case.sweep(crafts, together=True))


def queries(case: Case) -> Findings:
    """Square with many queries, and random corners of the ball as a control."""
    many = case.budget.queries if not case.randomised else max(100, case.budget.queries // 5)

    def square(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return query.square(case.steady, x, y, eps=case.eps, queries=many, seed=case.seed)

    def corners(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        worst, height = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        for draw in range(case.budget.noises):
            x_adv = random_noise(case.net, x, y, eps=case.eps, seed=case.seed + draw, indices=rows.tolist())
            with torch.no_grad():
                value = lead(case.model(x_adv), y)
            worst[value > height] = x_adv[value > height]
            height = torch.maximum(height, value)
        return worst

    return Findings(case.sweep([("square", square), ("random-noise", corners)], together=False))
