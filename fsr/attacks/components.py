"""The attacks and checks of `pyautoattack` (Croce & Hein 2020), with its global state kept inside.

N images, K classes. The package reseeds for every batch: the same images in the same order repeat an outcome.
"""

import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsr.attacks.gradient import project_linf
from fsr.attacks.losses import Net
from fsr.files import UsageError

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
    """Stands in for the package's logger: a warning becomes a flag with its first message, the rest is dropped."""

    def __init__(self, messages: dict[str, str] | None = None, zero_gradient_points: int = 0):
        self.messages, self.zero_gradient_points = dict(messages or {}), zero_gradient_points
        self.debug = self.info = lambda message: None

    def warning(self, message: str) -> None:
        """Keep the flag that this warning raises; an unknown warning keeps itself."""
        text = str(message).replace(" See flags_doc.md for details.", "")
        flag = next((flag for phrase, flag in _WARNINGS.items() if phrase in text), text)
        self.messages.setdefault(flag, text)
        points = re.search(r"there are (\d+) points with zero gradient", text)
        self.zero_gradient_points += int(points.group(1)) if points else 0


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeded torch, numpy and random, and float32 by default, inside; afterwards all are as they were before."""
    python, arrays, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            torch.set_default_dtype(dtype)


def connected(model: Net) -> Net:
    """The model with fresh finite float32 logits that always depend on the image, if only with gradient zero.

    Square writes into the logits, APGD and FAB raise where the graph is cut, and FAB and DLR divide by differences.
    """

    def net(x: Tensor) -> Tensor:
        logits = model(x).float().clamp_min(-1e9)
        if x.requires_grad and torch.is_grad_enabled():
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits

    return net


@dataclass(frozen=True)
class Budget:
    """How much each component may do; the defaults are AutoAttack's own (standard; `rand` has draws=20)."""

    steps: int = 100
    queries: int = 5000
    draws: int = 1  # gradients averaged per APGD step (EOT)
    targets: int = 9  # wrong classes that the targeted attacks try
    rescale: bool = False  # fit Square's schedule to the number of queries


def _image_only_fab(net: Net, **settings):
    """The package's FAB, differentiating the image only: its own `backward()` would fill the parameters' gradients."""
    from pyautoattack.fab_pt import FABAttack_PT

    class ImageOnlyFAB(FABAttack_PT):
        def get_diff_logits_grads_batch_targeted(self, imgs, la, la_target):
            rows, leaf = torch.arange(len(imgs), device=imgs.device), imgs.clone().requires_grad_()
            with torch.enable_grad():
                logits = self.predict(leaf)
                gap = logits[rows, la_target] - logits[rows, la]
                (gradient,) = torch.autograd.grad(gap.sum(), leaf)
            return gap.detach()[:, None], gradient[:, None]

    return ImageOnlyFAB(net, **settings)


def component(name: str, model: Net, *, eps: float, seed: int, device, budget: Budget, log: Log):
    """One attack of the package by its name in NAMES, whose `perturb(x, y)` gives x_adv; x where it does not succeed.

    A budget of no steps, for Square of no queries, and eps 0 have no component: None.
    """
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.square import SquareAttack

    if eps == 0 or (budget.queries if name == "square" else budget.steps) == 0:
        return None
    net, targets = connected(model), {"n_target_classes": budget.targets}
    common = {"eps": eps, "norm": "Linf", "seed": seed, "device": device, "verbose": False, "n_restarts": 1}
    ascent = {"n_iter": budget.steps, "eot_iter": budget.draws, "rho": 0.75, "logger": log, **common}
    if name == "square":
        schedule = {"p_init": 0.8, "n_queries": budget.queries, "resc_schedule": budget.rescale}
        return SquareAttack(net, **schedule, **common)
    if name == "fab-t":
        return _image_only_fab(net, n_iter=budget.steps, targeted=True, **targets, **common)
    if name == "apgd-t":
        return APGDAttack_targeted(net, **targets, **ascent)
    return APGDAttack(net, loss=name.removeprefix("apgd-"), **ascent)


def crafted(attack, x: Tensor, y: Tensor, eps: float, **options) -> Tensor:
    """What a component makes of x, in the ball and [0, 1]; an image with a non-finite pixel becomes its clean one."""
    if attack is None:
        return x.clone()
    x_adv = attack.perturb(x, y, **options).detach().float()
    finite = torch.isfinite(x_adv).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return project_linf(torch.where(finite, x_adv, x), x, eps)


@torch.no_grad()
def single(model: Net, x: Tensor, y: Tensor, *, name: str, eps: float, seed: int = 0, budget=Budget()) -> Tensor:
    """One component alone, x_adv like x; x where the model is wrong or stays right."""
    with own_randomness(seed):
        images = x.detach().float().contiguous()  # the package takes views
        attack = component(name, model, eps=eps, seed=seed, device=x.device, budget=budget, log=Log())
        if attack is not None and name == "apgd-dlr" and (classes := attack.model(images[:1]).shape[1]) < 3:
            raise UsageError(f"apgd-dlr needs three classes, the network has {classes}")
        return crafted(attack, images, y, eps).to(x.dtype)


def check_model(model: Net, x: Tensor, y: Tensor, attacks: list[str], randomised_ok: bool, log: Log) -> int:
    """The package's checks on one batch (randomised, probabilities, dynamic) into `log`; returns K.

    UsageError where an attack needs more classes.
    """
    from pyautoattack import checks

    net = connected(model)
    if not randomised_ok:
        checks.check_randomized(net, x, y, bs=len(x), logger=log)
    classes = checks.check_range_output(net, x, logger=log)
    needed = 4 if "apgd-t" in attacks else 3 if "apgd-dlr" in attacks else 2
    if classes < needed:
        raise UsageError(
            f"{', '.join(attacks)} need {needed} classes, this model has {classes}; "
            'use version="custom" with attacks=("apgd-ce", "fab-t", "square"), or one of them alone: --attack square'
        )
    trace, counters = sys.gettrace(), dict(checks.funcs)  # the package sets its own trace and then none
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        checks.check_dynamic(net, x, False, logger=log)
    finally:
        sys.settrace(trace)
        checks.funcs.update(counters)
    return classes
