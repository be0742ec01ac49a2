"""The adaptive audit: is a classifier's robustness real, or does it only look so to the attacks it was shown?

`audit` runs groups of attacks on any classifier and reports, per image, what still holds: under the authors' protocol,
under each group, under everything. A defence that hides its gradients looks robust in the first and
not in the last.
"""

import logging
import time
import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fsr.attacks.inputs import check_images
from fsr.audit import separated, whitebox
from fsr.audit.case import BUDGETS, Case, prepare, private_copy
from fsr.audit.indicators import indicators
from fsr.audit.judge import own_randomness
from fsr.audit.result import Audit, Findings, assemble
from fsr.files import UsageError
from fsr.hardware import exact_float32
from fsr.models.modes import eval_mode

__all__ = ["BUDGETS", "GROUPS", "Audit", "Findings", "audit"]

log = logging.getLogger("fsr")

PROTOCOL = "protocol"

# T9's numbers: 1 autoattack, 2 bpda, 3 mask, 4 latent, 5 transfer, 6 restarts, 7 noise, 8 queries, 9 indicators;
# protocol and unmasked are for any model: what the authors' columns say, and what hidden gradients hide
GROUPS: dict[str, Callable[[Case], Findings]] = {
    PROTOCOL: whitebox.protocol,
    "autoattack": whitebox.autoattack,
    "bpda": separated.bpda,
    "mask": separated.mask,
    "latent": separated.latent,
    "transfer": separated.transfer,
    "restarts": whitebox.restarts,
    "noise": separated.noise,
    "queries": whitebox.queries,
    "unmasked": whitebox.unmasked,
    "indicators": indicators,
}


def _checked(model, x, y, eps, budget) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"audit takes an nn.Module that maps images to logits, not {type(model).__name__}")
    check_images(x, y)
    if not isinstance(eps, int | float) or not 0 < eps <= 1:
        raise UsageError(f"eps must lie in (0, 1], in pixels of [0, 1] such as 8/255, not {eps!r}")
    if budget not in BUDGETS:
        raise UsageError(f"budget is {budget!r}; choose one of {', '.join(BUDGETS)}")


def _check_logits(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Does the model give (N, K) logits, and are the labels among its K classes?"""
    with torch.no_grad():
        logits = model(x[:2])
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x[:2]) or logits.shape[1] < 2:
        raise UsageError("the model must give logits (N, K), K at least 2, and nothing else")
    check_images(x, y, logits.shape[1])


def _finished(done: Mapping[str, dict], images: int) -> dict[str, Findings]:
    """The groups of an earlier call; those of another number of images are refused."""
    found = {name: Findings.from_plain(record) for name, record in done.items() if name in GROUPS}
    if any(f.correct is not None and len(f.correct) != images for f in found.values()):
        raise UsageError(f"the finished groups are not about {images} images; leave out done=")
    return found


def _moved(pair: tuple[Tensor, Tensor] | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
    if pair is None:
        return None
    check_images(*pair)
    return pair[0].float().to(device), pair[1].to(device)


def _timed(name: str, case: Case, device: torch.device) -> Findings:
    """One group, from its own seed, so that a resumed audit goes on as the first would have."""
    began = time.monotonic()
    with own_randomness(case.seed + zlib.crc32(name.encode()), device):
        found = GROUPS[name](case)
    found.seconds = time.monotonic() - began
    log.info("audit: %s in %.1f s", name, found.seconds)
    return found


def audit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float = 8 / 255,
    budget: str = "quick",
    seed: int = 0,
    *,
    surrogate: nn.Module | None = None,
    train: tuple[Tensor, Tensor] | None = None,
    batch: int | None = None,
    on_group: Callable[[str, dict], None] | None = None,
    done: Mapping[str, dict] | None = None,
) -> Audit:
    """Attack a classifier in every way known here (GROUPS) and say which images still hold.

    model: any nn.Module from images to logits (N, K), in any mode: a copy in eval mode and float32 is attacked, the
    model, its gradients and the random state stay as they are. x: (N, C, H, W) in [0, 1]; y: (N,) int64; eps: L-inf
    radius in pixels of [0, 1]. budget: quick (a minute for 100 small images) or full. surrogate: another trained
    network to transfer from, the plain AT twin of an FSR network. train: images and labels that heads and student may
    learn from; the audited images serve where there are none. on_group(name, record): called after each group with a
    plain dict; done: such records by name, not computed again. Raises UsageError for what cannot be audited.
    """
    _checked(model, x, y, eps, budget)
    found = _finished(done or {}, len(x))
    net = private_copy(model)
    device = next((p.device for p in [*net.parameters(), *net.buffers()]), x.device)
    helper = None if surrogate is None else private_copy(surrogate).to(device).eval()
    with eval_mode(net), own_randomness(seed, device), exact_float32():
        x, y = x.detach().float().contiguous().to(device), y.to(device)
        _check_logits(net, x, y)
        case = prepare(
            net,
            x,
            y,
            eps=float(eps),
            seed=seed,
            budget=BUDGETS[budget],
            surrogate=helper,
            batch=batch or (1000 if device.type == "cuda" else 250),
            train=_moved(train, device),
        )
        for name in GROUPS:
            if name not in found:
                found[name] = _timed(name, case, device)
                if on_group is not None:
                    on_group(name, found[name].plain())
    return assemble(case.clean, found, protocol=PROTOCOL, randomised=case.randomised, budget=budget)
