"""What each method minimises, how it crafts its images, and one optimiser step; losses are means over a batch."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fsr.attacks.gradient import project_linf
from fsr.config import PEERS, Run
from fsr.files import sha256
from fsr.models.build import Classifier
from fsr.train import distributed
from fsr.train.fold import dtype_of

BETAS = {"trades": 6.0, "mart": 5.0}


def full_precision(logits: Tensor) -> Tensor:
    """float32 at least: under autocast and in bfloat16 copies the losses stay exact."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


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


def mart_parts(clean: Tensor, adv: Tensor, y: Tensor) -> dict[str, Tensor]:
    """cls = boosted CE on adv, robust = KL(clean || adv) (1 - p_clean[y]) (Wang et al. 2020, eq. 8-11, their code)."""
    probabilities = full_precision(adv).softmax(1)
    wrong = probabilities.gather(1, runner_up(adv, y)[:, None]).squeeze(1)
    boosted = ce(adv, y) - torch.log(1.0001 - wrong + 1e-12)
    log_clean = full_precision(clean).log_softmax(1)
    distance = (log_clean.exp() * (log_clean - torch.log(probabilities + 1e-12))).sum(1)
    correct = log_clean.exp().gather(1, y[:, None]).squeeze(1)
    return {"cls": boosted.mean(), "robust": (distance * (1.0000001 - correct)).mean()}


PAIRS = {"trades": trades_parts, "mart": mart_parts}  # methods that also look at the clean images


def fsr_terms(logits: Tensor, streams: Sequence[Any], y: Tensor) -> dict[str, Tensor]:
    """sep = CE(h(robust), y) + CE(h(nonrobust), y'), rec = CE(h(recalibrated), y), averaged over modules.

    y': the logits' most probable wrong class. As in the code of Kim et al. 2023; nothing is detached.
    """
    targets = {"robust": ("sep", y), "nonrobust": ("sep", runner_up(logits, y)), "recalibrated": ("rec", y)}
    modules = [s.aux for s in streams if targets.keys() & s.aux.keys()]
    terms: dict[str, Tensor] = {}
    for aux in modules:
        for stream, (term, labels) in targets.items():
            if stream in aux:
                terms[term] = terms.get(term, 0) + ce(aux[stream], labels).mean() / len(modules)
    return terms


class Objective(nn.Module):
    """A run's training pass, for DDP and compile: (x, x_adv, y) to unweighted loss parts and logits."""

    def __init__(self, model: Classifier, run: Run):
        super().__init__()
        self.model, self.method = model, run.method
        beta = BETAS.get(run.method, 1.0) if run.beta is None else run.beta
        sep, rec = (run.fsr.lambda_sep, run.fsr.lambda_rec) if run.fsr else (0.0, 0.0)
        probe = run.peer.weight if run.peer else 0.0
        self.weights = {"cls": 1.0, "robust": beta, "sep": sep, "rec": rec, "probe": probe}
        self.share = 1.0  # of several processes: what this one's mean counts for

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # clones, here and below: a network may write into its input
        clean = self.model.trace(x.clone(), y)[0] if self.method in PAIRS else None
        logits, streams = self.model.trace((x if self.method == "natural" else x_adv).clone(), y)
        parts = {"cls": ce(logits, y).mean()} if clean is None else PAIRS[self.method](clean, logits, y)
        parts |= fsr_terms(logits, streams, y)
        probes = [ce(s.aux["probe"], y).mean() for s in streams if "probe" in s.aux]  # Bai et al. 2021, Yan et al. 2021
        return parts | ({"probe": torch.stack(probes).mean()} if probes else {}), logits

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()


