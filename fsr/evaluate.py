"""Per-sample outcomes of one attack on one network: crafted fast, judged in float32, resumable by chunk."""

import base64
import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fsr.attacks import VARIANTS, attack_named, autoattack
from fsr.attacks.inputs import check_images
from fsr.attacks.losses import is_wrong
from fsr.config import Evaluation, Run
from fsr.data import as_float
from fsr.files import UsageError, npz_bytes
from fsr.hardware import Exact, exact_float32
from fsr.models import intervene
from fsr.models.modes import eval_mode
from fsr.train.fast import FastNet

# From so many images on AutoAttack on a GPU is left to compile, which takes half a minute or so (estimated).
MANY_IMAGES = 2000
SEED = 0  # of every evaluation attack: a column means the same for every run


@dataclass
class Progress:
    """Outcomes so far, JSON-able."""

    done: int = 0
    correct: list[bool] = field(default_factory=list)
    flips: int = 0
    seconds: float = 0.0
    state: str = ""  # what AutoAttack goes on from, an npz in base64
    after: dict[str, list[bool]] = field(default_factory=dict)  # AutoAttack's parts to outcomes after each
    flags: dict = field(default_factory=dict)  # AutoAttack's warnings
    crafting: dict = field(default_factory=dict)  # see `FastNet.described`


def batch_size(device: torch.device) -> int:
    """Images at once: a fixed number per kind of device, since some attacks depend on it."""
    return 1000 if device.type == "cuda" else 250


