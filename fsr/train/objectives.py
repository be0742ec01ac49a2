"""What each method minimises and how it crafts its training images.

N images, C channels, K classes; logits are (N, K), labels (N,) int64, losses batch means unless a line says per sample.
Losses see logits only; modes, optimiser steps and records belong to the caller.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.attacks.gradient import project_linf
from fsr.config import Run
from fsr.models.insert import Classifier

BETAS = {"trades": 6.0, "mart": 5.0}


def full_precision(logits: Tensor) -> Tensor:
    """float32 at least: under autocast and in bfloat16 copies the losses stay exact."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per sample, (N,)."""
    return F.cross_entropy(full_precision(logits), y, reduction="none")


def runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """Most probable wrong class, (N,) int64."""
    return logits.scatter(1, y[:, None], float("-inf")).argmax(dim=1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) per sample, (N,) >= 0."""
    log_p, log_q = full_precision(p_logits).log_softmax(1), full_precision(q_logits).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def trades_parts(clean: Tensor, adv: Tensor, y: Tensor) -> dict[str, Tensor]:
    """cls = CE(clean, y) and robust = KL(clean || adv) (Zhang et al. 2019, eq. 5); clean, adv: logits."""
    return {"cls": ce(clean, y).mean(), "robust": kl(clean, adv).mean()}


def mart_parts(clean: Tensor, adv: Tensor, y: Tensor, *, log_eps: float = 1e-12) -> dict[str, Tensor]:
    """cls = boosted CE on adv, robust = KL(clean || adv) times 1 - p_clean[y] (Wang et al. 2020, eq. 8-11).

    log_eps and the constants 1.0001 and 1.0000001 are those of their code, which bound both logarithms.
    """
    probabilities = full_precision(adv).softmax(1)
    wrong = probabilities.gather(1, runner_up(adv, y)[:, None]).squeeze(1)
    boosted = ce(adv, y) - torch.log(1.0001 - wrong + log_eps)
    log_clean = full_precision(clean).log_softmax(1)
    distance = (log_clean.exp() * (log_clean - torch.log(probabilities + log_eps))).sum(1)
    correct = log_clean.exp().gather(1, y[:, None]).squeeze(1)
    return {"cls": boosted.mean(), "robust": (distance * (1.0000001 - correct)).mean()}


PAIRS = {"trades": trades_parts, "mart": mart_parts}  # methods that also look at the clean images


def fsr_terms(logits: Tensor, streams: Sequence[Any], y: Tensor) -> dict[str, Tensor]:
    """sep = CE(h(robust), y) + CE(h(nonrobust), y'), rec = CE(h(recalibrated), y), averaged over modules.

    logits: of the same pass, whose most probable wrong class is y'; streams: as `trace` gives them. A term that no
    module has is left out. As in the code of Kim et al. 2023; nothing is detached.
    """
    wrong = runner_up(logits, y)
    targets = {"robust": ("sep", y), "nonrobust": ("sep", wrong), "recalibrated": ("rec", y)}
    terms: dict[str, Tensor] = {}
    modules = [s.aux for s in streams if targets.keys() & s.aux.keys()]
    for aux in modules:
        for stream, (term, labels) in targets.items():
            if stream in aux:
                value = ce(aux[stream], labels).mean() / len(modules)
                terms[term] = terms[term] + value if term in terms else value
    return terms


def probe_terms(streams: Sequence[Any], y: Tensor) -> dict[str, Tensor]:
    """probe = CE of the probes (Bai et al. 2021, Yan et al. 2021), averaged over modules; empty without a probe."""
    losses = [ce(s.aux["probe"], y).mean() for s in streams if "probe" in s.aux]
    return {"probe": torch.stack(losses).mean()} if losses else {}


class Objective(nn.Module):
    """The whole training-mode computation of a run; DDP and compile wrap this module, because both look at `forward`.

    forward(x, x_adv, y): clean and adversarial images (N, C, H, W) in [0, 1] and labels to the unweighted loss parts
    and the logits of the pass that training sees. TRADES and MART run a clean pass, then an adversarial one.
    """

    def __init__(self, model: Classifier, run: Run):
        super().__init__()
        self.model, self.method = model, run.method
        self.weights = {
            "cls": 1.0,
            "robust": BETAS.get(run.method, 1.0) if run.beta is None else run.beta,
            "sep": run.fsr.lambda_sep if run.fsr else 0.0,
            "rec": run.fsr.lambda_rec if run.fsr else 0.0,
            "probe": run.peer.weight if run.peer else 0.0,
        }
        self.share = 1.0  # of several processes: what this one's mean counts for (see distributed.share)

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # clones, here and below: a network may write into its input
        clean = self.model.trace(x.clone(), y)[0] if self.method in PAIRS else None
        logits, streams = self.model.trace((x if self.method == "natural" else x_adv).clone(), y)
        parts = {"cls": ce(logits, y).mean()} if clean is None else PAIRS[self.method](clean, logits, y)
        return {**parts, **fsr_terms(logits, streams, y), **probe_terms(streams, y)}, logits

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum that is minimised."""
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()


def draw_start(x: Tensor, run: Run, generator: torch.Generator | None = None) -> Tensor:
    """The random numbers of `start`, like x: standard normal for TRADES and MART, uniform in [0, 1) otherwise."""
    draw = torch.randn if run.method in PAIRS else torch.rand
    return draw(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def start(x: Tensor, run: Run, noise: Tensor) -> Tensor:
    """Where crafting starts, like x: 0.001 times the normal noise away, or (uniform noise) anywhere in the eps ball."""
    away = 0.001 * noise if run.method in PAIRS else run.eps * (2 * noise - 1)
    return project_linf(x + away, x, run.eps)


def crafting_loss(net: Any, run: Run, x: Tensor, y: Tensor, clean: Tensor | None = None) -> Tensor:
    """What crafting climbs on net, per sample (N,): CE, for TRADES KL from the clean logits, plus the probes' CE.

    clean: logits of the clean images, for TRADES alone. Natural runs are attacked as plain AT attacks.
    """
    weight = run.peer.weight if run.peer and run.peer.name != "fd" and run.method != "natural" else 0.0
    logits, streams = net.trace(x.clone()) if weight else (net(x.clone()), [])
    value = ce(logits, y) if clean is None else kl(clean, logits)
    return value + weight * torch.stack([ce(s.aux["probe"], y) for s in streams]).mean(0) if weight else value


def pgd_step(net: Any, run: Run, x_adv: Tensor, x: Tensor, y: Tensor, clean: Tensor | None = None) -> Tensor:
    """One projected sign step of alpha on the crafting loss, like x (Madry et al. 2018)."""
    with torch.enable_grad():
        leaf = x_adv.detach().requires_grad_()
        gradient = torch.autograd.grad(crafting_loss(net, run, leaf, y, clean).sum(), leaf)[0]
    return project_linf(x_adv + run.alpha * gradient.sign(), x, run.eps)


@torch.no_grad()
def craft(net: Any, run: Run, x_adv: Tensor, x: Tensor, y: Tensor, *, step=None, steps: int | None = None) -> Tensor:
    """The run's adversarial images, like x, from `start` on: PGD on net, which the caller has put in eval mode.

    x: (N, C, H, W) in [0, 1]; step: a faster `pgd_step` of (x_adv, x, y[, clean]); steps: instead of the run's.
    """
    clean = (net(x.clone()),) if run.method == "trades" else ()
    step = partial(pgd_step, net, run) if step is None else step
    for _ in range(run.steps if steps is None else steps):
        x_adv = step(x_adv, x, y, *clean)
    return x_adv


def _perturbations(objective: Objective, gamma: float, x: Tensor, x_adv: Tensor, y: Tensor) -> list:
    """Weights with more than one dimension and their perturbations; running statistics are left as they were."""
    weights = [p for p in objective.parameters() if p.requires_grad and p.ndim > 1]
    buffers = [(b, b.clone()) for b in objective.buffers()]
    with torch.enable_grad():
        total = objective.share * objective.total(objective(x, x_adv, y)[0])
        grads = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
        for grad in grads:
            if dist.is_available() and dist.is_initialized():  # replicas must move alike
                dist.all_reduce(grad)
        return [(w, gamma * w.norm() * grad / (grad.norm() + 1e-20)) for w, grad in zip(weights, grads)]


@contextmanager
def perturbed_weights(objective: Objective, gamma: float, x: Tensor, x_adv: Tensor, y: Tensor) -> Iterator[None]:
    """AWP: inside, each weight tensor is moved by gamma of its norm along the loss's gradient (Wu et al. 2020, eq. 8).

    objective: the bare Objective. Tensors with one dimension (biases, BatchNorm) stay, as in their code.
    """
    moves = _perturbations(objective, gamma, x, x_adv, y)
    with torch.no_grad():
        for weight, move in moves:
            weight.add_(move)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, move in moves:
                weight.sub_(move)
