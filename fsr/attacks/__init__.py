"""Every attack by the name that tables, records and the command line use.

`ATTACKS["pgd20"](model, x, y, eps=8 / 255, indices=index)` gives x_adv like x. The caller chooses the model's mode,
its precision and the device, and judges the result. Evaluation steps are 0.1 * eps everywhere (spec section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fsr.attacks import gradient
from fsr.attacks.gradient import cross_entropy, margin
from fsr.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """One attack: what it does and what it may be given.

    function: (model, x, y, *, eps, seed, indices, **options) -> x_adv like x.
    survivors_ok: its definition counts a sample that clean images or an earlier attack already broke as broken, so it
    may get survivors only. needs, takes: options that must, may be given (surrogate: a net; steps, queries: int).
    images: how many test images it runs on by default, None for all. per_sample: a sample's outcome does not
    depend on its batch; else only a fixed order and batch size repeat it. randomised: draws noise per pass (EOT).
    """

    function: Callable[..., Tensor]
    description: str
    survivors_ok: bool = False
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    images: int | None = None
    per_sample: bool = True

    def __call__(self, model, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, indices=None, **options) -> Tensor:
        """x_adv like x: x (N, C, H, W) in [0, 1], y (N,) int64, indices (N,) places in the data set, 0..N-1 if None.

        Options that are None are left out; a missing or unknown one raises UsageError.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in self.needs:
            if name not in given:
                raise UsageError(f"this attack needs {name}=: {self.description}")
        for name in given:
            if name not in self.needs + self.takes:
                raise UsageError(f"this attack takes no {name}=: {self.description}")
        indices = range(len(x)) if indices is None else [int(i) for i in indices]
        return self.function(model, x, y, eps=eps, seed=seed, indices=indices, **given)


def _clean(model, x, y, *, eps, seed, indices) -> Tensor:
    return x.detach()


def _fgsm(model, x, y, *, eps, seed, indices) -> Tensor:
    return gradient.fgsm(model, x, y, eps=eps)


def _pgd(model, x, y, *, eps, seed, indices, steps, loss=cross_entropy) -> Tensor:
    return gradient.pgd(model, x, y, eps=eps, alpha=0.1 * eps, steps=steps, loss=loss, random_start=False)


ATTACKS: dict[str, AttackInfo] = {
    "clean": AttackInfo(function=_clean, description="no attack"),
    "fgsm": AttackInfo(function=_fgsm, description="one step of eps on cross-entropy, no random start"),
    "pgd10": AttackInfo(function=partial(_pgd, steps=10), takes=("steps",),
                        description="10 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "pgd20": AttackInfo(function=partial(_pgd, steps=20), takes=("steps",),
                        description="20 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "pgd100": AttackInfo(function=partial(_pgd, steps=100), takes=("steps",),
                         description="100 steps of 0.1 eps on cross-entropy, no random start, last iterate"),
    "cw": AttackInfo(function=partial(_pgd, steps=30, loss=margin), takes=("steps",),
                     description="30 steps of 0.1 eps on the C&W margin (kappa 50), no random start, last iterate"),
}


def attack_named(name: str) -> AttackInfo:
    """The attack of that name; an unknown one raises UsageError that lists them."""
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    return ATTACKS[name]
