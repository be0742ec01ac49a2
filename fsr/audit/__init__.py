"""The adaptive audit: groups of attacks on any classifier, and which images still hold under each and under all."""

import logging
import time
import zlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fsr.attacks.inputs import Network, check_eps, check_images, own_randomness
from fsr.audit.context import BUDGETS, Attackable, Context, private_copy, watched
from fsr.audit.groups import GROUPS
from fsr.audit.proofs import binarization_test, cheap_checks
from fsr.files import UsageError
from fsr.hardware import exact_float32
from fsr.models.modes import eval_mode

log = logging.getLogger("fsr")


def run_group(name: str, c: Context) -> dict:
    """A group's JSON-able record, from its own seed, so that a resumed audit goes on as the first would have."""
    began, changed, details = time.monotonic(), list[str](), dict[str, Any]()
    with watched(c.reference, name, changed), own_randomness(c.seed + zlib.crc32(name.encode())):
        found = list(GROUPS[name](c, details))
        attacks = {attack: kept.tolist() for attack, kept in c.run(found).items()}
    details = {k: float(v.double().mean()) if isinstance(v, Tensor) else v for k, v in details.items()}
    if changed:
        details["changed"] = details.get("changed", []) + changed
    left_out, seconds = {attack: why for attack, why in found if isinstance(why, str)}, time.monotonic() - began
    log.info("audit: %s in %.1f s", name, seconds)
    return {"attacks": attacks, "details": details, "not_applicable": left_out, "seconds": seconds}


def assemble(c: Context, records: Mapping[str, dict], checks: dict) -> SimpleNamespace:
    """The report of all groups; tensors are (N,) bool on the CPU, in the order of the images: still right."""
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
    return SimpleNamespace(
        clean=clean,
        columns=kept["protocol"],  # the parts of the authors' protocol
        authors_protocol=right.pop("protocol"),  # clean, FGSM, PGD-20, PGD-100 and C&W without restarts
        groups=right,  # clean images included, as in `attacks`
        worst_case=torch.stack([clean, *kept["protocol"].values(), *right.values()]).all(dim=0),  # under everything
        attacks={f"{k}/{a}": v for k, attacks in kept.items() if k != "protocol" for a, v in attacks.items()},
        not_applicable={f"{k}/{a}" if a else k: why for k, each in left_out.items() for a, why in each.items()},
        indicators=details["indicators"],  # `indicators.NAMES` to shares
        flags=details["autoattack"],  # AutoAttack's own
        checks=checks,
        binarization=details["binarization"].get("shares", {}),  # attack to the share of known images that it finds
        details={name: each for name, each in details.items() if each},
        seconds={name: record.get("seconds", 0.0) for name, record in records.items()},
        randomised=c.randomised,
    )


def audit(
    model, x, y, eps=8 / 255, budget="quick", seed=0, *, surrogate=None, train=None, on_group=None, done=None
) -> SimpleNamespace:
    """Attack a copy of a classifier in every way known here (GROUPS) and say which images still hold; see `assemble`.

    model: images to logits (N, K); x: (N, C, H, W) in [0, 1]; y: (N,) int64; budget: quick or full; surrogate: to
    transfer from; train: images and labels for latent heads, else the audited ones. on_group(name, record): called
    after each group; done: such records, not computed again. UsageError for what cannot be audited.
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
            Network(copy, x[:2], y)(x[:2])  # UsageError unless it gives logits with a class for every label
        given = {"eps": float(eps), "seed": seed, "budget": BUDGETS[budget], "batch": 1000 if x.is_cuda else 250}
        given["train"] = None if train is None else (train[0].float().to(device), train[1].to(device))
        other = None if surrogate is None else Attackable(private_copy(surrogate).to(device).eval(), x)
        context = Context(model=copy, x=x, y=y, surrogate=other, **given)
        for name in GROUPS:
            if name not in records:
                records[name] = run_group(name, context)
                if on_group is not None:
                    on_group(name, records[name])
        return assemble(context, records, cheap_checks(model, context))