def draw_start(x: Tensor, run: Run, generator: torch.Generator | None = None) -> Tensor:
    """The random numbers of `start`, like x: standard normal for TRADES and MART, uniform in [0, 1) otherwise."""
    draw = torch.randn if run.method in PAIRS else torch.rand
    return draw(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def start(x: Tensor, run: Run, noise: Tensor) -> Tensor:
    """Where crafting starts, like x: 0.001 times the normal noise away, or (uniform noise) anywhere in the eps ball."""
    away = 0.001 * noise if run.method in PAIRS else run.eps * (2 * noise - 1)
    return project_linf(x + away, x, run.eps)


def pgd_step(net: Any, run: Run, x_adv: Tensor, x: Tensor, y: Tensor, clean: Tensor | None = None) -> Tensor:
    """One sign step of alpha up CE (for TRADES, KL from the clean logits); CAS and CIFS add their probes' CE."""
    weight = run.peer.weight if run.peer and PEERS[run.peer.name].probe and run.method != "natural" else 0.0
    with torch.enable_grad():
        leaf = x_adv.detach().requires_grad_()
        logits, streams = net.trace(leaf.clone()) if weight else (net(leaf.clone()), [])
        value = ce(logits, y) if clean is None else kl(clean, logits)
        if weight:
            value = value + weight * torch.stack([ce(s.aux["probe"], y) for s in streams]).mean(0)
        gradient = torch.autograd.grad(value.sum(), leaf)[0]
    return project_linf(x_adv + run.alpha * gradient.sign(), x, run.eps)


@torch.no_grad()
def craft(net: Any, run: Run, x_adv: Tensor, x: Tensor, y: Tensor, *, step=None, steps: int | None = None) -> Tensor:
    """The run's adversarial images from `start` on: PGD on net in eval mode; step: a faster `pgd_step`."""
    clean = (net(x.clone()),) if run.method == "trades" else ()
    step = partial(pgd_step, net, run) if step is None else step
    for _ in range(run.steps if steps is None else steps):
        x_adv = step(x_adv, x, y, *clean)
    return x_adv


@contextmanager
def perturbed_weights(objective: Objective, gamma: float, x: Tensor, x_adv: Tensor, y: Tensor) -> Iterator[None]:
    """AWP: inside, each weight matrix is moved by gamma of its norm up the loss (Wu et al. 2020, eq. 8)."""
    weights: list[Tensor] = [p for p in objective.parameters() if p.requires_grad and p.ndim > 1]
    buffers = [(b, b.clone()) for b in objective.buffers()]
    total = objective.share * objective.total(objective(x, x_adv, y)[0])
    grads = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
        grads = tuple(distributed.gathered(grad).sum(0) for grad in grads)  # replicas must move alike
        moves: list[Tensor] = [gamma * w.norm() * grad / (grad.norm() + 1e-20) for w, grad in zip(weights, grads)]
        torch._foreach_add_(weights, moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)


def stream_seed(*parts) -> int:
    """63 bits that are a function of (seed, purpose, step) alone: a resumed run needs no random state to be kept."""
    return int(sha256("/".join(map(str, parts)).encode())[:16], 16) >> 1


def learning_rate(run: Run, epoch: int) -> float:
    """x0.1 from epoch ceil(0.75 E) and x0.01 from ceil(0.9 E), epochs counted from 1 (authors' code: 75, 90 of 100)."""
    late, last = (epoch >= math.ceil(share * run.epochs) for share in (0.75, 0.9))
    return run.lr * (0.01 if last else 0.1 if late else 1)


class Stepper:
    """The authors' SGD on an Objective, a step at a time, over all processes; sums stay on the device until `tally`."""

    def __init__(self, objective: Objective, run: Run, device="cpu"):
        self.bare, self.run, self.device = objective, run, torch.device(device)
        self.objective = DistributedDataParallel(objective) if distributed.size() > 1 else objective
        how: dict[str, Any] = {"fused" if self.device.type == "cuda" else "foreach": True, "momentum": run.momentum}
        self.optimizer = torch.optim.SGD(self.bare.parameters(), run.lr, weight_decay=run.weight_decay, **how)
        self.autocast = dtype_of(run.precision, self.bare, self.device) == torch.bfloat16
        self.sums: dict[str, Tensor] = {}  # of the epoch so far, for a resumed run too; empty before its first step

    def step(self, x: Tensor, x_adv: Tensor, y: Tensor, awp: bool = False) -> None:
        """One update on a batch: images (N, C, H, W) in [0, 1], labels (N,); awp: at perturbed weights."""
        perturb = awp and self.run.awp > 0  # moves weights in place, which autocast's cache of them would not see
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=not perturb)
        with autocast, perturbed_weights(self.bare, self.run.awp, x, x_adv, y) if perturb else nullcontext():
            parts, logits = self.objective(x, x_adv, y)
            total = self.bare.total(parts)
            self.optimizer.zero_grad(set_to_none=True)  # of whatever a caller left there
            (total * self.bare.share).backward()
            self.optimizer.step()
        sums = {name: part.detach().double() * len(y) for name, part in (parts | {"total": total}).items()}
        sums |= {"adv_acc": (logits.argmax(1) == y).sum().double(), "images": torch.full_like(sums["total"], len(y))}
        self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}

    def merge_sums(self) -> None:
        """Make the sums those of all processes; to be tallied or saved by rank 0, then not used again."""
        self.sums = {name: distributed.gathered(value).sum(0) for name, value in self.sums.items()}

    def tally(self) -> dict[str, float]:
        """Means over the epoch's images of every loss part, their total and adv_acc; waits for the device."""
        self.merge_sums()
        sums, self.sums = self.sums, {}
        return {name: float(value / sums["images"]) for name, value in sums.items() if name != "images"}


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, run: Run, step: int) -> None:
    """ema = d ema + (1 - d) model at step t from 0, d = min(ema_decay, (1 + t) / (10 + t)); counters are copied."""
    decay = min(run.ema_decay, (1 + step) / (10 + step))
    pairs = list(zip(*([*net.parameters(), *net.buffers()] for net in (ema, model)), strict=True))
    averages, live = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
    torch._foreach_lerp_(averages, live, 1 - decay)
    for average, tensor in pairs:
        if not average.is_floating_point():
            average.copy_(tensor)
