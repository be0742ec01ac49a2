"""The audited network as attacks see it, and what every group of attacks is given: images, budget, verdicts."""

import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsr.attacks import ATTACKS
from fsr.attacks.gradient import Net, is_wrong, project_linf, uniform_start
from fsr.attacks.inputs import clips, inward, own_randomness
from fsr.audit.ascent import Oracle, ascend
from fsr.files import UsageError
from fsr.hardware import exact_float32, quick_float32
from fsr.models.fsr import switched
from fsr.models.modes import copied

Craft = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, labels, their numbers (M,) -> x_adv

# What groups may spend; steps, passes and queries per image: `steps` of the audit's own ascents, `pgd_steps` of each
# of PGD's ten restarts, `noisy_steps` of attacks through noise; `draws` of a randomised network, per verdict, and per
# gradient of the attacks through noise; `queries` of Square; `pairs` of finite differences per step; options that cut
# AutoAttack and its version `rand` short; images of the binarization test, and attacks that are too slow for it.
FULL = {"steps": 100, "pgd_steps": 100, "targeted_steps": 50, "noisy_steps": 50, "estimated_steps": 40, "draws": 20}
FULL |= {"queries": 20_000, "pairs": 64, "binary": 50}
SHORT = {"steps": 40, "pgd_steps": 40, "targeted_steps": 20, "noisy_steps": 12, "estimated_steps": 20, "draws": 20}
SHORT |= {"queries": 1000, "pairs": 24, "binary": 8}
SLOW = ("autoattack", "autoattack-ci", "autoattack-rand", "nattack")
BUDGETS: dict[str, dict[str, Any]] = {
    "quick": {**SHORT, "autoattack": {"steps": 20, "queries": 300}, "rand": {"steps": 8}, "untested": SLOW},
    "full": {**FULL, "autoattack": {}, "rand": {}, "untested": ()},
}


def private_copy(model: nn.Module) -> nn.Module:
    """The same network, not compiled, with float32 parameters without gradients; UsageError where it has no copy."""
    try:
        return copied(getattr(model, "_orig_mod", model)).float().requires_grad_(False)
    except Exception as error:  # foreign code
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(
            f"the network cannot be copied ({text}); an audit needs one that copy.deepcopy takes"
        ) from None


