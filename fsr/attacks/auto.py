"""AutoAttack by `pyautoattack`, which reseeds per batch: outcomes belong to an order of images and a batch size."""

import json
import re
import sys
import zlib
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from pyautoattack import checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor

from fsr.attacks.gradient import Net, is_wrong, project_linf, targeted_margin
from fsr.attacks.inputs import Network, check_images, check_numbers, own_randomness
from fsr.files import UsageError

NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
FLAGS = {  # each with a phrase of the package's warning that raises it
    "randomised": "randomized defense",
    "probabilities": "probability distribution",
    "dynamic": "dynamic defense",
    "classes": "classes",
    "zero_gradient": "zero gradient",
    "square_beats_whitebox": "Square Attack has decreased",
}
OPTIONS = {"seed": 0, "batch": 250, "steps": 100, "queries": 5000, "rescale": False, "keep_images": True}
NOTHING: dict = {"messages": {}, "zero_gradient_points": 0}  # what is noted of a network without fault
State = dict[str, np.ndarray]


@dataclass
class Log:
    """Stands in for the package's logger: a warning becomes a flag with its first message, in `record`."""

    record: dict

    def warning(self, message: str) -> None:
        text = str(message).replace(" See flags_doc.md for details.", "")
        self.record["messages"].setdefault(next((f for f, phrase in FLAGS.items() if phrase in text), text), text)
        points = re.search(r"there are (\d+) points with zero gradient", text)
        self.record["zero_gradient_points"] += int(points[1]) if points else 0


