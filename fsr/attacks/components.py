"""The attacks and checks of `pyautoattack`, with its global state kept inside.

The package's APGD, FAB and Square are the authors' code (Croce & Hein 2020); it is imported inside functions only. N
images, K classes. Everything here runs within `isolated()`.
"""

import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsr.files import UsageError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
RAND = ("apgd-ce", "apgd-dlr")
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
FLAGS = ("randomised", "probabilities", "dynamic", "classes", "zero_gradient", "square_beats_whitebox")
_WARNINGS = {  # a phrase of each of the package's warnings, and the flag it raises
    "randomized defense": "randomised",
    "probability distribution": "probabilities",
    "dynamic defense": "dynamic",
    "zero gradient": "zero_gradient",
    "Square Attack has decreased": "square_beats_whitebox",
    "classes": "classes",
}


class Log:
    """Stands in for the package's logger: warnings become flags, the rest is dropped."""

    def __init__(self):
        self.flags: dict[str, str] = {}  # flag to its first message
        self.zero_gradient_points = 0

    def warning(self, message: str) -> None:
        """Keep the flag that this warning raises; an unknown warning keeps itself."""
        text = str(message).replace(" See flags_doc.md for details.", "")
        flag = next((flag for phrase, flag in _WARNINGS.items() if phrase in text), text)
        self.flags.setdefault(flag, text)
        points = re.search(r"there are (\d+) points with zero gradient", text)
        self.zero_gradient_points += int(points.group(1)) if points else 0

    def found(self) -> dict:
        """What it holds, JSON-able."""
        return {"messages": self.flags, "zero_gradient_points": self.zero_gradient_points}

    def join(self, found: dict) -> None:
        """Take over what another log `found`."""
        self.flags = {**found["messages"], **self.flags}  # the first message of a flag stays
        self.zero_gradient_points += found["zero_gradient_points"]

    def debug(self, message: str) -> None:
        """Dropped."""

    info = debug


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed every generator inside; afterwards they and the package's counters are as before."""
    from pyautoattack import checks

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    counters = dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        if on_cuda is not None:
            torch.cuda.set_rng_state_all(on_cuda)
        checks.funcs.update(counters)


def connected(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The model with fresh float32 logits that always depend on the image, if only with gradient zero.

    Square writes into the logits that it gets; a model that cuts the graph would make APGD and FAB raise, while a zero
    gradient is what they should see and flag.
    """

    def net(x: Tensor) -> Tensor:
        logits = model(x).float()
        if x.requires_grad and torch.is_grad_enabled():
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits.clone()

    return net


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much each component may do; the defaults are AutoAttack's own (standard; `rand` has draws=20)."""

    steps: int = 100
    queries: int = 5000
    draws: int = 1  # gradients averaged per APGD step (EOT)
    targets: int = 9  # wrong classes that the targeted attacks try
    rescale: bool = False  # fit Square's schedule to the number of queries


def _quiet_fab(model, **settings):
    """The package's FAB, differentiating the image only: its own `backward()` would fill the parameters' gradients."""
    from pyautoattack.fab_pt import FABAttack_PT

    class ImageOnlyFAB(FABAttack_PT):
        def get_diff_logits_grads_batch_targeted(self, imgs, la, la_target):
            rows, leaf = torch.arange(len(imgs), device=imgs.device), imgs.clone().requires_grad_()
            with torch.enable_grad():
                logits = self.predict(leaf)
                lead = logits[rows, la_target] - logits[rows, la]
                (gradient,) = torch.autograd.grad(lead.sum(), leaf)
            return lead.detach()[:, None], gradient[:, None]

    return ImageOnlyFAB(model, **settings)


def component(name: str, model, *, eps: float, seed: int, device, budget: Budget, log: Log, best_loss: bool = False):
    """One attack of AutoAttack as (x, y) -> x_adv; x is returned where it does not succeed.

    name: one of NAMES. best_loss (APGD on CE and DLR): the image of highest loss instead, wrong or not.
    """
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.square import SquareAttack

    net, common = connected(model), {"eps": eps, "norm": "Linf", "seed": seed, "device": device, "verbose": False}
    ascent = {"n_iter": budget.steps, "n_restarts": 1, "eot_iter": budget.draws, "rho": 0.75, "logger": log}
    if name in ("apgd-ce", "apgd-dlr"):
        attack = APGDAttack(net, loss=name.removeprefix("apgd-"), **ascent, **common)
        return lambda x, y: attack.perturb(x, y, best_loss=best_loss)
    if name == "apgd-t":
        return APGDAttack_targeted(net, n_target_classes=budget.targets, **ascent, **common).perturb
    if name == "fab-t":
        return _quiet_fab(
            net, n_iter=budget.steps, n_restarts=1, targeted=True, n_target_classes=budget.targets, **common
        ).perturb
    if name == "square":
        return SquareAttack(
            net, p_init=0.8, n_queries=budget.queries, n_restarts=1, resc_schedule=budget.rescale, **common
        ).perturb
    raise UsageError(f"unknown attack {name!r}; choose one of {', '.join(NAMES)}")


def check_model(model, x: Tensor, y: Tensor, attacks: tuple[str, ...], *, randomised_ok: bool, log: Log) -> int:
    """The package's checks on one batch: randomised, probabilities, dynamic, classes, into `log`; returns K."""
    from pyautoattack import checks

    net = connected(model)
    if not randomised_ok:
        checks.check_randomized(net, x, y, bs=len(x), logger=log)
    classes = checks.check_range_output(net, x, logger=log)
    trace = sys.gettrace()  # the package sets its own and then none
    try:
        checks.check_dynamic(net, x, False, logger=log)
    finally:
        sys.settrace(trace)
    targets = min(9, classes - 1)
    checks.check_n_classes(classes, list(attacks), targets, targets, logger=log)
    needed = 4 if "apgd-t" in attacks else 3 if "apgd-dlr" in attacks else 2
    if classes < needed:
        raise UsageError(
            f"{', '.join(attacks)} need {needed} classes, this model has {classes}; "
            'use version="custom" with attacks=("apgd-ce", "fab-t", "square"), or one of them alone: --attack square'
        )
    return classes


def check_square(accuracies: dict[str, float], log: Log) -> None:
    """Raise the flag when Square lowers the accuracy by more than 0.002; accuracies after each attack, in order."""
    from pyautoattack import checks

    checks.check_square_sr(accuracies, logger=log)
