"""The adaptive audit: is a classifier's robustness real, or does it only look so to the attacks it was shown?

`audit` runs groups of attacks on any classifier and reports, per image, what still holds: under the authors' protocol,
under each group, under everything. A defence that hides its gradients looks robust in the first and not in the last.
"""

import logging
import time
import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fsr.attacks.components import own_randomness
from fsr.attacks.inputs import check_images
from fsr.audit import groups
from fsr.audit.binarization import binarization_test
from fsr.audit.context import BUDGETS, Budget, Context, GroupResult
from fsr.audit.indicators import cheap_checks, indicators
from fsr.audit.network import Attackable, changed, fingerprint, private_copy
from fsr.audit.result import Audit, assemble
from fsr.files import UsageError
from fsr.hardware import exact_float32
from fsr.models.modes import eval_mode

log = logging.getLogger("fsr")

# a group: (network, context) to what each of its attacks left right; in the order and with the numbers of T9
GROUPS: dict[str, Callable[[Attackable, Context], GroupResult]] = {
    "protocol": groups.protocol,
    "autoattack": groups.autoattack,
    "bpda": groups.bpda,
    "mask": groups.mask,
    "latent": groups.latent,
    "transfer": groups.transfer,
    "restarts": groups.restarts,
    "noise": groups.noise,
    "queries": groups.queries,
    "indicators": indicators,
    "binarization": groups.binarization,
}


def _check(model, x, y, eps, budget) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"audit takes an nn.Module that maps images to logits, not {type(model).__name__}")
    check_images(x, y)
    if not isinstance(eps, int | float) or not 0 < eps <= 1:
        raise UsageError(f"eps must lie in (0, 1], in pixels of [0, 1] such as 8/255, not {eps!r}")
    if budget not in BUDGETS:
        raise UsageError(f"budget is {budget!r}; choose one of {', '.join(BUDGETS)}")


def _check_logits(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        logits = model(x[:2].clone())
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x[:2]) or logits.shape[1] < 2:
        raise UsageError("the model must give logits (N, K), K at least 2, and nothing else")
    check_images(x, y, logits.shape[1])


def _done(records: Mapping[str, dict], images: int) -> dict[str, GroupResult]:
    """The groups of an earlier call; those of another number of images are refused."""
    results = {name: GroupResult(**record) for name, record in records.items() if name in GROUPS}
    for result in results.values():
        result.attacks = {name: torch.tensor(kept) for name, kept in result.attacks.items()}
    if any(len(outcome) != images for result in results.values() for outcome in result.attacks.values()):
        raise UsageError(f"the finished groups are not about {images} images; leave out done=")
    return results


def _run(name: str, net: Attackable, context: Context) -> GroupResult:
    """One group, from its own seed, so that a resumed audit goes on as the first would have."""
    began, before = time.monotonic(), fingerprint(net)
    with own_randomness(context.seed + zlib.crc32(name.encode())):
        result = GROUPS[name](net, context)
    if left := changed(before, net):
        result.details["changed"] = result.details.get("changed", []) + [f"{name}: {what}" for what in left]
    result.seconds = time.monotonic() - began
    log.info("audit: %s in %.1f s", name, result.seconds)
    return result


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

    model: any nn.Module from images to logits (N, K), of which a copy in eval mode and float32 is attacked.
    x: (N, C, H, W) in [0, 1]; y: (N,) int64; eps: L-inf radius in pixels of [0, 1]. budget: quick (a minute for 100
    small images) or full. surrogate: another trained network to transfer from. train: images and labels for latent
    heads, by default the audited ones. on_group(name, record): called after each group with a plain dict; done: such
    records by name, not computed again. UsageError for what cannot be audited.
    """
    _check(model, x, y, eps, budget)
    results, copy = _done(done or {}, len(x)), private_copy(model)
    device = next((t.device for t in [*copy.parameters(), *copy.buffers()]), x.device)
    x, y = x.detach().float().contiguous().to(device), y.to(device)
    other = None if surrogate is None else private_copy(surrogate).to(device).eval()
    with eval_mode(copy), own_randomness(seed), exact_float32():
        _check_logits(copy, x, y)
        context = Context(
            reference=Attackable(copy, x[:1]),
            x=x,
            y=y,
            eps=float(eps),
            seed=seed,
            budget=BUDGETS[budget],
            batch=batch or (1000 if device.type == "cuda" else 250),
            surrogate=None if other is None else Attackable(other, x[:1]),
            train=None if train is None else (train[0].float().to(device), train[1].to(device)),
        )
        net = Attackable(copy, x[:1], draws=8) if context.randomised else context.reference
        for name in GROUPS:
            if name not in results:
                results[name] = _run(name, net, context)
                if on_group is not None:
                    on_group(name, results[name].plain())
        seen = cheap_checks(model, context)
    return assemble(context, results, seen, budget)