def _fab_gradient(net: Net, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of logits and its gradient; the package's own `backward()` would fill the parameters' too."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        gap = targeted_margin(net(leaf), y, target)
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
    return gap.detach()[:, None], gradient[:, None]


def component(name, model, *, eps, seed, device, log, steps=100, queries=5000, draws=1, targets=9, rescale=False):
    """One attack of NAMES with AutoAttack's defaults. draws: gradients averaged per step; targets: classes to try."""

    def net(x: Tensor) -> Tensor:
        return model(x).float()  # the package stores logits among its own float32 numbers

    common = {"eps": eps, "norm": "Linf", "seed": seed, "device": device, "verbose": False, "n_restarts": 1}
    ascent = {"n_iter": steps, "eot_iter": draws, "rho": 0.75, "logger": log, **common}
    if name == "square":
        return SquareAttack(net, p_init=0.8, n_queries=queries, resc_schedule=rescale, **common)
    if name == "fab-t":
        fab = FABAttack_PT(net, n_iter=steps, targeted=True, n_target_classes=targets, **common)
        fab.get_diff_logits_grads_batch_targeted = partial(_fab_gradient, net)
        return fab
    if name == "apgd-t":
        return APGDAttack_targeted(net, n_target_classes=targets, **ascent)
    return APGDAttack(net, loss=name.removeprefix("apgd-"), **ascent)


def craft(name: str, model: Net, x: Tensor, y: Tensor, *, eps: float, perturb: dict | None = None, **how) -> Tensor:
    """What a component makes of x, in the ball and [0, 1]; an image with a non-finite pixel becomes its clean one."""
    if eps == 0 or how["queries" if name == "square" else "steps"] == 0:
        return x.clone()
    attack = component(name, model, eps=eps, device=x.device, **how)
    x_adv = attack.perturb(x, y, **(perturb or {})).detach().float()
    finite = torch.isfinite(x_adv).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return project_linf(torch.where(finite, x_adv, x), x, eps)


def check_model(model: Net, x: Tensor, y: Tensor, attacks: list[str], randomised_ok: bool, log: Log) -> int:
    """The package's checks on one batch into `log`; returns the number of classes."""
    if not randomised_ok:
        checks.check_randomized(model, x, y, bs=len(x), logger=log)
    classes = checks.check_range_output(model, x, logger=log)
    if classes < (needed := 4 if "apgd-t" in attacks else 3 if "apgd-dlr" in attacks else 2):
        raise UsageError(f"{', '.join(attacks)} need {needed} classes, this model has {classes}; use --attack square")
    trace, checks.funcs = sys.gettrace(), dict.fromkeys(checks.funcs, 0)  # it counts on from earlier networks
    try:
        checks.check_dynamic(model, x, False, logger=log)
    finally:
        sys.settrace(trace)
    return classes


def _attacked(name: str, model: Network, judge: Network, x: Tensor, y: Tensor, record: dict) -> tuple[Tensor, Tensor]:
    """(which images the judge gets wrong, x_adv). Where only the model is wrong, the judge itself is attacked."""
    given, rand = record["identity"], record["identity"]["randomised_ok"]
    how = {name: given[name] for name in ("eps", "seed", "steps", "queries", "rescale")}
    how |= {"log": Log(record), "draws": 20 if rand else 1, "targets": min(9, record["classes"] - 1)}
    x_adv = craft(name, model, x, y, **how)
    wrong = is_wrong(judge(x_adv), y)
    if judge is not model:
        flipped = is_wrong(model(x_adv), y) & ~wrong
        record["flips"][name] = record["flips"].get(name, 0) + int(flipped.sum())
        if flipped.any():
            net, how["perturb"] = (model, {"best_loss": True}) if rand else (judge, {})
            x_adv[flipped] = craft(name, net, x[flipped], y[flipped], **how)
            wrong = is_wrong(judge(x_adv), y)
    return wrong, x_adv


def _run(model: Network, judge: Network, x: Tensor, y: Tensor, state: State, record: dict, on_chunk) -> None:
    names, batch, seed, rand = (record["identity"][key] for key in ("attacks", "batch", "seed", "randomised_ok"))
    by = state["broken_by"]

    def save() -> None:
        state["record"] = np.array(json.dumps(record))
        on_chunk(state)

    if (by == -2).any():
        with own_randomness(seed):
            record["classes"] = check_model(judge, x[:batch], y[:batch], names, rand, Log(record))
            by[:] = torch.cat([is_wrong(judge(a), b) for a, b in zip(x.split(batch), y.split(batch))]).int().cpu() - 1
        save()
    for number, name in enumerate(names, 1):
        survivors = state.setdefault(f"start.{name}", np.flatnonzero(by == -1))
        for at in range(record["done"].get(name, 0), len(survivors), batch):
            rows = torch.from_numpy(places := survivors[at : at + batch]).to(x.device)
            with own_randomness(seed):
                wrong, x_adv = _attacked(name, model, judge, x[rows], y[rows], record)
            broken = places[wrong.cpu().numpy()]
            by[broken] = number
            if "x_adv" in state:
                state["x_adv"][broken] = x_adv[wrong].cpu().numpy()
            record["done"][name] = at + batch
            save()


@torch.inference_mode(False)
@torch.no_grad()
def autoattack(
    model, x, y, *, eps, version="standard", attacks=None, judge=None, state=None, on_chunk=lambda _: None, **options
) -> SimpleNamespace:
    """AutoAttack (Croce & Hein 2020): each attack gets what the ones before left correct.

    x: (N, C, H, W) in [0, 1], y: (N,) int64; model: to logits (N, K); judge: a differentiable net that alone decides,
    for a `model` in a faster precision; version: standard, rand, or custom with attacks of NAMES; options: of OPTIONS.
    state: arrays, updated in place and given to on_chunk after every batch (which may raise); a call with such a state
    goes on there. UsageError for another evaluation's and wrong inputs.
    Of the result, in the order of x: clean and correct, (N,) bool before and after all attacks; outcomes, attack to
    (N,) bool after it; x_adv, what broke each image, else x, None when not kept; flags, FLAGS and the package's words;
    flips, per attack, the images that the model got wrong and the judge right.
    """
    check_images(x, y)
    names, rand, state = list(attacks or VERSIONS.get(version, ())), version == "rand", {} if state is None else state
    wrong = {*names, *options} - {*NAMES, *OPTIONS} or options.get("batch") == 0
    if not names or (attacks is not None) != (version == "custom") or wrong:
        raise UsageError(f"version: standard, rand, or custom of {', '.join(NAMES)}; also {[*OPTIONS]}, batch above 0")
    identity = {"attacks": names, **OPTIONS, **options, "n": len(x), "judged": judge is not None, "randomised_ok": rand}
    identity |= check_numbers(eps, **{name: identity[name] for name in ("seed", "batch", "steps", "queries")})
    network, dtype = Network(model, x[: identity["batch"]], y), x.dtype
    judging = network if judge is None else Network(judge, network.x, y)
    x, y = x.detach().float().contiguous().clone(), y.detach().contiguous().clone()
    identity["images"] = zlib.crc32(y.cpu().numpy().data, zlib.crc32(x.cpu().numpy().data))
    if "record" not in state:  # broken_by: -2 not yet judged, -1 still correct, 0 without an attack, i by the i-th
        state["record"] = json.dumps({"identity": identity, "classes": 0, "done": {}, "flips": {}} | NOTHING)
        state["broken_by"] = np.full(len(x), -2, dtype=np.int8)
        state |= {"x_adv": x.cpu().numpy().copy()} if identity["keep_images"] else {}
    record = json.loads(str(state["record"]))
    if other := [name for name, value in identity.items() if record["identity"].get(name) != value]:
        raise UsageError(f"this AutoAttack state is another evaluation's: it differs in {', '.join(other)}")
    _run(network, judging, x, y, state, record, on_chunk)
    by, images = torch.from_numpy(state["broken_by"].copy()), state.get("x_adv")
    after = {"clean": by != 0} | {name: (by == -1) | (by > i) for i, name in enumerate(names, 1)}
    checks.check_square_sr({name: float(v.double().mean()) for name, v in after.items()}, logger=Log(record))
    flags = {flag: flag in record["messages"] for flag in FLAGS} | {name: record[name] for name in NOTHING}
    x_adv = None if images is None else torch.from_numpy(images).to(x.device, dtype)
    clean, flips = after.pop("clean"), record["flips"]
    return SimpleNamespace(clean=clean, correct=by == -1, outcomes=after, x_adv=x_adv, flags=flags, flips=flips)