def images_sha256(x: Tensor, y: Tensor) -> str:
    """Digest of a test set, images (N, C, H, W) uint8 and labels (N,): columns of one row are of the same images."""
    digest = hashlib.sha256(str(tuple(x.shape)).encode())
    for tensor in (x, y):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def is_correct(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Is each image classified correctly?  x (N, C, H, W) in [0, 1], y (N,) int64; returns (N,) bool."""
    check_images(x, y, empty=True)
    with exact_float32():
        return ~is_wrong(model(x.clone()), y)


def evaluate_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    index: Tensor,
    *,
    run: Run,
    evaluation: Evaluation,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    switches: dict | None = None,
    progress: Progress | None = None,
    on_chunk: Callable[[Progress], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Progress:
    """Which images are still classified correctly under the evaluation's attack.

    x: (N, C, H, W) uint8; y: (N,) int64; index: (N,) places in the test set, which seed the random starts. A sample is
    broken only if the float32 model errs on the final clipped float32 image; flips counts where the faster crafting
    network judged otherwise. progress: from an earlier call that was stopped; on_chunk, check (before every pass): may
    raise to stop. UsageError for wrong images or labels, and for steps for AutoAttack.
    """
    _check(model, x, y, index)
    if evaluation.attack in VARIANTS and evaluation.steps is not None:
        raise UsageError(f"{evaluation.attack} has steps of its own; leave out steps={evaluation.steps}")
    progress, on_chunk = progress or Progress(), on_chunk or (lambda _: None)
    switches = dict(switches or {})
    if evaluation.attack not in VARIANTS or len(y) < MANY_IMAGES:
        switches.setdefault("compile", False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        if evaluation.intervention:
            stack.enter_context(intervene(model, evaluation.intervention))
        net = FastNet(model, precision=run.precision, **switches)
        net.register_forward_pre_hook(lambda *_: check())  # a chunk can take minutes
        eps = run.eps if evaluation.eps is None else evaluation.eps
        judge = Exact(model, check)
        if evaluation.attack in VARIANTS:
            _autoattack(net, judge, x, y, eps, VARIANTS[evaluation.attack], progress, on_chunk)
        else:
            options = {"eps": eps, "steps": evaluation.steps, "surrogate": surrogate}
            _in_chunks(evaluation.attack, net, judge, x, y, index, options, progress, on_chunk)
    return progress


def _in_chunks(name: str, net, judge, x, y, index, options: dict, progress: Progress, on_chunk) -> None:
    """An attack by name, chunk by chunk from where progress stands."""
    device, surrogate = next(judge.parameters()).device, options["surrogate"]
    while progress.done < len(y):
        started = time.monotonic()
        chunk = slice(progress.done, progress.done + batch_size(device))
        xs, ys = as_float(x[chunk]).to(device), y[chunk].to(device)
        correct, flips = _judged(name, net, judge, xs, ys, index[chunk], options)
        progress.correct += correct.tolist()
        progress.flips += flips
        progress.done += len(ys)
        weights = next(surrogate.parameters(), None) if isinstance(surrogate, nn.Module) else None
        other = {} if weights is None else {"dtype": str(weights.dtype).removeprefix("torch.")}
        progress.crafting = net.described if surrogate is None else other
        progress.seconds += time.monotonic() - started
        on_chunk(progress)


def _judged(name: str, net, judge, x: Tensor, y: Tensor, index: Tensor, options: dict) -> tuple[Tensor, int]:
    """(what the judge still gets right under the attack on net, (N,) bool; where the two networks disagree).

    An attack that stops at the first error goes on, on the judge, where only net made it.
    """
    attack = attack_named(name)

    def crafted(target, rows) -> Tensor:
        x_adv = attack(target, x[rows], y[rows], seed=SEED, indices=index[rows.to(index.device)], **options)
        return inside(x_adv, x[rows], options["eps"])

    every = torch.arange(len(y), device=y.device)
    x_adv = crafted(net, every)
    correct, fast = (is_correct(each, x_adv, y) for each in (judge, net))
    again, flips = every[correct & ~fast], int((correct != fast).sum())
    if attack.survivors_ok and len(again):
        correct[again] = is_correct(judge, crafted(judge, again), y[again])
    return correct, flips


def inside(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """x_adv in float32 and [0, 1]; UsageError where it is more than eps away, but for rounding, or no number."""
    if x_adv.shape != x.shape:
        raise UsageError(f"the attack gave {tuple(x_adv.shape)} for images {tuple(x.shape)}; nothing is recorded")
    x_adv = x_adv.float().clamp(0, 1)
    moved = float((x_adv - x).abs().amax())
    if not moved <= eps + 1e-4:
        far = f"the attack moved a pixel by {moved:.3g}, more than eps = {eps:.3g}"
        raise UsageError(f"{far}; end it with fsr.attacks.gradient.project_linf (nothing is recorded)")
    return x_adv


@torch.no_grad()
def _check(model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> None:
    """Refuse what would give a number that means nothing, before anything runs."""
    first = as_float(x[:1]).to(next(model.parameters()).device)
    check_images(first, y[:1].to(first.device))
    if not len(x) == len(y) == len(index):
        raise UsageError(f"{len(x)} images, {len(y)} labels and {len(index)} places in the test set do not fit")
    with eval_mode(model):
        check_images(first.expand(len(y), -1, -1, -1), y, model(first.clone()).shape[1])


def _autoattack(net, judge, x, y, eps: float, variant: dict, progress: Progress, on_chunk) -> None:
    """AutoAttack with its own resumable loop: survivors only, batches of fixed size, judged in float32."""
    device = next(judge.parameters()).device
    before, started = progress.seconds, time.monotonic()

    def remember(state: dict[str, np.ndarray]) -> None:
        progress.state = base64.b64encode(npz_bytes(**state)).decode()
        progress.seconds = before + time.monotonic() - started
        progress.done = int(_share_done(state) * (len(y) - 1))
        on_chunk(progress)

    state = {}
    if progress.state:
        with np.load(io.BytesIO(base64.b64decode(progress.state)), allow_pickle=False) as arrays:
            state = dict(arrays)
    xs, ys = as_float(x).to(device), y.to(device)
    how = {"eps": eps, "seed": SEED, "batch": batch_size(device), "keep_images": False, **variant}
    result = autoattack(net, xs, ys, judge=judge, state=state, on_chunk=remember, **how)
    progress.seconds, progress.crafting = before + time.monotonic() - started, net.described
    progress.done, progress.correct = len(y), result.correct.tolist()
    progress.flips, progress.flags = sum(result.flips.values()), result.flags
    progress.after = {name: outcome.tolist() for name, outcome in result.outcomes.items()}
    on_chunk(progress)


def _share_done(state: dict[str, np.ndarray]) -> float:
    """How much of AutoAttack is done, in [0, 1]: its attacks count the same, each by the images that it was given."""
    record = json.loads(str(state["record"]))
    shares = [min(1.0, done / len(state[f"start.{name}"])) for name, done in record["done"].items()]
    return sum(shares) / len(record["identity"]["attacks"])
