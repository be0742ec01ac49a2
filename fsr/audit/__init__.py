"""The adaptive audit: groups of attacks on any classifier, and which images still hold under each and under all.

Groups, as T9 numbers them, map (context, details) to pairs (attack, how to craft it or why not), and fill details.
"""

import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fsr.attacks import ATTACKS, auto
from fsr.attacks.gradient import cross_entropy, logit_margin
from fsr.attacks.inputs import check_images, check_numbers, own_randomness
from fsr.audit.ascent import backward, before_output, differences, joint, scale_free, slope, with_latent_heads
from fsr.audit.context import BUDGETS, Context, Craft, attackable, differs, private_copy, snapshot
from fsr.audit.proofs import binarization_test, binary_problem, cheap_checks, indicators
from fsr.config import PROTOCOL
from fsr.files import UsageError
from fsr.hardware import exact_float32
from fsr.models import Classifier, Intervention
from fsr.models.fsr import masked, switched
from fsr.models.modes import eval_mode

Found = Iterable[tuple[str, Craft | str]]
NO_MASK = "this model has no FSR mask"
PUSH = 400.0  # weight of the masks' distance: a mask's mean moves by hundredths and a margin by several units


def protocol(c: Context, details: dict) -> Found:
    """No attack, FGSM, PGD-20, PGD-100 and C&W as the authors run them."""
    return [(name, c.named(name)) for name in PROTOCOL]


def autoattack(c: Context, details: dict) -> Found:
    """AutoAttack standard with its own flags; fewer than four classes leave out the targeted APGD."""
    kinds = [name for name in auto.VERSIONS["standard"] if name != "apgd-t" or c.classes >= 4]
    how: dict[str, Any] = {"version": "custom", "attacks": kinds, "seed": c.seed, "batch": c.batch}
    result = auto.autoattack(c.net, c.x, c.y, eps=c.eps, **how, **c.budget.get("autoattack", {}))
    details |= result.flags
    return [("standard", lambda x, y, rows: result.x_adv[rows])]


def bpda(c: Context, details: dict) -> Found:
    """APGD with the mask's backward pass at tau = 1 (BPDA, Athalye et al. 2018)."""
    if not masked(c.net):
        return [("", NO_MASK)]
    up = partial(c.climb, backward_tau=1.0)
    return [("apgd-ce", up(slope(c.net, cross_entropy), 30)), ("apgd-margin", up(slope(c.net, logit_margin), 30))]


