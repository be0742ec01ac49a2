"""What each method minimises and how it crafts its training images.

N images, K classes. Losses see logits only; modes, steps and records belong to the caller.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.attacks.gradient import pgd
from fsr.config import Run
from fsr.models import Classifier

BETAS = {"trades": 6.0, "mart": 5.0}
Net = Callable[[Tensor], Tensor]


def runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """Most probable wrong class, (N,) int64; logits (N, K), y (N,)."""
    return logits.scatter(1, y[:, None], float("-inf")).argmax(dim=1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) per sample, (N,) >= 0, from logits (N, K)."""
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def trades_parts(clean: Tensor, adv: Tensor, y: Tensor) -> dict[str, Tensor]:
    """cls = CE(clean, y) and robust = KL(clean || adv), batch means (Zhang et al. 2019, eq. 5)."""
    return {"cls": F.cross_entropy(clean, y), "robust": kl(clean, adv).mean()}


def trades_loss(clean: Tensor, adv: Tensor, y: Tensor, *, beta: float = BETAS["trades"]) -> Tensor:
    """CE(clean, y) + beta * KL(clean || adv), a batch mean; clean, adv: logits (N, K)."""
    parts = trades_parts(clean, adv, y)
    return parts["cls"] + beta * parts["robust"]


def mart_parts(clean: Tensor, adv: Tensor, y: Tensor, *, log_eps: float = 1e-12) -> dict[str, Tensor]:
    """cls = boosted CE on adv, robust = KL(clean || adv) times 1 - p_clean[y], means (Wang et al. 2020, eq. 8-11).

    log_eps and the constants 1.0001 and 1.0000001 are those of their code, which bound both logarithms.
    """
    probabilities = adv.softmax(1)
    wrong = probabilities.gather(1, runner_up(adv, y)[:, None]).squeeze(1)
    boosted = F.cross_entropy(adv, y, reduction="none") - torch.log(1.0001 - wrong + log_eps)
    log_clean = clean.log_softmax(1)
    distance = (log_clean.exp() * (log_clean - torch.log(probabilities + log_eps))).sum(1)
    right = log_clean.exp().gather(1, y[:, None]).squeeze(1)
    return {"cls": boosted.mean(), "robust": (distance * (1.0000001 - right)).mean()}


def mart_loss(clean: Tensor, adv: Tensor, y: Tensor, *, beta: float = BETAS["mart"], log_eps: float = 1e-12) -> Tensor:
    """Boosted CE + beta * weighted KL, a batch mean; clean, adv: logits (N, K)."""
    parts = mart_parts(clean, adv, y, log_eps=log_eps)
    return parts["cls"] + beta * parts["robust"]


def fsr_terms(logits: Tensor, streams: list, y: Tensor) -> dict[str, Tensor]:
    """sep = CE(h(robust), y) + CE(h(nonrobust), y'), rec = CE(h(recalibrated), y): batch means, averaged over modules.

    logits: (N, K) of the same pass, whose most probable wrong class is y'; streams: as `trace` gives them. A term that
    no module has (peers, controls) is left out. Kim et al. 2023, eq. 4 and 6; nothing is detached, as in their code.
    """
    wrong = runner_up(logits, y)
    targets = {"robust": ("sep", y), "nonrobust": ("sep", wrong), "recalibrated": ("rec", y)}
    terms: dict[str, Tensor] = {}
    modules = [s.aux for s in streams if targets.keys() & s.aux.keys()]
    for aux in modules:
        for stream, (term, labels) in targets.items():
            if stream in aux:
                value = F.cross_entropy(aux[stream], labels) / len(modules)
                terms[term] = terms[term] + value if term in terms else value
    return terms


def probe_terms(streams: list, y: Tensor) -> dict[str, Tensor]:
    """probe = CE of the peers' probes, a batch mean, averaged over modules; empty without a probe."""
    losses = [F.cross_entropy(s.aux["probe"], y) for s in streams if "probe" in s.aux]
    return {"probe": torch.stack(losses).mean()} if losses else {}


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
    MART run one clean pass, then one adversarial pass; module terms are those of the adversarial pass (spec 1.8).
    """

    def __init__(self, model: Classifier, run: Run):
        super().__init__()
        self.model, self.method = model, run.method
        self.weights = weights_of(run)

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        clean = None
        if self.method in ("trades", "mart"):
            clean = self.model.trace(x, y)[0]
        logits, streams = self.model.trace(x if self.method == "natural" else x_adv, y)
        if self.method == "trades":
            parts = trades_parts(clean, logits, y)
        elif self.method == "mart":
            parts = mart_parts(clean, logits, y)
        else:
            parts = {"cls": F.cross_entropy(logits, y)}
        return {**parts, **fsr_terms(logits, streams, y), **probe_terms(streams, y)}, logits

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum that is minimised."""
        return sum(self.weights[name] * part for name, part in parts.items())


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
    """The crafting of a run's method (spec section 2) and peer (spec section 4: CE + 2 * mean probe CE)."""
    probe = run.peer.weight if run.peer and run.peer.name != "fd" else 0.0
    if run.method == "natural":
        return Crafting(start="none")
    if run.method == "at":
        return Crafting(start="uniform", probe=probe)
    return Crafting(start="normal", loss="kl" if run.method == "trades" else "ce", probe=probe)


def first_step(x: Tensor, run: Run, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
    """The first perturbation, like x. noise: uniform in [0, 1) or normal, as crafting(run).start says; else drawn."""
    if crafting(run).start == "normal":
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return 0.001 * noise
    if noise is None:
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return run.eps * (2 * noise - 1)


def craft_loss(how: Crafting, y: Tensor, clean: Tensor | None) -> Callable[[tuple[Tensor, list[Tensor]]], Tensor]:
    """What crafting climbs, (N,), from (logits, probe logits); clean: logits (N, K) of the clean images, for kl."""

    def loss(outputs: tuple[Tensor, list[Tensor]]) -> Tensor:
        logits, probes = outputs
        value = kl(clean, logits) if how.loss == "kl" else F.cross_entropy(logits, y, reduction="none")
        if how.probe:
            value = value + how.probe * sum(F.cross_entropy(p, y, reduction="none") for p in probes) / len(probes)
        return value

    return loss


def craft_outputs(model: Classifier, how: Crafting) -> Callable[[Tensor], tuple[Tensor, list[Tensor]]]:
    """Images to (logits, probe logits): what `craft_loss` reads; the probes only where the loss needs them."""

    def outputs(x: Tensor) -> tuple[Tensor, list[Tensor]]:
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
    net: nn.Module | None = None,
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
    return pgd(outputs, x, y, eps=run.eps, alpha=run.alpha, steps=run.steps, start=start, loss=lambda out, _: loss(out))


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
            total = self.objective.total(self.objective(x, x_adv, y)[0])
            grads = torch.autograd.grad(total, named, allow_unused=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
            out = []
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
