"""The losses of every method and module, from logits alone.

N images, K classes; logits are (N, K), labels (N,) int64, losses batch means unless a line says per sample.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BETAS = {"trades": 6.0, "mart": 5.0}


def full_precision(logits: Tensor) -> Tensor:
    """float32 at least: under autocast and in bfloat16 copies the losses stay exact."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per sample, (N,); logits (N, K), y (N,)."""
    return F.cross_entropy(full_precision(logits), y, reduction="none")


def runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """Most probable wrong class, (N,) int64; logits (N, K), y (N,)."""
    return logits.scatter(1, y[:, None], float("-inf")).argmax(dim=1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) per sample, (N,) >= 0, from logits (N, K)."""
    log_p, log_q = full_precision(p_logits).log_softmax(1), full_precision(q_logits).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def trades_parts(clean: Tensor, adv: Tensor, y: Tensor) -> dict[str, Tensor]:
    """cls = CE(clean, y) and robust = KL(clean || adv), batch means (Zhang et al. 2019, eq. 5)."""
    return {"cls": ce(clean, y).mean(), "robust": kl(clean, adv).mean()}


def trades_loss(clean: Tensor, adv: Tensor, y: Tensor, *, beta: float = BETAS["trades"]) -> Tensor:
    """CE(clean, y) + beta * KL(clean || adv), a batch mean; clean, adv: logits (N, K)."""
    parts = trades_parts(clean, adv, y)
    return parts["cls"] + beta * parts["robust"]


def mart_parts(clean: Tensor, adv: Tensor, y: Tensor, *, log_eps: float = 1e-12) -> dict[str, Tensor]:
    """cls = boosted CE on adv, robust = KL(clean || adv) times 1 - p_clean[y], means (Wang et al. 2020, eq. 8-11).

    log_eps and the constants 1.0001 and 1.0000001 are those of their code, which bound both logarithms.
    """
    probabilities = full_precision(adv).softmax(1)
    wrong = probabilities.gather(1, runner_up(adv, y)[:, None]).squeeze(1)
    boosted = ce(adv, y) - torch.log(1.0001 - wrong + log_eps)
    log_clean = full_precision(clean).log_softmax(1)
    distance = (log_clean.exp() * (log_clean - torch.log(probabilities + log_eps))).sum(1)
    right = log_clean.exp().gather(1, y[:, None]).squeeze(1)
    return {"cls": boosted.mean(), "robust": (distance * (1.0000001 - right)).mean()}


def mart_loss(clean: Tensor, adv: Tensor, y: Tensor, *, beta: float = BETAS["mart"], log_eps: float = 1e-12) -> Tensor:
    """Boosted CE + beta * weighted KL, a batch mean; clean, adv: logits (N, K)."""
    parts = mart_parts(clean, adv, y, log_eps=log_eps)
    return parts["cls"] + beta * parts["robust"]


def fsr_terms(logits: Tensor, streams: Sequence[Any], y: Tensor) -> dict[str, Tensor]:
    """sep = CE(h(robust), y) + CE(h(nonrobust), y'), rec = CE(h(recalibrated), y): batch means, averaged over modules.

    logits: (N, K) of the same pass, whose most probable wrong class is y'; streams: as `trace` gives them. A term that
    no module has (peers, controls) is left out. As in the code of Kim et al. 2023; nothing is detached.
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
    """probe = CE of the peers' probes, a batch mean, averaged over modules; empty without a probe."""
    losses = [ce(s.aux["probe"], y).mean() for s in streams if "probe" in s.aux]
    return {"probe": torch.stack(losses).mean()} if losses else {}