def _traced(c: Context, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, masks and auxiliary logits, in running order."""
    logits, streams = Classifier(c.net).trace(x)
    masks = [one.mask for one in streams if getattr(one, "mask", None) is not None]
    return logits, masks, [z for one in streams for z in one.aux.values()]


def mask(c: Context, details: dict) -> Found:
    """The mask frozen at its clean value, and driven towards 0 and towards 1."""
    if not masked(c.net):
        return [("", NO_MASK)]

    def frozen(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        values = [list[Tensor]() for _ in masked(c.net)]  # in the order of the modules, which may run in another
        noted = [Intervention(mask=partial(lambda own, value: own.append(value) or value, own)) for own in values]
        with torch.no_grad(), switched(c.net, intervention=noted):
            c.net(x)
        held = [Intervention(mask=partial(lambda own, _: own[0], own)) for own in values]
        return c.climb(slope(c.net, cross_entropy), 40, stop=False, intervention=held)(x, y, rows)

    def driven(end: float) -> Craft:
        def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits, masks, _ = _traced(c, x)
            distance = sum((value - end).abs().flatten(1).mean(dim=1) for value in masks) / len(masks)
            return logit_margin(scale_free(logits), y) - PUSH * distance, logits

        return c.climb(backward(objective), 41, backward_tau=1.0)

    return [("frozen", frozen), ("towards-0", driven(0.0)), ("towards-1", driven(1.0))]


def latent(c: Context, details: dict) -> Found:
    """The logits with auxiliary ones, with fitted heads on features (LAFEAT, Yu 2021), with the last linear layer."""
    auxiliary = c.climb(joint(lambda x: _traced(c, x)[::2]), 50, backward_tau=1.0)
    heads, stages = with_latent_heads(c.net, c.x, c.y, classes=c.classes, batch=c.batch)
    yield "joint", auxiliary if _traced(c, c.x[:1])[2] else "this model has no auxiliary logits"
    yield "heads", c.climb(joint(heads), 51) if stages else "this model has no convolutions"
    logits, last = before_output(c.net, c.x[:1])
    hidden = not c.net.blind and any(not torch.allclose(z, logits.float()) for z in last)
    yield "output", c.climb(joint(partial(before_output, c.net)), 52) if hidden else "no step follows that layer"


def transfer(c: Context, details: dict) -> Found:
    """Images made on the network with m = 1, on it with R = 0, and on the surrogate, at their highest margin."""
    up, own, there = partial(c.climb, stop=False), slope(c.net, logit_margin), bool(masked(c.net))
    yield "m1", up(own, 60, intervention=Intervention(mask=torch.ones_like)) if there else NO_MASK
    yield "r0", up(own, 60, intervention=Intervention(recalibrate=False)) if there else NO_MASK
    yield "surrogate", up(slope(c.surrogate, logit_margin), 61) if c.surrogate else "no surrogate network was given"


def restarts(c: Context, details: dict) -> Found:
    """PGD on cross-entropy with ten restarts at several step sizes, and on the margin to every likely wrong class."""
    yield "pgd", c.named("pgd100-restarts", steps=c.budget["steps"])
    yield "multi-targeted", c.named("pgd-mt", steps=c.budget["steps"] // 2)


def noise(c: Context, details: dict) -> Found:
    """Gradients averaged over draws (EOT, Athalye et al. 2018): on FSR with its training noise switched on."""
    if not c.randomised and all(module.spec.mask == "soft" for module in masked(c.net)):
        return [("", "this model draws no noise")]
    switches, own = {} if c.randomised else {"noise": True}, c.clean.clone()
    averaged, judge = (attackable(c.model, c.x, c.y, draws) for draws in (8, c.budget["draws"]))
    up = c.climb(slope(averaged, logit_margin), 70, stop=False, part=2, **switches)
    details["noisy_accuracy"] = own

    def eot(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        x_adv = up(x, y, rows)
        with switched(c.model, **switches):
            own[rows] &= c.correct(x_adv, rows, judge)
        return x_adv

    return [("eot", eot)]


def queries(c: Context, details: dict) -> Found:
    """Attacks that read scores only: Square, and finite differences (NES); random noise as a control."""
    square = c.named("square", queries=c.budget["queries"] // c.net.draws)
    nes = c.climb(differences(c.reference, logit_margin, sigma=c.eps, pairs=c.budget["pairs"]), 80, part=2)
    return [("square", square), ("nes", nes), ("random-noise", c.named("random-noise"))]


def binarization(c: Context, details: dict) -> Found:
    """The binarization test of ATTACKS and of the audit's own; attacks on scores get a boundary half as far."""
    images, shares = c.x[c.clean][: c.budget["binary"]], dict[str, float]()
    for scores_only, closeness in ((False, 0.99), (True, 0.5)):
        try:
            model, x, y = binary_problem(c.model, images, c.eps, seed=c.seed, closeness=closeness)
        except (UsageError, RuntimeError, IndexError) as error:  # a last layer that is not called with features (N, D)
            return [("", str(error))]
        inner = Context(model=model, x=x, y=y, eps=c.eps, seed=c.seed, budget=c.budget, batch=c.batch)
        options = {"queries": c.budget["queries"]} if scores_only else {}
        left_out = {"clean", "pgd20-joint", *c.budget.get("untested", ())}  # auxiliary heads know nothing of it
        attacks = {name for name, attack in ATTACKS.items() if ("queries" in attack.takes) == scores_only}
        crafts: list = [(name, inner.named(name, **options)) for name in ATTACKS if name in attacks - left_out]
        for group in (queries,) if scores_only else (autoattack, bpda, mask):
            crafts += [(f"{group.__name__}/{name}", craft) for name, craft in group(inner, {})]
        for name, craft in crafts:
            with suppress(UsageError):  # it needs another network or more classes
                shares |= {each: 1 - float(o.double().mean()) for each, o in inner.run([(name, craft)]).items()}
    details |= {"shares": shares, "images": len(images)}
    return []


_ALL = (protocol, autoattack, bpda, mask, latent, transfer, restarts, noise, queries, indicators, binarization)
GROUPS: dict[str, Callable[[Context, dict], Found]] = {group.__name__: group for group in _ALL}


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
    return {"attacks": attacks, "details": details, "not_applicable": left_out, "seconds": seconds, "of": c.call}


def assemble(c: Context, records: dict[str, dict], checks: dict) -> SimpleNamespace:
    """The report of all groups; tensors are (N,) bool on the CPU, in the order of the images: still correct."""
    clean, details = c.clean.cpu(), {name: record["details"] for name, record in records.items()}
    parts = {k: {a: torch.tensor(v) for a, v in records[k]["attacks"].items()} for k in GROUPS}  # in their order
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
    transfer from. on_group(name, record): called after each group; done: such records, not made again where they are of
    this call. UsageError for what cannot be audited.
    """
    check_images(x, y)
    if not (numbers := check_numbers(eps, seed=seed))["eps"] or budget not in [*BUDGETS] or not len(x):
        raise UsageError(f"an audit needs images, eps > 0, not {eps}, and of {', '.join(BUDGETS)} one, not {budget!r}")
    copy = private_copy(model)
    device = next((t.device for t in [*copy.parameters(), *copy.buffers()]), x.device)
    x, y = x.detach().float().contiguous().to(device), y.to(device)
    # eager, or hooks inside a compiled part would not run; the model in eval mode too: its copy may call a part of it
    with torch.compiler.set_stance("force_eager"), own_randomness(seed), eval_mode(model):
        other = None if surrogate is None else attackable(private_copy(surrogate).to(device), x, y)
        context = Context(model=copy, x=x, y=y, budget=BUDGETS[budget], surrogate=other, **numbers)
        checks, first = cheap_checks(model, context), context.reference(x[:8])
        records = {name: record for name, record in (done or {}).items() if record.get("of") == context.call}
        for name in (name for name in GROUPS if name not in records):
            records[name] = run_group(name, context)
            on_group(name, records[name])
        checks["answers_change"] = None if context.randomised else differs(first, context.reference(x[:8]))
        return assemble(context, records, checks)
