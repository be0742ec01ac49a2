"""What each method minimises and how it crafts its training images.

N images, K classes. Losses see logits only; modes, steps and records belong to the caller.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fsr.attacks.gradient import pgd
from fsr.config import Run
from fsr.models.insert import Classifier
from fsr.train.losses import (
    BETAS,
    ce,
    fsr_terms,
    kl,
    mart_loss,
    mart_parts,
    probe_terms,
    runner_up,
    trades_loss,
    trades_parts,
)

PAIRS = {"trades": trades_parts, "mart": mart_parts}  # methods that also look at the clean images
Outputs = tuple[Tensor, list[Tensor]]  # logits (N, K) and the probes' logits

__all__ = [
    "AWP",
    "Crafting",
    "Objective",
    "craft",
    "craft_loss",
    "craft_outputs",
    "crafting",
    "first_step",
    "fsr_terms",
    "kl",
    "mart_loss",
    "mart_parts",
    "probe_terms",
    "runner_up",
    "trades_loss",
    "trades_parts",
    "weights_of",
]


def weights_of(run: Run) -> dict[str, float]:
    """The weight of every loss part that a run can have."""
    beta = BETAS.get(run.method, 1.0) if run.beta is None else run.beta
    return {
        "cls": 1.0,
        "robust": beta,
        "sep": run.fsr.lambda_sep if run.fsr else 0.0,
        "rec": run.fsr.lambda_rec if run.fsr else 0.0,
        "probe": run.peer.weight if run.peer else 0.0,
    }


class Objective(nn.Module):
    """The whole training-mode computation of a run; DDP and compile wrap this module, because both look at `forward`.

    forward(x, x_adv, y): clean and adversarial images (N, C, H, W) in [0, 1] and labels (N,) to the unweighted loss
    parts, a dict of scalars, and the logits (N, K) of the pass that training sees (natural: the clean one). TRADES and
    MART run one clean pass, then one adversarial pass; module terms are those of the adversarial pass.
    """

    def __init__(self, model: Classifier, run: Run):
        super().__init__()
        self.model, self.method = model, run.method
        self.weights = weights_of(run)
        self.share = 1.0  # of several processes: what this one's mean counts for (see distributed.share)

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        clean = self.model.trace(x, y)[0] if self.method in PAIRS else None
        logits, streams = self.model.trace(x if self.method == "natural" else x_adv, y)
        parts = {"cls": ce(logits, y).mean()} if clean is None else PAIRS[self.method](clean, logits, y)
        return {**parts, **fsr_terms(logits, streams, y), **probe_terms(streams, y)}, logits

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum that is minimised."""
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()


@dataclass(frozen=True)
class Crafting:
    """How a method makes its training images, as data.

    start: uniform (in the eps ball), normal (0.001 times a standard normal draw), none (images stay clean); loss: ce or
    kl (from the clean logits of the same eval-mode network); probe: weight of the mean probe cross-entropy, 0 for none.
    """

    start: str
    loss: str = "ce"
    probe: float = 0.0


def crafting(run: Run) -> Crafting:
    """The crafting of a run's method and peer (CE + 2 * mean probe CE)."""
    probe = run.peer.weight if run.peer and run.peer.name != "fd" else 0.0
    if run.method == "natural":
        return Crafting(start="none")
    if run.method == "at":
        return Crafting(start="uniform", probe=probe)
    return Crafting(start="normal", loss="kl" if run.method == "trades" else "ce", probe=probe)


