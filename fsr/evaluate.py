"""Per-sample outcomes of one attack on one network: crafted fast, judged in float32, resumable by chunk."""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fsr.attacks import ATTACKS, VARIANTS, autoattack
from fsr.attacks.gradient import is_wrong
from fsr.attacks.inputs import Network, check_images
from fsr.data import as_float
from fsr.files import UsageError, choose, sha256
from fsr.hardware import exact_float32, quick_float32
from fsr.models import intervene
from fsr.models.modes import eval_mode
from fsr.train.fast import FastNet

SEED = 0  # of every evaluation attack: a column means the same for every run


@dataclass
class Progress:
    """Outcomes so far, JSON-able."""

    done: int = 0
    correct: list[bool] = field(default_factory=list)
    flips: int = 0
    seconds: float = 0.0
    state: dict = field(default_factory=dict)  # what AutoAttack goes on from: name to an array as a list
    after: dict[str, list[bool]] = field(default_factory=dict)  # AutoAttack's parts to outcomes after each
    flags: dict = field(default_factory=dict)  # AutoAttack's warnings
    crafting: dict = field(default_factory=dict)  # the dtype that the images were crafted in


def batch_size(device: torch.device) -> int:
    """Images at once: a fixed number per kind of device, since some attacks depend on it."""
    return 1000 if device.type == "cuda" else 250


def images_sha256(x: Tensor, y: Tensor) -> str:
    """Digest of a test set, images (N, C, H, W) uint8 and labels (N,): columns of one row are of the same images."""
    content = [tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in (x, y)]
    return sha256(b"".join([str(tuple(x.shape)).encode(), *content]))


@torch.no_grad()
def is_correct(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Is each image classified correctly?  x (N, C, H, W) in [0, 1], y (N,) int64; returns (N,) bool."""
    check_images(x, y)
    with exact_float32():
        return ~is_wrong(Network(model, x, y)(x), y)


@quick_float32()
def evaluate_attack(
    model, x, y, index, *, run, evaluation, surrogate=None, progress=None, on_chunk=lambda _: None, check=lambda: None
) -> Progress:
    """Which images are still classified correctly under the evaluation's attack, by the float32 model.

    x: (N, C, H, W) uint8; y: (N,) int64; index: (N,) places in the test set, which seed the random starts. run: a Run;
    evaluation: an Evaluation; progress: of an earlier call; on_chunk(progress), and check() before every pass, may
    raise to stop. UsageError for unfit images and labels.
    """
    name, progress = evaluation.attack, Progress() if progress is None else progress
    if not 0 < len(x) == len(y) == len(index):
        raise UsageError(f"{len(x)} images, {len(y)} labels, {len(index)} places do not fit or are empty")
    if name in VARIANTS and {evaluation.steps, evaluation.surrogate, surrogate} != {None}:
        raise UsageError(f"{name} has steps of its own and attacks the network itself; leave out steps and surrogate")
    x = x.to(device := next((p.device for p in model.parameters()), x.device))
    y, index, some = y.to(device), torch.as_tensor(index), as_float(x[: batch_size(device)])

    def judge(some: Tensor) -> Tensor:
        check()
        with exact_float32():
            return model(some.clone())

    changed = intervene(model, evaluation.intervention) if evaluation.intervention else nullcontext()
    with eval_mode(surrogate or model), eval_mode(model), changed:
        net = FastNet(model, some, run.precision, compile=None if name in VARIANTS else False)
        net.register_forward_pre_hook(lambda *_: check())  # a chunk can take minutes
        eps = run.eps if evaluation.eps is None else evaluation.eps
        if name in VARIANTS:
            _autoattack(net, judge, as_float(x), y, eps, VARIANTS[name], progress, on_chunk)
        else:
            how = {"eps": eps, "steps": evaluation.steps, "surrogate": surrogate}
            _by_chunks(choose("attack", name, ATTACKS), net, judge, x, y, index, progress, on_chunk, how)
    progress.crafting = {"dtype": str(net.dtype if surrogate is None else torch.float32).removeprefix("torch.")}
    return progress


def _by_chunks(attack, net, judge, x: Tensor, y: Tensor, index, progress: Progress, on_chunk, how: dict) -> None:
    def crafted(target, rows: Tensor) -> Tensor:
        return attack(target, as_float(x[rows]), y[rows], seed=SEED, indices=index[rows], **how)

    for at in range(progress.done, len(y), size := batch_size(x.device)):
        started, rows = time.monotonic(), torch.arange(len(y))[at : at + size]
        x_adv = crafted(net, rows)
        correct, fast = (is_correct(each, x_adv, y[rows]) for each in (judge, net))
        progress.flips += int((correct != fast).sum())
        again = (correct & ~fast).cpu()
        if attack.survivors_ok and again.any():  # there the judge itself is attacked
            correct[again] = is_correct(judge, crafted(judge, rows[again]), y[rows[again]])
        progress.correct += correct.tolist()
        progress.done += len(rows)
        progress.seconds += time.monotonic() - started
        on_chunk(progress)


def _autoattack(net, judge, x: Tensor, y: Tensor, eps: float, variant: dict, progress: Progress, on_chunk) -> None:
    before, started = progress.seconds, time.monotonic()
    state = {name: np.array(values) for name, values in progress.state.items()}

    def remember(state: dict[str, np.ndarray]) -> None:
        record = json.loads(str(state["record"]))
        progress.done = min(sum(record["done"].values()) // len(record["identity"]["attacks"]), len(y) - 1)
        progress.state = {name: array.tolist() for name, array in state.items()}
        progress.seconds = before + time.monotonic() - started
        on_chunk(progress)

    how = {"eps": eps, "seed": SEED, "batch": batch_size(x.device), "keep_images": False, **variant}
    result = autoattack(net, x, y, judge=judge, state=state, on_chunk=remember, **how)
    progress.done, progress.correct = len(y), result.correct.tolist()
    progress.flips, progress.flags = sum(result.flips.values()), result.flags
    progress.after = {name: outcome.tolist() for name, outcome in result.outcomes.items()}
    on_chunk(progress)
