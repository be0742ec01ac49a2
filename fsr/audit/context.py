"""What every group of the audit is given beside the network: images, a budget, verdicts and a way to attack."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fsr.attacks import ATTACKS
from fsr.attacks.components import own_randomness
from fsr.attacks.gradient import project_linf, uniform_start
from fsr.attacks.losses import is_wrong
from fsr.audit.ascent import Oracle, ascend
from fsr.audit.network import Attackable, differs, switched
from fsr.hardware import exact_float32, quick_float32

log = logging.getLogger("fsr")

Craft = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, labels, their numbers (M,) -> x_adv


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each group may spend; steps, passes and queries per image. The defaults are the full audit."""

    steps: int = 100  # of the audit's own ascents
    pgd_steps: int = 100  # of each of PGD's ten restarts
    targeted_steps: int = 50
    noisy_steps: int = 50  # of the attacks through noise
    draws: int = 20  # of a randomised network, per verdict, and per gradient of the attacks through noise
    queries: int = 20_000  # of Square
    pairs: int = 64  # finite differences per step
    estimated_steps: int = 40
    autoattack: dict = field(default_factory=dict)  # options that cut it short; none: standard
    rand: dict = field(default_factory=dict)  # likewise for its version `rand`
    binary: int = 50  # images of the binarization test
    untested: tuple[str, ...] = ()  # attacks that are too slow for that test


_SHORT: dict[str, Any] = {"steps": 40, "pgd_steps": 40, "targeted_steps": 20, "noisy_steps": 12, "estimated_steps": 20}
_CUT: dict[str, Any] = {"autoattack": {"steps": 20, "queries": 300}, "rand": {"steps": 8}, "queries": 1000, "pairs": 24}
BUDGETS = {
    "quick": Budget(**_SHORT, **_CUT, binary=8, untested=("autoattack", "autoattack-ci", "autoattack-rand", "nattack")),
    "full": Budget(),
}


@dataclass
class GroupResult:
    """One group's outcome."""

    attacks: dict[str, Tensor] = field(default_factory=dict)  # (N,) bool, right on clean images and under the attack
    details: dict = field(default_factory=dict)  # JSON-able facts
    not_applicable: dict[str, str] = field(default_factory=dict)  # attack, or "" for all, to why it was left out
    seconds: float = 0.0

    @property
    def correct(self) -> Tensor | None:
        """(N,) bool, right under every attack of the group; None where it has none."""
        return torch.stack(list(self.attacks.values())).all(dim=0) if self.attacks else None

    def plain(self) -> dict:
        """JSON-able."""
        return {**vars(self), "attacks": {name: kept.tolist() for name, kept in self.attacks.items()}}


@dataclass(kw_only=True)
class Context:
    """The images of an audit and what is known about the network on them before any attack.

    reference: the network whose verdict counts, one pass at a time. x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64.
    """

    reference: Attackable
    x: Tensor
    y: Tensor
    eps: float
    seed: int
    budget: Budget
    batch: int
    surrogate: nn.Module | None = None
    train: tuple[Tensor, Tensor] | None = None

    def __post_init__(self):
        probe = self.x[:64]
        with own_randomness(self.seed), torch.no_grad():
            self.classes = self.reference(probe[:1]).shape[1]
            self.randomised = any(differs(self.reference, self.reference, probe) for _ in range(4))
        rows = torch.arange(len(self.x), device=self.x.device)
        self.clean = torch.cat([self.correct(self.x[part], part) for part in rows.split(self.batch)])

    @torch.no_grad()
    def scores(self, x: Tensor, randomised: bool | None = None) -> Tensor:
        """Logits (N, K); of a randomised network the mean softmax over draws, the same for every attack."""
        with own_randomness(self.seed), exact_float32():
            if not (self.randomised if randomised is None else randomised):
                return self.reference(x)
            return sum(self.reference(x).softmax(dim=1) for _ in range(self.budget.draws)) / self.budget.draws

    def correct(self, x_adv: Tensor, rows: Tensor, randomised: bool | None = None) -> Tensor:
        """Still right, (M,) bool; x_adv, of the images rows (M,), is first put into ball and [0, 1]."""
        clean = self.x[rows]
        x_adv = torch.where(torch.isfinite(x_adv), x_adv, clean).to(clean.dtype)
        return ~is_wrong(self.scores(project_linf(x_adv, clean, self.eps), randomised), self.y[rows])

    def named(self, net: nn.Module, name: str, **options) -> Craft:
        """The attack of this name in ATTACKS on a network."""

        def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            return ATTACKS[name](net, x, y, eps=self.eps, seed=self.seed, indices=rows.tolist(), **options)

        return craft

    def climb(self, oracle: Oracle, stream: int, *, steps=None, stop=True, start=None, **switches) -> Craft:
        """The audit's own ascent, from a random start or the one given, while FSR's switches are set."""

        def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            first = uniform_start(x, eps=self.eps, seed=self.seed, indices=rows.tolist(), stream=stream)
            count, first = steps or self.budget.steps, first if start is None else start
            with switched(self.reference, **switches):
                return ascend(oracle, x, y, eps=self.eps, steps=count, start=first, stop=stop and not self.randomised)

        return craft

    def run(self, attacks: dict[str, Craft]) -> dict[str, Tensor]:
        """Name to (N,) bool, right on clean images and under the attack; each attack gets what is right when clean."""
        outcomes = {}
        for name, craft in attacks.items():
            correct = self.clean.clone()
            for rows in correct.nonzero().squeeze(1).split(self.batch) if correct.any() else ():
                correct[rows] = self._kept(craft, rows)
            outcomes[name] = correct
            log.debug("audit: %s leaves %d of %d", name, int(correct.sum()), len(correct))
        return outcomes

    def _kept(self, craft: Craft, rows: Tensor) -> Tensor:
        """Which images are right after an attack, crafted in TensorFloat-32 where a GPU has it and judged without.

        An attack may have stopped where only the coarse network errs: there it goes on without TensorFloat-32.
        """
        x, y = self.x[rows], self.y[rows]
        with quick_float32(), torch.no_grad():
            x_adv = craft(x, y, rows)
            fooled = is_wrong(self.reference(x_adv), y)
        kept = self.correct(x_adv, rows)
        again = kept & fooled
        if again.any() and not self.randomised:
            kept[again] = self.correct(craft(x[again], y[again], rows[again]), rows[again])
        return kept
