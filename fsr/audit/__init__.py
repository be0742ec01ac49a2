"""The adaptive audit: is a classifier's robustness real, or does it only look so to the attacks it was shown?

`audit` runs groups of attacks on any classifier and reports, per image, what still holds: under the authors' protocol,
under each group, under everything. A defence that hides its gradients looks robust in the first and not in the last.
"""

import logging
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsr.attacks.inputs import check_eps, check_images, own_randomness
from fsr.audit.binarization import binarization_test
from fsr.audit.context import BUDGETS, Attackable, Context, private_copy, watched
from fsr.audit.groups import GROUPS
from fsr.audit.indicators import cheap_checks
from fsr.files import UsageError
from fsr.hardware import exact_float32
from fsr.models.modes import eval_mode

log = logging.getLogger("fsr")


@dataclass(frozen=True)
class Audit:
    """Is the robustness real?  All tensors are (N,) bool on the CPU, in the order of the images: still right."""

    clean: Tensor
    authors_protocol: Tensor  # clean, FGSM, PGD-20, PGD-100 and C&W without restarts
    worst_case: Tensor  # under everything
    columns: dict[str, Tensor]  # the parts of the authors' protocol
    groups: dict[str, Tensor]  # clean images included, as in `attacks`
    attacks: dict[str, Tensor]  # by "group/attack"
    not_applicable: dict[str, str]  # group or "group/attack" to why it was left out
    indicators: dict[str, float]  # `indicators.NAMES` to shares
    flags: dict  # AutoAttack's own
    checks: dict  # see `_assemble`
    binarization: dict[str, float]  # attack to the share of known adversarial images that it finds
    details: dict[str, dict]
    seconds: dict[str, float]
    randomised: bool

    def summary(self) -> dict[str, float]:
        """Accuracies as fractions: clean, authors_protocol, each group, worst_case."""
        rows = {"clean": self.clean, "authors_protocol": self.authors_protocol}
        return {k: float(v.double().mean()) for k, v in {**rows, **self.groups, "worst_case": self.worst_case}.items()}


def run_group(name: str, c: Context) -> dict:
    """A group's JSON-able record, from its own seed, so that a resumed audit goes on as the first would have.

    attacks: name to (N,) bools, right on clean images and under the attack; details, not_applicable, seconds.
    """
    began, changed = time.monotonic(), list[str]()
    with watched(c.reference, name, changed), own_randomness(c.seed + zlib.crc32(name.encode())):
        group = GROUPS[name](c)
        attacks = {attack: kept.tolist() for attack, kept in c.run(group.crafts).items()}
    details = {k: float(v.double().mean()) if isinstance(v, Tensor) else v for k, v in group.details.items()}
    if changed:
        details["changed"] = details.get("changed", []) + changed
    seconds = time.monotonic() - began
    log.info("audit: %s in %.1f s", name, seconds)
    return {"attacks": attacks, "details": details, "not_applicable": group.missing, "seconds": seconds}


def _assemble(c: Context, records: Mapping[str, dict], checks: dict) -> Audit:
    """The report of all groups.

    checks, beside those given: `cw_above_pgd20` by more than 0.02 (logits of another scale), `pgd_above_autoattack` by
    more than 0.08 (honest networks show 0.02 to 0.04), and `changed`, what an attack did not leave as it was.
    """
    clean, details = c.clean.cpu(), {name: record.get("details", {}) for name, record in records.items()}
    kept = {k: {a: torch.tensor(v) for a, v in record["attacks"].items()} for k, record in records.items()}
    right = {name: torch.stack([clean, *attacks.values()]).all(dim=0) for name, attacks in kept.items() if attacks}
    accuracy = {k: float(v.double().mean()) for k, v in {**kept["protocol"], **right}.items()}
    checks = {
        "cw_above_pgd20": accuracy["cw"] - accuracy["pgd20"] > 0.02,
        "pgd_above_autoattack": accuracy["pgd100"] - accuracy["autoattack"] > 0.08,
        **checks,
        "changed": [what for each in details.values() for what in each.get("changed", [])],
    }
    left_out = {k: record.get("not_applicable", {}) for k, record in records.items()}
    return Audit(
        clean=clean,
        authors_protocol=right["protocol"],
        worst_case=torch.stack([clean, *right.values()]).all(dim=0),
        columns=kept["protocol"],
        groups={name: correct for name, correct in right.items() if name != "protocol"},
        attacks={f"{k}/{a}": v for k, attacks in kept.items() if k != "protocol" for a, v in attacks.items()},
        not_applicable={f"{k}/{a}" if a else k: why for k, each in left_out.items() for a, why in each.items()},
        indicators=details["indicators"],
        flags=details["autoattack"],
        checks=checks,
        binarization=details["binarization"].get("shares", {}),
        details={name: each for name, each in details.items() if each},
        seconds={name: record.get("seconds", 0.0) for name, record in records.items()},
        randomised=c.randomised,
    )


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
    on_group: Callable[[str, dict], None] = lambda name, record: None,
    done: Mapping[str, dict] | None = None,
) -> Audit:
    """Attack a classifier in every way known here (GROUPS) and say which images still hold.

    model: any nn.Module from images to logits (N, K), of which a copy in eval mode and float32 is attacked.
    x: (N, C, H, W) in [0, 1]; y: (N,) int64; eps: L-inf radius in pixels of [0, 1]. budget: quick (a minute for 100
    small images) or full. surrogate: another trained network to transfer from. train: images and labels for latent
    heads, by default the audited ones. on_group(name, record): called after each group with a plain dict; done: such
    records by name, not computed again. UsageError for what cannot be audited.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"audit takes an nn.Module that maps images to logits, not {type(model).__name__}")
    if check_eps(eps) == 0 or budget not in BUDGETS:
        raise UsageError(f"eps is {eps}, above 0, and budget one of {', '.join(BUDGETS)}, not {budget!r}")
    check_images(x, y)
    records = {name: record for name, record in (done or {}).items() if name in GROUPS}
    if any(len(kept) != len(x) for record in records.values() for kept in record["attacks"].values()):
        raise UsageError(f"the finished groups are not about {len(x)} images; leave out done=")
    copy = private_copy(model)
    device = next((t.device for t in [*copy.parameters(), *copy.buffers()]), x.device)
    x, y = x.detach().float().contiguous().to(device), y.to(device)
    with eval_mode(copy), own_randomness(seed), exact_float32():
        with torch.no_grad():
            logits = copy(x[:2].clone())
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x[:2]) or logits.shape[1] < 2:
            raise UsageError("the model must give logits (N, K), K at least 2, and nothing else")
        check_images(x, y, logits.shape[1])
        context = Context(
            model=copy,
            x=x,
            y=y,
            eps=float(eps),
            seed=seed,
            budget=BUDGETS[budget],
            batch=1000 if device.type == "cuda" else 250,
            surrogate=None if surrogate is None else Attackable(private_copy(surrogate).to(device).eval(), x),
            train=None if train is None else (train[0].float().to(device), train[1].to(device)),
        )
        for name in GROUPS:
            if name not in records:
                records[name] = run_group(name, context)
                on_group(name, records[name])
        checks = cheap_checks(model, context)
    return _assemble(context, records, checks)
