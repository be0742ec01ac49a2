"""The audited network as attacks see it, and what every group of attacks is given: images, budget, verdicts."""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsr.attacks import ATTACKS
from fsr.attacks.gradient import is_wrong, uniform_start
from fsr.attacks.inputs import Network, own_randomness
from fsr.audit.ascent import Oracle, ascend, scale_free
from fsr.files import UsageError
from fsr.hardware import exact_float32, quick_float32
from fsr.models.fsr import switched
from fsr.models.modes import copied
from fsr.store.weights import digest

Craft = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, labels, their numbers (M,) -> x_adv

# What groups may spend per image: `steps` of an ascent, `draws` of a randomised network per verdict, `queries` of
# Square, `pairs` of finite differences per step; images of the binarization test, and attacks that are too slow for it;
# options that cut AutoAttack short.
SLOW = ("autoattack", "autoattack-ci", "autoattack-rand", "nattack")
BUDGETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 40, "draws": 20, "queries": 1000, "pairs": 24, "binary": 8, "untested": SLOW},
    "full": {"steps": 100, "draws": 20, "queries": 20_000, "pairs": 64, "binary": 50},
}
BUDGETS["quick"]["autoattack"] = {"steps": 20, "queries": 300}


def private_copy(model: nn.Module) -> nn.Module:
    """The same network in eval mode, not compiled, its parameters float32 and without gradients, or UsageError."""
    try:
        copy = copied(getattr(model, "_orig_mod", model)).float().requires_grad_(False)
        copy.eval()  # which may give something else
        return copy
    except Exception as error:  # foreign code
        raise UsageError(f"an audit needs an nn.Module that copy.deepcopy takes, not this: {error!r:.120}") from None


def attackable(model: nn.Module, x: Tensor, y: Tensor, draws: int = 1) -> Network:
    """The network as attacks ask it; one that has no gradient at all, as behind numpy, gives zeros."""
    net, leaf = Network(model, x, y, draws), x[:1].clone().requires_grad_()
    try:
        with torch.enable_grad():
            torch.autograd.grad(net(leaf).sum(), leaf)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if re.search("use_reentrant|inplace operation", str(error)):
            raise UsageError(f"torch refuses the network's backward pass: {error!s:.99}") from None
        net.blind = True
    return net


def differs(first: Tensor, other: Tensor, limit: float = 1e-4) -> bool:
    """Do two answers (N, K) differ by more than limit times a row's largest logit, from the median one on?"""
    spread = first.amax(dim=1, keepdim=True) - first.median(dim=1, keepdim=True).values  # one may be -1e5
    return bool(((other - first).abs() > limit * spread + 1e-6 * first.abs()).any())


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What an attack must leave as it is, by name."""
    parts = list(model.modules())
    return {
        "train mode": [part.training for part in parts],
        "weights and buffers": digest({**dict(model.named_parameters()), **dict(model.named_buffers())}),
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "hooks": [[*p._forward_hooks, *p._forward_pre_hooks, *p._backward_hooks] for p in parts],
        "random state": [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()],
    }


@dataclass(kw_only=True)
class Context:
    """Images (N, C, H, W), labels, and what is known about the network before any attack."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    seed: int
    budget: dict[str, Any]
    batch: int = 250
    surrogate: nn.Module | None = None

    def __post_init__(self):
        ask, some = partial(attackable, self.model, self.x, self.y), self.x[:64]
        self.reference = self.net = self.judge = ask()  # one pass; what attacks see; whose verdict counts
        with own_randomness(self.seed), torch.no_grad():
            first = self.reference(some)
            self.classes, self.randomised = first.shape[1], any(differs(first, self.reference(some)) for _ in range(4))
        weights = [snapshot(net)["weights and buffers"] for net in (self.model, self.surrogate) if net]
        answers = [] if self.randomised else scale_free(first[:8]).mul(100).round().int().tolist()
        facts = repr((self.eps, self.seed, self.budget, weights, answers))
        self.call = digest({"x": self.x, "y": self.y}, facts)  # which its records hold
        if self.randomised:
            self.net, self.judge = ask(8), ask(self.budget["draws"])
        rows = torch.arange(len(self.x), device=self.x.device)
        self.clean = torch.cat([self.correct(self.x[part], part) for part in rows.split(self.batch)])

    @torch.no_grad()
    def correct(self, x_adv: Tensor, rows: Tensor, judge: Network | None = None) -> Tensor:
        """Is x_adv, made of the images rows (M,), still right?  (M,) bool."""
        with own_randomness(self.seed), exact_float32():  # the same draws for every attack
            return ~is_wrong((judge or self.judge)(x_adv), self.y[rows])

    def named(self, name: str, **options) -> Craft:
        how = {"eps": self.eps, "seed": self.seed, **options}
        return lambda x, y, rows: ATTACKS[name](self.net, x, y, indices=rows.tolist(), **how)

    def climb(self, oracle: Oracle, stream: int, *, part: int = 1, stop: bool = True, **switches) -> Craft:
        """The audit's own ascent, from a random start, while FSR's switches are set; part: of the budget's steps."""
        how = {"eps": self.eps, "steps": self.budget["steps"] // part, "stop": stop and not self.randomised}

        def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            start = uniform_start(x, eps=self.eps, seed=self.seed, indices=rows.tolist(), stream=stream)
            with switched(self.reference, **switches):
                return ascend(oracle, x, y, start=start, **how)

        return craft

    def run(self, candidates: Iterable[tuple[str, Craft | str]]) -> dict[str, Tensor]:
        """Name to (N,) bool, right on clean images and under the attack; each attack gets what is right when clean."""
        crafts = {name: craft for name, craft in candidates if not isinstance(craft, str)}
        outcomes = {name: self.clean.clone() for name in crafts}
        parts = [rows for rows in self.clean.nonzero().squeeze(1).split(self.batch) if len(rows)]
        for name, craft in crafts.items():
            for rows in parts:
                x, y = self.x[rows], self.y[rows]
                with quick_float32(), torch.no_grad():
                    x_adv = craft(x, y, rows)
                    fooled = is_wrong(self.reference(x_adv), y)
                correct = self.correct(x_adv, rows)
                again = correct & fooled  # an attack may have stopped where only TensorFloat-32 is wrong
                if again.any() and not self.randomised:
                    correct[again] = self.correct(craft(x[again], y[again], rows[again]), rows[again])
                outcomes[name][rows] = correct
        return outcomes
