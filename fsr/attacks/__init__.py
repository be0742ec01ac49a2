"""Every attack by the name that tables, records and the command line use.

`ATTACKS["pgd20"](model, x, y, eps=8 / 255, indices=index)` gives x_adv like x. The caller chooses the model's mode,
its precision and the device, and judges the result. Evaluation steps are 0.1 * eps everywhere.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fsr.attacks import transfer
from fsr.attacks.auto import autoattack
from fsr.attacks.components import single
from fsr.attacks.gradient import fgsm, joint, multi_targeted, pgd, pgd_restarts, random_noise
from fsr.attacks.inputs import Network, check_counts, check_eps, check_images
from fsr.attacks.losses import margin
from fsr.attacks.query import nattack, square
from fsr.files import UsageError


@dataclass(frozen=True)
class Attack:
    """One attack: what it does and what it may be given.

    function: (model, x, y, *, eps, **options) -> x_adv like x; seed and indices too where its signature has them.
    survivors_ok: an image that clean images or an earlier attack broke counts as broken, so it may get survivors only.
    needs, takes: options that must, may be given: steps, queries, surrogate (a net to craft on in the model's place).
    images: how many test images it runs on by default, None for all. per_sample: an image's outcome does not depend on
    its batch; else only a fixed order and batch size repeat it.
    """

    function: Callable[..., Tensor]
    description: str
    survivors_ok: bool = False
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    images: int | None = None
    per_sample: bool = True

    @torch.inference_mode(False)
    def __call__(self, model, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, indices=None, **options) -> Tensor:
        """x_adv like x: x (N, C, H, W) in [0, 1], y (N,) int64, indices (N,) places in the data set, 0..N-1 if None.

        Options that are None are left out. No images, eps=0, steps=0 or queries=0 give x and ask nothing. UsageError
        for wrong inputs and for a missing or unknown option.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in self.needs:
            if name not in given:
                raise UsageError(f"this attack needs {name}=: {self.description}")
        for name in given:
            if name not in self.needs + self.takes:
                raise UsageError(f"this attack takes no {name}=: {self.description}")
        check_images(x, y, empty=True)
        check_counts(steps=given.get("steps"), queries=given.get("queries"))
        eps, x, y = check_eps(eps), x.detach().clone(), y.detach().clone()
        if len(x) == 0 or 0 in (eps, given.get("steps"), given.get("queries")):
            return x
        network = Network(given.pop("surrogate", model), x, y)
        places = range(len(x)) if indices is None else [int(i) for i in indices]
        if len(places) != len(x):
            raise UsageError(f"{len(places)} places in the data set do not fit {len(x)} images")
        accepted = inspect.signature(self.function).parameters
        given |= {name: v for name, v in (("seed", seed), ("indices", places)) if name in accepted}
        x_adv = self.function(network, x, y, eps=eps, **given)
        if not network.asked:  # by a control: the labels are checked all the same
            with torch.no_grad():
                network(x)
        return x_adv


def _clean(model, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    return x


def _autoattack(model, x: Tensor, y: Tensor, *, eps: float, seed: int, **variant) -> Tensor:
    x_adv = autoattack(model, x, y, eps=eps, seed=seed, batch=len(x), **variant).x_adv
    assert x_adv is not None  # kept by default
    return x_adv


# AutoAttack's variants by name, and the options that make them: attacks of several parts, each of which sees only what
# the parts before left correct
VARIANTS: dict[str, dict] = {
    "autoattack": {},
    "autoattack-rand": {"version": "rand"},
    "autoattack-ci": {"steps": 5, "queries": 50},
}

_walk = partial(pgd, random_start=False)
_walks = partial(Attack, takes=("steps",))
_transfers = partial(Attack, takes=("surrogate", "steps"))
_of_batch = partial(Attack, survivors_ok=True, per_sample=False)
_variant = {name: partial(_autoattack, **options) for name, options in VARIANTS.items()}

# To add an attack: a function (model, x, y, *, eps, ...) -> x_adv in a file of this folder, and an entry
# "name": Attack(function, "what it does") here. Its name is then a column, a value of --attack and a tested case.
ATTACKS: dict[str, Attack] = {
    "clean": Attack(_clean, "no attack"),
    "random-noise": Attack(random_noise, "control: every pixel moved by eps up or down at random"),
    "fgsm": Attack(fgsm, "one step of eps on cross-entropy, no random start"),
    "pgd10": _walks(partial(_walk, steps=10), "10 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "pgd20": _walks(partial(_walk, steps=20), "20 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "pgd100": _walks(partial(_walk, steps=100), "100 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "cw": _walks(
        partial(_walk, steps=30, loss=margin),
        "30 steps of 0.1 eps on the C&W margin (kappa 50), no random start, last iterate",
    ),
    "pgd20-joint": _walks(joint, "pgd20 on final plus 2 x mean auxiliary cross-entropy (CAS, CIFS authors)"),
    "pgd100-restarts": _walks(
        pgd_restarts, "10 random starts of PGD-100, steps of 0.25, 0.1 and 0.025 eps, worst", survivors_ok=True
    ),
    "pgd-mt": _walks(
        multi_targeted, "PGD-50 on the margin to each of 9 wrong classes, random starts, worst", survivors_ok=True
    ),
    "transfer": _walks(partial(_walk, steps=20), "pgd20 crafted on another net", needs=("surrogate",)),
    "di-fgsm": _transfers(
        partial(transfer.di_fgsm, steps=20), "pgd20 with input diversity (probability 0.5, resize 0.9)"
    ),
    "ti-fgsm": _transfers(
        partial(transfer.ti_fgsm, steps=20), "pgd20 along the Gaussian-smoothed gradient (7x7; 3x3 at 8 pixels)"
    ),
    "mi-fgsm": _transfers(partial(transfer.mi_fgsm, steps=20), "pgd20 with momentum 1"),
    "nattack": Attack(
        nattack,
        "N-Attack: scores only, population 300, 20,000 queries",
        survivors_ok=True,
        takes=("queries",),
        images=1000,
    ),
    "square": _of_batch(square, "Square Attack: scores only, 5,000 queries", takes=("queries",)),
    "apgd-ce": _of_batch(partial(single, name="apgd-ce"), "APGD, 100 steps, cross-entropy"),
    "apgd-dlr": _of_batch(partial(single, name="apgd-dlr"), "APGD, 100 steps, difference of logits ratio"),
    "autoattack": _of_batch(_variant["autoattack"], "AutoAttack standard: APGD-CE, APGD-T, FAB-T, Square"),
    "autoattack-rand": _of_batch(
        _variant["autoattack-rand"], "AutoAttack rand: APGD-CE, APGD-DLR, 20 draws per gradient"
    ),
    "autoattack-ci": _of_batch(
        _variant["autoattack-ci"], "AutoAttack standard cut to 5 steps and 50 queries: tests plumbing only"
    ),
}


def attack_named(name: str) -> Attack:
    """The attack of that name; an unknown one raises UsageError that lists them."""
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    if not isinstance(ATTACKS[name], Attack):
        raise UsageError(f"ATTACKS[{name!r}] must be Attack(function, description)")
    return ATTACKS[name]