class Attackable(nn.Module):
    """A model with finite float32 logits and a gradient, zero where it has none; -inf is one below the row's lowest."""

    def __init__(self, model: nn.Module, probe: Tensor, draws: int = 1):
        super().__init__()
        self.model, self.draws, self.differentiable, self.clips = model, draws, True, False
        leaf = probe[:1].detach().clone().requires_grad_()
        try:
            with torch.enable_grad():
                torch.autograd.grad(self._pass(leaf).sum(), leaf)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, NotImplementedError):
            self.differentiable = False
        self.clips = self.differentiable and clips(self._pass, probe)

    def _pass(self, x: Tensor) -> Tensor:
        images = inward(x) if self.clips and x.requires_grad else x.clone()
        images = images if self.differentiable else images.detach()
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient.nan_to_num(0, 0, 0))
        logits = self.model(images).float()
        off = torch.isneginf(logits)
        lowest = logits.detach().masked_fill(off, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(off, lowest - 1, logits) + 0 * x.flatten(1).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.draws == 1:
            return self._pass(x)  # else the logarithm of the mean softmax, up to a constant
        return torch.stack([self._pass(x).log_softmax(dim=1) for _ in range(self.draws)]).logsumexp(dim=0)


@torch.no_grad()
def differs(net: Net, other: Net, x: Tensor) -> bool:
    """Do two networks' logits on x differ by more than 1e-4 of a row's largest?"""
    first = net(x)
    scale = first.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    return bool((((other(x) - first) / scale).abs() > 1e-4).any())


@contextmanager
def watched(model: nn.Module, name: str, changed: list[str]) -> Iterator[None]:
    """Add to `changed` what is not as it was after the block: "name: hooks" and so on."""

    def seen() -> dict[str, object]:
        parts, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
        return {
            "train mode": [part.training for part in parts],
            "weights and buffers": [zlib.crc32(t.detach().cpu().contiguous().numpy().tobytes()) for t in tensors],
            "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
            "hooks": [[*p._forward_hooks, *p._forward_pre_hooks, *p._backward_hooks] for p in parts],
            "random state": (torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()),
        }

    before = seen()
    yield
    changed += [f"{name}: {what}" for what, value in seen().items() if value != before[what]]


@dataclass(kw_only=True)
class Context:
    """Images (N, C, H, W), labels, and what is known about the network before any attack; train: for latent heads."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    seed: int
    budget: dict[str, Any]
    batch: int = 250
    surrogate: nn.Module | None = None
    train: tuple[Tensor, Tensor] | None = None

    def __post_init__(self):
        self.reference = Attackable(self.model, self.x)  # whose verdict counts, one pass at a time
        with own_randomness(self.seed), torch.no_grad():
            self.classes = self.reference(self.x[:1]).shape[1]
            self.randomised = any(differs(self.reference, self.reference, self.x[:64]) for _ in range(4))
        self.net = Attackable(self.model, self.x, draws=8) if self.randomised else self.reference  # what attacks see
        rows = torch.arange(len(self.x), device=self.x.device)
        self.clean = torch.cat([self.correct(self.x[part], part) for part in rows.split(self.batch)])

    @torch.no_grad()
    def scores(self, x: Tensor, randomised: bool | None = None) -> Tensor:
        """Logits (N, K); of a randomised network the mean softmax over draws, the same for every attack."""
        with own_randomness(self.seed), exact_float32():
            draws = self.budget["draws"] if (self.randomised if randomised is None else randomised) else 0
            return sum(self.reference(x).softmax(dim=1) for _ in range(draws)) / draws if draws else self.reference(x)

    def correct(self, x_adv: Tensor, rows: Tensor, randomised: bool | None = None) -> Tensor:
        """Still right, (M,) bool; x_adv, of the images rows (M,), is first put into ball and [0, 1]."""
        clean = self.x[rows]
        x_adv = torch.where(torch.isfinite(x_adv), x_adv, clean).to(clean.dtype)
        return ~is_wrong(self.scores(project_linf(x_adv, clean, self.eps), randomised), self.y[rows])

    def named(self, name: str, **options) -> Craft:
        how = {"eps": self.eps, "seed": self.seed, **options}
        return lambda x, y, rows: ATTACKS[name](self.net, x, y, indices=rows.tolist(), **how)

    def climb(self, oracle: Oracle, stream: int, *, steps=None, stop=True, start=None, **switches) -> Craft:
        """The audit's own ascent, from a random start or the one given, while FSR's switches are set."""
        how = {"eps": self.eps, "steps": steps or self.budget["steps"], "stop": stop and not self.randomised}

        def craft(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            first = uniform_start(x, eps=self.eps, seed=self.seed, indices=rows.tolist(), stream=stream)
            with switched(self.reference, **switches):
                return ascend(oracle, x, y, start=first if start is None else start, **how)

        return craft

    def clean_rows(self) -> list[Tensor]:
        return [rows for rows in self.clean.nonzero().squeeze(1).split(self.batch) if len(rows)]

    def run(self, found: Iterable[tuple[str, Craft | str]]) -> dict[str, Tensor]:
        """Name to (N,) bool, right on clean images and under the attack; each attack gets what is right when clean."""
        outcomes = {}
        for name, craft in found:
            if isinstance(craft, str):
                continue
            outcomes[name] = self.clean.clone()
            for rows in self.clean_rows():
                x, y = self.x[rows], self.y[rows]
                with quick_float32(), torch.no_grad():
                    x_adv = craft(x, y, rows)
                    fooled = is_wrong(self.reference(x_adv), y)
                kept = self.correct(x_adv, rows)
                again = kept & fooled  # an attack may have stopped where only TensorFloat-32 errs: it goes on without
                if again.any() and not self.randomised:
                    kept[again] = self.correct(craft(x[again], y[again], rows[again]), rows[again])
                outcomes[name][rows] = kept
        return outcomes
