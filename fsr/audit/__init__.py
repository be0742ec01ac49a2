"""The adaptive audit: groups of attacks on any classifier, and which images still hold under each and under all."""

import time
import zlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fsr.attacks.inputs import check_images, check_numbers, own_randomness
from fsr.audit.context import BUDGETS, Context, attackable, private_copy, snapshot
from fsr.audit.groups import GROUPS
from fsr.audit.proofs import binarization_test, cheap_checks
from fsr.files import UsageError
from fsr.hardware import exact_float32
from fsr.models.modes import eval_mode


def run_group(name: str, c: Context) -> dict:
    """A group's JSON-able record, from its own seed, so that a resumed audit goes on as the first would have."""
    began, before, details = time.monotonic(), snapshot(c.model), dict[str, Any]()
    with own_randomness(c.seed + zlib.crc32(name.encode())):
        crafts = list(GROUPS[name](c, details))
        attacks = {attack: correct.tolist() for attack, correct in c.run(crafts).items()}
    details = {k: float(v.double().mean()) if isinstance(v, Tensor) else v for k, v in details.items()}
    if changed := [f"{name}: {what}" for what, value in snapshot(c.model).items() if value != before[what]]:
        details["changed"] = changed
    left_out, seconds = {attack: why for attack, why in crafts if isinstance(why, str)}, time.monotonic() - began
    return {"attacks": attacks, "details": details, "not_applicable": left_out, "seconds": seconds}


def assemble(c: Context, records: dict[str, dict], checks: dict) -> SimpleNamespace:
    """The report of all groups; tensors are (N,) bool on the CPU, in the order of the images: still correct."""
    clean, details = c.clean.cpu(), {name: record["details"] for name, record in records.items()}
    parts = {k: {a: torch.tensor(v) for a, v in record["attacks"].items()} for k, record in records.items()}
    correct = {name: torch.stack([clean, *each.values()]).all(dim=0) for name, each in parts.items() if each}
    accuracy = {k: float(v.double().mean()) for k, v in {**parts["protocol"], **correct}.items()}
    above = {"cw_above_pgd20": accuracy["cw"] - accuracy["pgd20"] > 0.02}
    above["pgd_above_autoattack"] = accuracy["pgd100"] - accuracy["autoattack"] > 0.08
    return SimpleNamespace(
        clean=clean,
        columns=parts["protocol"],  # the parts of the authors' protocol
        worst_case=torch.stack([clean, *correct.values()]).all(dim=0),  # under everything
        authors_protocol=correct["protocol"],  # clean, FGSM, PGD-20, PGD-100 and C&W without restarts
        groups={name: each for name, each in correct.items() if name != "protocol"},
        attacks={f"{k}/{a}": v for k, attacks in parts.items() if k != "protocol" for a, v in attacks.items()},
        not_applicable={f"{k}/{a}" if a else k: why for k in parts for a, why in records[k]["not_applicable"].items()},
        indicators=details["indicators"],  # `proofs.NAMES` to shares
        flags=details["autoattack"],  # AutoAttack's own
        checks={**above, **checks, "changed": [what for each in details.values() for what in each.get("changed", [])]},
        binarization=details["binarization"].get("shares", {}),  # attack to the share of known images that it finds
        details={name: each for name, each in details.items() if each},
        seconds={name: record["seconds"] for name, record in records.items()},
        randomised=c.randomised,
    )


@exact_float32()
def audit(
    model, x, y, eps=8 / 255, budget="quick", seed=0, *, surrogate=None, on_group=lambda name, record: None, done=None
) -> SimpleNamespace:
    """Attack a copy of a classifier in every way known here (GROUPS) and say which images still hold; see `assemble`.

    model: images to logits (N, K); x: (N, C, H, W) in [0, 1]; y: (N,) int64; budget: quick or full; surrogate: to
    transfer from. on_group(name, record): called after each group; done: such records, not computed again.
    UsageError for what cannot be audited.
    """
    check_images(x, y)
    if not (numbers := check_numbers(eps, seed=seed))["eps"] or budget not in [*BUDGETS] or not len(x):
        raise UsageError(f"an audit needs images, eps > 0, not {eps}, and of {', '.join(BUDGETS)} one, not {budget!r}")
    copy, records = private_copy(model), dict(done or {})
    device = next((t.device for t in [*copy.parameters(), *copy.buffers()]), x.device)
    x, y = x.detach().float().contiguous().to(device), y.to(device)
    with own_randomness(seed), eval_mode(model):  # its copy may call a part of it
        other = None if surrogate is None else attackable(private_copy(surrogate).to(device), x, y)
        context = Context(model=copy, x=x, y=y, budget=BUDGETS[budget], surrogate=other, **numbers)
        checks = cheap_checks(model, context)
        for name in (name for name in GROUPS if name not in records):
            records[name] = run_group(name, context)
            on_group(name, records[name])
        return assemble(context, records, checks)
