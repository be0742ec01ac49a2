"""AutoAttack: attack by attack over the images still right, resumable after any batch.

N images, K classes. The components are the package's own, see `fsr.attacks.components`: outcomes belong to an order of
images and a batch size, so both are part of a state's identity.
"""

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsr.attacks.components import FLAGS, NAMES, Budget, Log, check_model, component, crafted, own_randomness
from fsr.attacks.inputs import Network, check_counts, check_eps, check_images
from fsr.attacks.losses import Net, is_wrong
from fsr.files import UsageError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
RAND = ("apgd-ce", "apgd-dlr")
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found; per-image tensors (but x_adv) on the CPU, in the order of x."""

    clean: Tensor  # (N,) bool, before all attacks
    correct: Tensor  # (N,) bool, after them
    outcomes: dict[str, Tensor]  # attack name to (N,) bool, still correct after it
    x_adv: Tensor | None  # like x: the image that broke each, else x; None when not kept
    flags: dict  # the package's warnings as booleans (FLAGS), zero_gradient_points and their messages
    flips: dict[str, int]  # per attack, images that the model got wrong and the judge right
    seconds: dict[str, float]  # per attack


class _Evaluation:
    """The settings and the state: a record (JSON) and arrays that grow attack by attack."""

    def __init__(self, model: Network, judge: Network, x: Tensor, y: Tensor, state: State, identity: dict):
        self.model, self.judge, self.x, self.y, self.state = model, judge, x, y, state
        self.names, self.eps, self.seed, self.batch = (identity[key] for key in ("attacks", "eps", "seed", "batch"))
        self.randomised_ok = identity["randomised_ok"]
        self.record: dict[str, Any] = {"identity": identity, "classes": 0, "done": {}, "flips": {}, "seconds": {}}
        if "record" in state:
            self.record = json.loads(str(state["record"]))
            other = [name for name, value in identity.items() if self.record["identity"].get(name) != value]
            if other:
                raise UsageError(f"this AutoAttack state is another evaluation's: it differs in {', '.join(other)}")
        else:  # -2: not yet judged, -1: still correct, 0: wrong without an attack, i + 1: broken by names[i]
            state["broken_by"] = np.full(len(x), -2, dtype=np.int8)
            if identity["keep_images"]:
                state["x_adv"] = x.cpu().numpy().copy()
        self.log = Log(self.record.get("messages"), self.record.get("zero_gradient_points", 0))

    def save(self, on_chunk: Callable[[State], None] | None) -> None:
        """Bring the record into the state and hand the state out."""
        self.record |= {"messages": self.log.messages, "zero_gradient_points": self.log.zero_gradient_points}
        self.state["record"] = np.array(json.dumps(self.record))
        if on_chunk is not None:
            on_chunk(self.state)

    @torch.no_grad()
    def judge_clean(self) -> None:
        """Check the network on the first batch and find what is right without an attack."""
        with own_randomness(self.seed):
            for at in range(0, len(self.x), self.batch):
                x, y = self.x[at : at + self.batch], self.y[at : at + self.batch]
                if at == 0:
                    self.record["classes"] = check_model(self.judge, x, y, self.names, self.randomised_ok, self.log)
                self.state["broken_by"][at : at + self.batch] = is_wrong(self.judge(x), y).cpu().numpy() - 1

    def craft(self, name: str, net: Net, x: Tensor, y: Tensor, budget: Budget, **options) -> Tensor:
        """The component's images."""
        attack = component(name, net, eps=self.eps, seed=self.seed, device=x.device, budget=budget, log=self.log)
        return crafted(attack, x, y, self.eps, **options)

    @torch.no_grad()
    def attack(self, name: str, places: np.ndarray, budget: Budget) -> None:
        """Attack the images at these places and note what the judge gets wrong.

        Where only the model is wrong, the judge itself is attacked (a randomised one gets the image of highest loss).
        """
        began, budget = time.perf_counter(), replace(budget, targets=min(budget.targets, self.record["classes"] - 1))
        with own_randomness(self.seed):
            index = torch.from_numpy(places).to(self.x.device)
            x, y = self.x[index], self.y[index]
            x_adv = self.craft(name, self.model, x, y, budget)
            wrong = is_wrong(self.judge(x_adv), y)
            if self.judge is not self.model:
                flipped = is_wrong(self.model(x_adv), y) & ~wrong
                self.record["flips"][name] = self.record["flips"].get(name, 0) + int(flipped.sum())
                if flipped.any():
                    net, more = (self.model, {"best_loss": True}) if self.randomised_ok else (self.judge, {})
                    x_adv[flipped] = self.craft(name, net, x[flipped], y[flipped], budget, **more)
                    wrong = is_wrong(self.judge(x_adv), y)
        broken = places[wrong.cpu().numpy()]
        self.state["broken_by"][broken] = self.names.index(name) + 1
        if "x_adv" in self.state:
            self.state["x_adv"][broken] = x_adv[wrong].cpu().numpy()
        self.record["seconds"][name] = self.record["seconds"].get(name, 0.0) + time.perf_counter() - began

    def run(self, budget: Budget, on_chunk: Callable[[State], None] | None) -> None:
        """From wherever the state stands to the end."""
        if (self.state["broken_by"] == -2).any():
            self.judge_clean()
            self.save(on_chunk)
        for name in self.names:
            survivors = self.state.setdefault(f"start.{name}", np.flatnonzero(self.state["broken_by"] == -1))
            for at in range(self.record["done"].get(name, 0), len(survivors), self.batch):
                self.attack(name, survivors[at : at + self.batch], budget)
                self.record["done"][name] = at + self.batch
                self.save(on_chunk)

    def result(self) -> AutoAttackResult:
        """The finished state as tensors and flags."""
        from pyautoattack import checks

        by = torch.from_numpy(self.state["broken_by"].copy())
        after = {"clean": by != 0} | {name: (by == -1) | (by > i + 1) for i, name in enumerate(self.names)}
        checks.check_square_sr({name: float(right.double().mean()) for name, right in after.items()}, logger=self.log)
        flags: dict = {flag: flag in self.log.messages for flag in FLAGS}
        flags |= {"zero_gradient_points": self.log.zero_gradient_points, "messages": dict(self.log.messages)}
        kept = self.state.get("x_adv")
        x_adv = None if kept is None else torch.from_numpy(kept).to(self.x.device, self.model.dtype)
        flips, seconds = dict(self.record["flips"]), dict(self.record["seconds"])
        return AutoAttackResult(after.pop("clean"), by == -1, after, x_adv, flags, flips, seconds)


