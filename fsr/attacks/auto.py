"""AutoAttack: the attacks and checks of `pyautoattack` over the images still right, resumable after any batch.

N images, K classes. The package reseeds for every batch: outcomes belong to an order of images and a batch size, so
both are part of a state's identity.
"""

import json
import re
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pyautoattack import checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor

from fsr.attacks.gradient import Net, is_wrong, project_linf
from fsr.attacks.inputs import Network, check_eps, check_images, own_randomness
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
State = dict[str, np.ndarray]


class Log:
    """Stands in for the package's logger: a warning becomes a flag with its first message, in `record`."""

    def __init__(self, record: dict):
        self.record = record
        record.setdefault("messages", {})
        record.setdefault("zero_gradient_points", 0)

    def warning(self, message: str) -> None:
        """Keep the flag that this warning raises; an unknown warning keeps itself."""
        text = str(message).replace(" See flags_doc.md for details.", "")
        self.record["messages"].setdefault(next((f for f, phrase in FLAGS.items() if phrase in text), text), text)
        points = re.search(r"there are (\d+) points with zero gradient", text)
        self.record["zero_gradient_points"] += int(points[1]) if points else 0


def connected(model: Net) -> Net:
    """The model with fresh finite float32 logits that always depend on the image, if only with gradient zero.

    Square writes into the logits, APGD and FAB raise where the graph is cut, and FAB and DLR divide by differences.
    """

    def net(x: Tensor) -> Tensor:
        logits = model(x).float().clamp_min(-1e9)
        return logits + 0 * x.flatten(1).sum(1, keepdim=True) if x.requires_grad else logits

    return net


