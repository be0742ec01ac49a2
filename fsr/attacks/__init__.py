"""Every attack by its name: `ATTACKS["pgd20"](model, x, y, eps=8 / 255)` is x_adv. The caller chooses the mode."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fsr.attacks import gradient as g
from fsr.attacks.auto import autoattack
from fsr.attacks.inputs import Network, check_images, check_numbers
from fsr.files import UsageError


@dataclass(frozen=True)
class Attack:
    """One attack: what it does and what it may be given."""

    function: Callable[..., Tensor]  # (model, x, y, *, eps, **options) -> x_adv like x; seed, indices if it has them
    description: str
    survivors_ok: bool = False  # it may be given only the images that are still correct: broken ones stay broken
    needs: tuple[str, ...] = ()  # options that must be given: steps, queries, surrogate (a net to craft on)
    takes: tuple[str, ...] = ()  # and those that may
    images: int | None = None  # how many test images it runs on by default, None for all

    @torch.inference_mode(False)
    def __call__(self, model, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, indices=None, **options) -> Tensor:
        """x_adv like x: x (N, C, H, W) in [0, 1], y (N,) int64, indices (N,) places in the data set, 0..N-1 if None.

        Options that are None are left out. No images, eps=0, steps=0 or queries=0 give x and ask nothing. UsageError
        for wrong inputs and for a missing or unknown option.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if wrong := {*self.needs} - {*given} or {*given} - {*self.needs, *self.takes}:
            raise UsageError(f"this attack needs {self.needs}, may get {self.takes}, not {wrong}: {self.description}")
        check_images(x, y)
        counts = check_numbers(eps, seed=seed, **{k: v for k, v in given.items() if k != "surrogate"})
        eps, seed = counts.pop("eps"), counts.pop("seed")
        places = range(len(x)) if indices is None else [int(i) for i in indices]
        if len(places) != len(x):
            raise UsageError(f"{len(x)} images need as many indices, not {len(places)}")
        x, y = x.detach().clone(), y.detach().clone()
        if len(x) == 0 or 0 in (eps, *counts.values()):
            return x
        network, accepted = Network(given.pop("surrogate", model), x, y), inspect.signature(self.function).parameters
        given = counts | {name: v for name, v in (("seed", seed), ("indices", places)) if name in accepted}
        x_adv = self.function(network, x, y, eps=eps, **given)
        if not network.called:  # by a control: the labels are checked all the same
            with torch.no_grad():
                network(x)
        return g.project_linf(torch.where(torch.isfinite(x_adv), x_adv, x), x, eps + 1e-7)


# AutoAttack's variants by name, and the options that make them: attacks of several parts, each of which sees only what
# the parts before left correct
VARIANTS: dict = {"autoattack": {}, "autoattack-rand": {"version": "rand"}}
VARIANTS["autoattack-ci"] = {"steps": 5, "queries": 50}


def _auto(description: str, takes: tuple[str, ...] = (), **variant) -> Attack:
    def craft(model, x: Tensor, y: Tensor, *, seed: int, **options) -> Tensor:
        return autoattack(model, x, y, seed=seed, batch=len(x), **variant, **options).x_adv

    return Attack(craft, description, survivors_ok=True, takes=takes)


_pgd, _transfer = partial(Attack, takes=("steps",)), partial(Attack, takes=("surrogate", "steps"))
_worst, _component = partial(Attack, survivors_ok=True, takes=("steps",)), partial(_auto, version="custom")

# To add an attack: a function (model, x, y, *, eps, ...) -> x_adv in a file of this folder, and an entry
# "name": Attack(function, "what it does") here. Its name is then a column, a value of --attack and a tested case.
ATTACKS: dict[str, Attack] = {
    "clean": Attack(lambda model, x, y, *, eps: x, "no attack"),
    "random-noise": Attack(g.random_noise, "control: every pixel moved by eps up or down at random"),
    "fgsm": Attack(lambda *a, eps: g.pgd(*a, eps=eps, alpha=eps, steps=1), "one step of eps on cross-entropy"),
    "pgd10": _pgd(partial(g.pgd, steps=10), "10 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "pgd20": _pgd(g.pgd, "20 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "pgd100": _pgd(partial(g.pgd, steps=100), "100 steps of 0.1 eps on cross-entropy, no start, last iterate"),
    "cw": _pgd(partial(g.pgd, steps=30, loss=g.margin), "30 steps of 0.1 eps on the C&W margin (kappa 50)"),
    "pgd20-joint": _pgd(lambda net, *a, **k: g.pgd(net.trace, *a, loss=g.joint_loss, **k), "pgd20 on CE + 2 aux CE"),
    "pgd100-restarts": _worst(g.pgd_restarts, "10 random starts of PGD-100, steps of 0.25, 0.1 and 0.025 eps, worst"),
    "pgd-mt": _worst(g.multi_targeted, "PGD-50 on the margin to each of 9 wrong classes, random starts, worst"),
    "transfer": _pgd(g.pgd, "pgd20 crafted on another net", needs=("surrogate",)),
    "di-fgsm": _transfer(g.di_fgsm, "pgd20 with input diversity (probability 0.5, resize 0.9)"),
    "ti-fgsm": _transfer(g.ti_fgsm, "pgd20 along the Gaussian-smoothed gradient (7x7; 3x3 at 8 pixels)"),
    "mi-fgsm": _transfer(g.mi_fgsm, "pgd20 with momentum 1"),
    "nattack": _worst(g.nattack, "N-Attack: scores only, 20,000 queries", takes=("queries",), images=1000),
    "square": _component("Square Attack: scores only, 5,000 queries", ("queries",), attacks=("square",), rescale=True),
    "apgd-ce": _component("APGD, 100 steps, cross-entropy", attacks=("apgd-ce",)),
    "apgd-dlr": _component("APGD, 100 steps, difference of logits ratio", attacks=("apgd-dlr",)),
    "autoattack": _auto("AutoAttack standard: APGD-CE, APGD-T, FAB-T, Square"),
    "autoattack-rand": _auto("AutoAttack rand: APGD-CE, APGD-DLR, 20 draws a gradient", **VARIANTS["autoattack-rand"]),
    "autoattack-ci": _auto("AutoAttack standard cut to 5 steps and 50 queries", **VARIANTS["autoattack-ci"]),
}