def _attacks_of(version: str, attacks) -> list[str]:
    if version == "custom" and attacks:
        if unknown := [name for name in attacks if name not in NAMES]:
            raise UsageError(f"unknown attack {unknown[0]!r}; choose one of {', '.join(NAMES)}")
        return list(attacks)
    if version in ("standard", "rand") and attacks is None:
        return list(STANDARD if version == "standard" else RAND)
    raise UsageError('version is "standard" or "rand" (which choose the attacks), or "custom" with attacks=(...)')


@torch.inference_mode(False)
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
    steps: int | None = None,
    queries: int | None = None,
    judge: Net | None = None,
    keep_images: bool = True,
    on_chunk: Callable[[State], None] | None = None,
    state: State | None = None,
) -> AutoAttackResult:
    """AutoAttack (Croce & Hein 2020): each attack gets what the ones before left correct.

    x: (N, C, H, W) in [0, 1], attacked in float32; y: (N,) int64; eps in pixels of [0, 1]; model: images to logits
    (N, K). judge: a differentiable net that alone decides what is right, for a `model` in a faster precision (version
    "rand": the mean of draws). state: arrays, brought up to date in place and given to on_chunk after every batch
    (which may raise); a call with such a state goes on there. UsageError for another evaluation's and wrong inputs.
    """
    check_images(x, y, empty=True)
    check_counts(steps=steps, queries=queries)
    names, state, rand = _attacks_of(version, attacks), {} if state is None else state, version == "rand"
    budget = Budget(100 if steps is None else steps, 5000 if queries is None else queries, draws=20 if rand else 1)
    network, y = Network(model, x[:batch], y), y.detach().contiguous().clone()
    judging, x = network if judge is None else Network(judge, x[:batch], y), x.detach().float().contiguous().clone()
    identity = {"attacks": names, "eps": check_eps(eps), "seed": seed, "batch": batch, "n": len(x)}
    identity |= {"keep_images": keep_images, "judged": judge is not None, "randomised_ok": rand, **asdict(budget)}
    identity["images"] = zlib.crc32(y.cpu().numpy().data, zlib.crc32(x.cpu().numpy().data))
    evaluation = _Evaluation(network, judging, x, y, state, identity)
    evaluation.run(budget, on_chunk)
    return evaluation.result()