def _fab_gradient(net: Net, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """FAB's difference of logits and its gradient; the package's own `backward()` would fill the parameters' too."""
    rows, leaf = torch.arange(len(x), device=x.device), x.clone().requires_grad_()
    with torch.enable_grad():
        logits = net(leaf)
        gap = logits[rows, target] - logits[rows, y]
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
    return gap.detach()[:, None], gradient[:, None]


def component(
    name: str, model: Net, *, eps, seed, device, log, steps=100, queries=5000, draws=1, targets=9, rescale=False
):
    """One attack of the package by its name in NAMES, whose `perturb(x, y)` gives x_adv; x where it does not succeed.

    The defaults are AutoAttack's own. draws: gradients averaged per APGD step (EOT); targets: wrong classes that the
    targeted attacks try; rescale: fit Square's schedule to the queries.
    """
    net = connected(model)
    common = {"eps": eps, "norm": "Linf", "seed": seed, "device": device, "verbose": False, "n_restarts": 1}
    ascent = {"n_iter": steps, "eot_iter": draws, "rho": 0.75, "logger": log, **common}
    if name == "square":
        return SquareAttack(net, p_init=0.8, n_queries=queries, resc_schedule=rescale, **common)
    if name == "fab-t":
        fab: Any = FABAttack_PT(net, n_iter=steps, targeted=True, n_target_classes=targets, **common)
        fab.get_diff_logits_grads_batch_targeted = partial(_fab_gradient, net)
        return fab
    if name == "apgd-t":
        return APGDAttack_targeted(net, n_target_classes=targets, **ascent)
    return APGDAttack(net, loss=name.removeprefix("apgd-"), **ascent)


def craft(name: str, model: Net, x: Tensor, y: Tensor, *, eps: float, log: Log, perturb: dict | None = None, **how):
    """What a component makes of x, in the ball and [0, 1]; an image with a non-finite pixel becomes its clean one.

    Nothing changes at eps 0, without steps and for Square without queries.
    """
    if eps == 0 or how.get("queries" if name == "square" else "steps") == 0:
        return x.clone()
    x_adv = component(name, model, eps=eps, log=log, device=x.device, **how).perturb(x, y, **(perturb or {}))
    x_adv = x_adv.detach().float()
    finite = torch.isfinite(x_adv).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return project_linf(torch.where(finite, x_adv, x), x, eps)


@torch.no_grad()
def single(model: Net, x: Tensor, y: Tensor, *, name: str, eps: float, seed: int = 0, **budget) -> Tensor:
    """One component alone, x_adv like x; x where the model is wrong or stays right. budget: see `component`."""
    with own_randomness(seed):
        images = x.detach().float().contiguous()  # the package takes views
        if name == "apgd-dlr" and (classes := model(images[:1]).shape[1]) < 3:
            raise UsageError(f"apgd-dlr needs three classes, the network has {classes}")
        return craft(name, model, images, y, eps=eps, seed=seed, log=Log({}), **budget).to(x.dtype)


def check_model(model: Net, x: Tensor, y: Tensor, attacks: list[str], randomised_ok: bool, log: Log) -> int:
    """The package's checks on one batch (randomised, probabilities, dynamic) into `log`; returns K.

    UsageError where an attack needs more classes.
    """
    net = connected(model)
    if not randomised_ok:
        checks.check_randomized(net, x, y, bs=len(x), logger=log)
    classes = checks.check_range_output(net, x, logger=log)
    if classes < (needed := 4 if "apgd-t" in attacks else 3 if "apgd-dlr" in attacks else 2):
        instead = 'version="custom", attacks=("apgd-ce", "fab-t", "square"), or one alone: --attack square'
        raise UsageError(f"{', '.join(attacks)} need {needed} classes, this model has {classes}; use {instead}")
    trace, counters = sys.gettrace(), checks.funcs  # the package counts on, and sets its own trace and then none
    checks.funcs = dict.fromkeys(counters, 0)
    try:
        checks.check_dynamic(net, x, False, logger=log)
    finally:
        sys.settrace(trace)
        checks.funcs = counters
    return classes


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found; per-image tensors (but x_adv) on the CPU, in the order of x."""

    clean: Tensor  # (N,) bool, before all attacks
    correct: Tensor  # (N,) bool, after them
    outcomes: dict[str, Tensor]  # attack name to (N,) bool, still correct after it
    x_adv: Any  # Tensor like x: the image that broke each, else x; None when not kept
    flags: dict  # the package's warnings as booleans (FLAGS), zero_gradient_points and their messages
    flips: dict[str, int]  # per attack, images that the model got wrong and the judge right


@dataclass
class _Evaluation:
    model: Network
    judge: Network
    x: Tensor
    y: Tensor
    state: State  # `record`, JSON, and arrays that grow attack by attack
    identity: dict

    def __post_init__(self):
        self.record: dict[str, Any] = {"identity": self.identity, "classes": 0, "done": {}, "flips": {}}
        if "record" in self.state:
            self.record = json.loads(str(self.state["record"]))
            if other := [k for k, value in self.identity.items() if self.record["identity"].get(k) != value]:
                raise UsageError(f"this AutoAttack state is another evaluation's: it differs in {', '.join(other)}")
        else:  # -2: not yet judged, -1: still correct, 0: wrong without an attack, i + 1: broken by attack i
            self.state["broken_by"] = np.full(len(self.x), -2, dtype=np.int8)
            if self.identity["keep_images"]:
                self.state["x_adv"] = self.x.cpu().numpy().copy()
        self.log, self.seed = Log(self.record), self.identity["seed"]

    def run(self, on_chunk: Callable[[State], None]) -> None:
        def save() -> None:
            self.state["record"] = np.array(json.dumps(self.record))
            on_chunk(self.state)

        names, batch = self.identity["attacks"], self.identity["batch"]
        if (self.state["broken_by"] == -2).any():
            with own_randomness(self.seed):
                start, rand = (self.x[:batch], self.y[:batch]), self.identity["randomised_ok"]
                self.record["classes"] = check_model(self.judge, *start, names, rand, self.log)
                right = [is_wrong(self.judge(x), y) for x, y in zip(self.x.split(batch), self.y.split(batch))]
            self.state["broken_by"][:] = torch.cat(right).cpu().numpy() - 1
            save()
        for number, name in enumerate(names, 1):
            survivors = self.state.setdefault(f"start.{name}", np.flatnonzero(self.state["broken_by"] == -1))
            for at in range(self.record["done"].get(name, 0), len(survivors), batch):
                places = survivors[at : at + batch]
                wrong, x_adv = self.attack(name, torch.from_numpy(places).to(self.x.device))
                self.state["broken_by"][places[wrong]] = number
                if "x_adv" in self.state:
                    self.state["x_adv"][places[wrong]] = x_adv[wrong]
                self.record["done"][name] = at + batch
                save()

    def attack(self, name: str, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(which of these images the judge gets wrong under the attack, x_adv).

        Where only the model is wrong, the judge itself is attacked (a randomised one gets the image of highest loss).
        """
        how = {k: self.identity[k] for k in ("eps", "seed", "steps", "queries", "draws", "rescale")} | {"log": self.log}
        how["targets"] = min(self.identity["targets"], self.record["classes"] - 1)
        with own_randomness(self.seed):
            x, y = self.x[rows], self.y[rows]
            x_adv = craft(name, self.model, x, y, **how)
            wrong = is_wrong(self.judge(x_adv), y)
            if self.judge is not self.model:
                flipped, rand = is_wrong(self.model(x_adv), y) & ~wrong, self.identity["randomised_ok"]
                self.record["flips"][name] = self.record["flips"].get(name, 0) + int(flipped.sum())
                if flipped.any():
                    net, how["perturb"] = (self.model, {"best_loss": True}) if rand else (self.judge, {})
                    x_adv[flipped] = craft(name, net, x[flipped], y[flipped], **how)
                    wrong = is_wrong(self.judge(x_adv), y)
        return wrong.cpu().numpy(), x_adv.cpu().numpy()

    def result(self) -> AutoAttackResult:
        by, kept = torch.from_numpy(self.state["broken_by"].copy()), self.state.get("x_adv")
        after = {"clean": by != 0} | {k: (by == -1) | (by > i) for i, k in enumerate(self.identity["attacks"], 1)}
        checks.check_square_sr({name: float(right.double().mean()) for name, right in after.items()}, logger=self.log)
        flags = {flag: flag in self.record["messages"] for flag in FLAGS}
        flags |= {name: self.record[name] for name in ("zero_gradient_points", "messages")}
        x_adv = None if kept is None else torch.from_numpy(kept).to(self.x.device, self.model.dtype)
        return AutoAttackResult(after.pop("clean"), by == -1, after, x_adv, flags, self.record["flips"])


@torch.inference_mode(False)
@torch.no_grad()
def autoattack(
    model: Net,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: str = "standard",
    attacks=None,
    seed: int = 0,
    batch: int = 250,
    steps: int = 100,
    queries: int = 5000,
    judge: Net | None = None,
    keep_images: bool = True,
    on_chunk: Callable[[State], None] = lambda state: None,
    state: State | None = None,
) -> AutoAttackResult:
    """AutoAttack (Croce & Hein 2020): each attack gets what the ones before left correct.

    x: (N, C, H, W) in [0, 1], attacked in float32; y: (N,) int64; eps in pixels of [0, 1]; model: images to logits
    (N, K). judge: a differentiable net that alone decides what is right, for a `model` in a faster precision (version
    "rand": the mean of draws). state: arrays, brought up to date in place and given to on_chunk after every batch
    (which may raise); a call with such a state goes on there. UsageError for another evaluation's and wrong inputs.
    """
    check_images(x, y, empty=True)
    eps, rand = check_eps(eps, steps=steps, queries=queries), version == "rand"
    if (version != "custom" or not attacks) if attacks is not None else version not in VERSIONS:
        raise UsageError('version is "standard" or "rand" (which choose the attacks), or "custom" with attacks=(...)')
    names = list(attacks or VERSIONS[version])
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"unknown attack {unknown[0]!r}; choose one of {', '.join(NAMES)}")
    network = Network(model, x[:batch], y)
    judging = network if judge is None else Network(judge, x[:batch], y)
    x, y = x.detach().float().contiguous().clone(), y.detach().contiguous().clone()
    identity = {"attacks": names, "eps": eps, "seed": seed, "batch": batch, "n": len(x), "keep_images": keep_images}
    identity |= {"judged": judge is not None, "randomised_ok": rand, "steps": steps, "queries": queries}
    identity |= {"draws": 20 if rand else 1, "targets": 9, "rescale": False}
    identity["images"] = zlib.crc32(y.cpu().numpy().data, zlib.crc32(x.cpu().numpy().data))
    evaluation = _Evaluation(network, judging, x, y, {} if state is None else state, identity)
    evaluation.run(on_chunk)
    return evaluation.result()
