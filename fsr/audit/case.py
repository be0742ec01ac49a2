"""What every group of the audit works on: one model, prepared once, and how a list of attacks runs over its images."""

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from fsr.attacks.adaptive import masked
from fsr.attacks.ascent import Look, ascend, differentiated, of
from fsr.attacks.distill import distill
from fsr.attacks.gradient import uniform_start
from fsr.attacks.losses import Loss, Net
from fsr.attacks.unmask import Averaged, Guarded, Softened
from fsr.audit.judge import Judge, is_randomised, own_randomness
from fsr.files import UsageError
from fsr.hardware import quick_float32

log = logging.getLogger("fsr")

Craft = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much each group may spend; steps, passes and queries per image."""

    steps: int  # of every APGD
    restarts: int  # of PGD at each step size
    pgd_steps: int
    alphas: tuple[float, ...]  # step sizes in units of eps
    targets: int
    draws: int = 20  # of a randomised model, per gradient and per verdict
    noisy_steps: int  # of the attacks that average draws
    queries: int
    autoattack: dict = field(default_factory=dict)  # options that cut it short; none: standard
    rand: dict = field(default_factory=dict)  # likewise for its version `rand`
    pairs: int  # finite differences per step
    estimated_steps: int
    student: dict = field(default_factory=dict)
    noises: int = 10  # random corners tried as a control


BUDGETS = {
    "quick": Budget(
        steps=40,
        restarts=5,
        pgd_steps=40,
        alphas=(0.25, 0.1),
        targets=9,
        noisy_steps=12,
        queries=1000,
        autoattack={"steps": 20, "queries": 300},
        rand={"steps": 8},
        pairs=24,
        estimated_steps=10,
        student={"rounds": 3, "samples": 2000, "steps": 120},
    ),
    "full": Budget(
        steps=100,
        restarts=10,
        pgd_steps=100,
        alphas=(0.5, 0.25, 0.1, 0.025),
        targets=9,
        noisy_steps=50,
        queries=20_000,
        pairs=64,
        estimated_steps=40,
        student={"rounds": 5, "samples": 20_000, "steps": 600},
        noises=100,
    ),
}


@dataclass
class Case:
    """A private copy of the model in eval mode, its images, and what is known about it before any attack.

    x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64, both on the model's device. net: the model with a gradient that
    always exists. clean: (N,) bool, right without attack.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    seed: int
    budget: Budget
    judge: Judge
    clean: Tensor
    classes: int
    randomised: bool
    batch: int
    surrogate: nn.Module | None = None
    train: tuple[Tensor, Tensor] | None = None

    @cached_property
    def net(self) -> nn.Module:
        """What gradient attacks differentiate."""
        return Guarded(self.model)

    @cached_property
    def softened(self) -> nn.Module:
        """The model with slopes where it hides them; its features belong to the graph, unlike those of `net`."""
        with own_randomness(self.seed, self.x.device):
            return Softened(self.model, self.x[:2])

    @cached_property
    def steady(self) -> nn.Module:
        """What query attacks ask: the model, or a randomised model's mean over several draws."""
        return Averaged(self.net, self.budget.draws // 2) if self.randomised else self.model

    @cached_property
    def inner(self) -> nn.Module:
        """What attacks on inner tensors differentiate: the model, or `softened` where it refuses a gradient."""
        x = self.x[:1].clone().requires_grad_()
        try:
            with torch.enable_grad(), own_randomness(self.seed, x.device):
                torch.autograd.grad(self.model(x).sum(), x)
            return self.model
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, NotImplementedError):  # numpy, detach, integers
            return self.softened

    @cached_property
    def student(self) -> nn.Module:
        """A smooth network that agrees with the model's decisions around the images."""
        x = self.x if self.train is None else torch.cat([self.x, self.train[0]])
        with own_randomness(self.seed, x.device):
            return distill(self.steady, x, classes=self.classes, eps=self.eps, seed=self.seed, **self.budget.student)

    @cached_property
    def quick(self) -> bool:
        """Is there a quicker and less exact float32 to craft in?"""
        return self.x.is_cuda

    @property
    def draws(self) -> int:
        """Passes per gradient of the attacks that are not about the noise."""
        return 8 if self.randomised else 1

    @property
    def masks(self) -> bool:
        """Does the model hold FSR with a mask?"""
        return bool(masked(self.model))

    def start(self, rows: Tensor, stream: int = 0) -> Tensor:
        """Each image's own uniform first perturbation, like x[rows]."""
        return uniform_start(self.x[rows], eps=self.eps, seed=self.seed, indices=rows.tolist(), stream=stream)

    def look(self, net: Net, loss: Loss) -> Look:
        """By backpropagation, averaged over some draws where the model is randomised."""
        return differentiated(of(net, loss), draws=self.draws)

    def climb(self, net: Net, loss: Loss, stream: int) -> Craft:
        """APGD on a loss of a net, from a random start."""
        return self.aimed(ascend, self.look(net, loss), stream, until_wrong=not self.randomised)

    def aimed(self, attack: Callable[..., Tensor], at, stream: int, **options) -> Craft:
        """attack(at, x, y, eps=, steps=, start=, **options) from a random start; `at` is a network or a look."""

        def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            settings = {"eps": self.eps, "steps": self.budget.steps, "start": self.start(rows, stream), **options}
            return attack(at, x, y, **settings)

        return craft

    def parts(self, chosen: Tensor) -> list[Tensor]:
        """The numbers of the chosen images, (N,) bool, batch by batch; an empty split would be one empty batch."""
        return [rows for rows in chosen.nonzero().squeeze(1).split(self.batch) if len(rows)]

    def sweep(self, attacks: Iterable[tuple[str, Craft]], *, together: bool) -> dict[str, Tensor]:
        """Name to (N,) bool, right on clean images and under the attack.

        together: each attack gets what the ones before left right, and its outcome includes theirs, so that it is not
        the attack's own; else every attack gets every image that is right when clean.
        """
        outcomes, alive = {}, self.clean
        for name, craft in attacks:
            correct = alive.clone()
            for rows in self.parts(correct):
                correct[rows] = self._kept(craft, rows)
            outcomes[name] = correct
            alive = correct if together else self.clean
            log.debug("audit: %s leaves %d of %d", name, int(correct.sum()), len(correct))
        return outcomes

    def _kept(self, craft: Craft, rows: Tensor) -> Tensor:
        """Which of these images are right after an attack, (M,) bool.

        Crafted in TensorFloat-32 where the GPU has it, judged without it. An attack may have stopped where only the
        quick network erred: there it goes on in exact float32.
        """
        with quick_float32():
            x_adv = craft(self.x[rows], self.y[rows], rows)
            fooled = ~self.judge.correct(x_adv, rows, exact=False) if self.quick else None
        kept = self.judge.correct(x_adv, rows)
        if fooled is not None and (again := kept & fooled).any():
            few = rows[again]
            kept[again] = self.judge.correct(craft(self.x[few], self.y[few], few), few)
        return kept


def private_copy(model: nn.Module) -> nn.Module:
    """The same network with float32 parameters that ask for no gradient; the caller's stays as it is."""
    try:
        return copy.deepcopy(model).float().requires_grad_(False)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UsageError(f"audit works on a copy of the model, and this one cannot be copied: {error}") from error


def prepare(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    seed: int,
    budget: Budget,
    batch: int,
    surrogate: nn.Module | None,
    train: tuple[Tensor, Tensor] | None,
) -> Case:
    """The case of an already private model in eval mode; x, y on its device."""
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    randomised = is_randomised(model, x[:64])
    judge = Judge(model, x, y, eps=eps, draws=budget.draws if randomised else 1, seed=seed)
    rows = torch.arange(len(x), device=x.device)
    clean = torch.cat([judge.correct(x[part], part) for part in rows.split(batch)])
    return Case(model, x, y, eps, seed, budget, judge, clean, classes, randomised, batch, surrogate, train)