def draw_start(x: Tensor, run: Run, generator: torch.Generator | None = None) -> Tensor:
    """The random numbers of `first_step`, like x: normal or uniform in [0, 1), as crafting(run).start says."""
    draw = torch.randn if crafting(run).start == "normal" else torch.rand
    return draw(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def first_step(x: Tensor, run: Run, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
    """The first perturbation, like x. noise: uniform in [0, 1) or normal, as crafting(run).start says; else drawn."""
    if noise is None:
        noise = draw_start(x, run, generator)
    return 0.001 * noise if crafting(run).start == "normal" else run.eps * (2 * noise - 1)


def craft_loss(how: Crafting, y: Tensor, clean: Tensor | None) -> Callable[[Outputs], Tensor]:
    """What crafting climbs, (N,), from (logits, probe logits); clean: logits (N, K) of the clean images, for kl."""

    def loss(outputs: Outputs) -> Tensor:
        logits, probes = outputs
        value = ce(logits, y) if clean is None else kl(clean, logits)
        if how.probe:
            value = value + how.probe * torch.stack([ce(p, y) for p in probes]).mean(0)
        return value

    return loss


def craft_outputs(model: Classifier, how: Crafting) -> Callable[[Tensor], Outputs]:
    """Images to (logits, probe logits): what `craft_loss` reads; the probes only where the loss needs them."""

    def outputs(x: Tensor) -> Outputs:
        if not how.probe:
            return model(x), []
        logits, streams = model.trace(x)
        return logits, [s.aux["probe"] for s in streams]

    return outputs


def craft(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    run: Run,
    generator: torch.Generator | None = None,
    net: Classifier | None = None,
    start_noise: Tensor | None = None,
) -> Tensor:
    """The training images of a run's method, like x: PGD on its crafting loss; natural training gets x itself.

    x: (N, C, H, W) in [0, 1]; y: (N,) int64; the caller has put the model in eval mode. net: a faster copy of model to
    differentiate; start_noise: the start's draws in place of fresh ones from generator (see `first_step`).
    """
    how = crafting(run)
    if how.start == "none":
        return x
    outputs = craft_outputs(model if net is None else net, how)
    clean = None
    if how.loss == "kl":
        with torch.no_grad():
            clean = outputs(x)[0]
    loss = craft_loss(how, y, clean)
    start = first_step(x, run, generator, start_noise)
    # pgd only hands the network's outputs to the loss, so that any outputs will do; y is bound above.
    climb: Any = lambda out, _: loss(out)  # noqa: E731
    net_outputs: Any = outputs
    return pgd(net_outputs, x, y, eps=run.eps, alpha=run.alpha, steps=run.steps, start=start, loss=climb)


class AWP:
    """Adversarial weight perturbation (Wu et al. 2020, eq. 8): the gradient is taken at the worst nearby weights.

    objective: the bare Objective, not its DDP or compiled wrapper; gamma: the perturbation's size relative to each
    weight tensor's norm. Tensors with one dimension (biases, BatchNorm) stay, as in their code.
    """

    def __init__(self, objective: Objective, gamma: float):
        self.objective, self.gamma = objective, gamma

    def _directions(self, x: Tensor, x_adv: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights and their perturbations; running statistics are left as they were."""
        named = [p for p in self.objective.parameters() if p.requires_grad and p.ndim > 1]
        buffers = [(b, b.clone()) for b in self.objective.buffers()]
        with torch.enable_grad():
            total = self.objective.share * self.objective.total(self.objective(x, x_adv, y)[0])
            grads = torch.autograd.grad(total, named, allow_unused=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
            out: list[tuple[Tensor, Tensor]] = []
            for weight, grad in zip(named, grads):
                grad = torch.zeros_like(weight) if grad is None else grad
                if dist.is_available() and dist.is_initialized():  # replicas must move alike
                    dist.all_reduce(grad)
                out.append((weight, self.gamma * weight.norm() * grad / (grad.norm() + 1e-20)))
        return out

    @contextmanager
    def perturbed(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Iterator[None]:
        """Weights are perturbed inside the block, which takes gradient and step; then the perturbation is taken off."""
        moves = self._directions(x, x_adv, y)
        with torch.no_grad():
            for weight, move in moves:
                weight.add_(move)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, move in moves:
                    weight.sub_(move)
