"""Per-sample outcomes of one attack on one network: crafted fast, judged in float32, resumable by chunk."""

import base64
import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fsr.attacks import VARIANTS, AttackInfo, attack_named
from fsr.attacks.auto import Share, alone, autoattack
from fsr.attacks.gradient import check_images
from fsr.attacks.losses import is_wrong
from fsr.config import Evaluation, Run
from fsr.data import as_float
from fsr.files import UsageError, npz_bytes
from fsr.hardware import Exact, exact_float32
from fsr.models import intervene
from fsr.models.modes import eval_mode
from fsr.train.fast import FastNet, fast_net

# From so many images on AutoAttack on a GPU is left to compile, which takes half a minute or so (estimated).
MANY_IMAGES = 2000
SEED = 0  # of every evaluation attack: a column means the same for every run


@dataclass
class Progress:
    """Outcomes so far, JSON-able.

    state: what AutoAttack goes on from, an npz in base64; after: attack name to outcomes after it; flags: its warnings;
    crafting: what the images are crafted in, see `FastNet.described`.
    """

    done: int = 0
    correct: list[bool] = field(default_factory=list)
    flips: int = 0
    seconds: float = 0.0
    state: str = ""
    after: dict[str, list[bool]] = field(default_factory=dict)
    flags: dict = field(default_factory=dict)
    crafting: dict = field(default_factory=dict)


def batch_size(device: torch.device, evaluation: Evaluation) -> int:
    """Images at once: a fixed number per kind of device, since some attacks depend on it."""
    return 1000 if device.type == "cuda" else 250


@torch.no_grad()
def right(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Is each image classified correctly?  x (N, C, H, W) in [0, 1], y (N,); returns (N,) bool."""
    with exact_float32():
        return ~is_wrong(model(x), y)


class _Watched(nn.Module):
    """A network that looks before every pass whether it is time to stop: a chunk can take minutes."""

    def __init__(self, net: FastNet, check: Callable[[], None]):
        super().__init__()
        self.net, self.check = net, check

    def forward(self, x: Tensor) -> Tensor:
        self.check()
        return self.net(x)

    @property
    def described(self) -> dict:
        """What the network computes in."""
        return self.net.described

    def trace(self, x: Tensor, y: Tensor | None = None):
        """Logits and streams, for attacks on more than the logits."""
        self.check()
        return self.net.trace(x, y)


@contextlib.contextmanager
def _prepared(model: nn.Module, run: Run, evaluation: Evaluation, switches: dict, check: Callable[[], None], n: int):
    """(the float32 judge, the network to differentiate), in eval mode, under the evaluation's intervention.

    n: images in all.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        if evaluation.intervention:
            stack.enter_context(intervene(model, evaluation.intervention))
        if evaluation.attack not in VARIANTS or n < MANY_IMAGES:
            switches = {"compile": False, **switches}
        yield model, _Watched(fast_net(model, precision=run.precision, **switches), check)


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
    share: Share = alone,
) -> Progress:
    """Which images are still classified correctly under the evaluation's attack.

    x: (N, C, H, W) uint8; y: (N,); index: (N,) places in the test set, which seed the random starts, so
    that an outcome does not depend on the batch. A sample is broken only if the float32 model errs on the
    final clipped float32 image; flips counts where the faster crafting network judged otherwise, and an attack that
    stops at the first error goes on there, on the float32 model.
    progress: from an earlier call that was stopped; on_chunk may raise to stop; share: see `attacks.auto.autoattack`.
    UsageError for an empty batch, images that are not uint8 (N, C, H, W), labels that the network has no class for, or
    steps for AutoAttack.
    """
    _check(model, x, y, index)
    progress = progress or Progress()
    if evaluation.attack in VARIANTS:
        return _autoattack(model, x, y, run, evaluation, switches or {}, progress, on_chunk, check, share)
    device = next(model.parameters()).device
    attack, eps = attack_named(evaluation.attack), run.eps if evaluation.eps is None else evaluation.eps
    options = {"steps": evaluation.steps, "surrogate": surrogate}
    options = {k: v for k, v in options.items() if v is not None}
    size = batch_size(device, evaluation)
    with _prepared(model, run, evaluation, switches or {}, check, len(y)) as (judge, net):
        while progress.done < len(y):
            started = time.monotonic()
            chunk = slice(progress.done, progress.done + size)
            xs, ys = as_float(x[chunk]).to(device), y[chunk].to(device)
            check_images(xs, ys)
            verdict, flips = _judged(attack, judge, net, xs, ys, index[chunk], check, eps=eps, **options)
            progress.correct += verdict.tolist()
            progress.flips += flips
            progress.done += len(ys)
            progress.crafting = net.described if surrogate is None else _plainly(surrogate)
            progress.seconds += time.monotonic() - started
            if on_chunk:
                on_chunk(progress)
    return progress


def _plainly(surrogate: Callable[[Tensor], Tensor]) -> dict:
    """How another network is differentiated, which no copy is made of: in its own format."""
    weights = next(surrogate.parameters(), None) if isinstance(surrogate, nn.Module) else None
    return {} if weights is None else {"dtype": str(weights.dtype).removeprefix("torch.")}


def inside(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """x_adv in float32 and [0, 1]; UsageError where it is more than eps away, but for rounding, or no number."""
    if x_adv.shape != x.shape:
        raise UsageError(f"the attack gave {tuple(x_adv.shape)} for images {tuple(x.shape)}; nothing is recorded")
    x_adv = x_adv.float().clamp(0, 1)
    moved = float((x_adv - x).abs().amax())
    if not moved <= eps + 1e-4:
        raise UsageError(
            f"the attack moved a pixel by {moved:.3g}, more than eps = {eps:.3g}; end it with "
            "fsr.attacks.gradient.project_linf (nothing is recorded)"
        )
    return x_adv


def _judged(attack: AttackInfo, judge, net, x: Tensor, y: Tensor, index: Tensor, check, **more) -> tuple[Tensor, int]:
    """(what the judge still gets right under the attack on net, (N,) bool; where the two networks disagree).

    An attack that stops at the first error goes on, on the judge, where only net made it.
    """
    x_adv = inside(attack(net, x, y, seed=SEED, indices=index, **more), x, more["eps"])
    verdict, fast = (right(each, x_adv, y) for each in (judge, net))
    again, flips = verdict & ~fast, int((verdict != fast).sum())
    if attack.survivors_ok and again.any():
        exact, places = Exact(judge, check), index[again.cpu()]
        x_adv = inside(attack(exact, x[again], y[again], seed=SEED, indices=places, **more), x[again], more["eps"])
        verdict[again] = right(judge, x_adv, y[again])
    return verdict, flips


@torch.no_grad()
def _check(model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> None:
    """Refuse what would give a number that means nothing; labels against the classes that the network has."""
    check_images(as_float(x[:1]), y[:1])
    if not len(x) == len(y) == len(index):
        raise UsageError(f"{len(x)} images, {len(y)} labels and {len(index)} places in the test set do not fit")
    with eval_mode(model):
        classes = model(as_float(x[:1]).to(next(model.parameters()).device)).shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise UsageError(
            f"labels reach from {int(y.min())} to {int(y.max())}, the network has classes 0..{classes - 1}"
        )


def _autoattack(model, x, y, run, evaluation, switches, progress: Progress, on_chunk, check, share) -> Progress:
    """AutoAttack with its own resumable loop: survivors only, batches of fixed size, judged in float32."""
    if evaluation.steps is not None:
        raise UsageError(f"{evaluation.attack} has steps of its own; leave out steps={evaluation.steps}")
    device = next(model.parameters()).device
    state = _unpacked(progress.state)
    before, started = progress.seconds, time.monotonic()

    def remember(state: dict) -> None:
        progress.state, progress.seconds = _packed(state), before + time.monotonic() - started
        progress.done = int(_share_done(state) * (len(y) - 1))
        if on_chunk:
            on_chunk(progress)

    xs, ys = as_float(x).to(device), y.to(device)
    check_images(xs, ys)
    with _prepared(model, run, evaluation, switches, check, len(y)) as (judge, net):
        result = autoattack(
            net, xs, ys, eps=run.eps if evaluation.eps is None else evaluation.eps, seed=SEED,
            judge=Exact(judge, check), batch=batch_size(device, evaluation), keep_images=False, state=state,
            on_chunk=remember, share=share, **VARIANTS[evaluation.attack],
        )  # fmt: skip
    progress.seconds, progress.crafting = before + time.monotonic() - started, net.described
    progress.done, progress.correct = len(y), result.correct.tolist()
    progress.flips, progress.flags = sum(result.flips.values()), result.flags
    progress.after = {name: outcome.tolist() for name, outcome in result.outcomes.items()}
    if on_chunk:
        on_chunk(progress)
    return progress


def _share_done(state: dict[str, np.ndarray]) -> float:
    """How much of AutoAttack is done, in [0, 1]: its attacks count the same, each by the images that it was given."""
    record = json.loads(str(state["record"]))
    shares = [min(1.0, done / len(state[f"start.{name}"])) for name, done in record["done"].items()]
    return sum(shares) / len(record["identity"]["attacks"])


def _packed(state: dict[str, np.ndarray]) -> str:
    return base64.b64encode(npz_bytes(**state)).decode()


def _unpacked(text: str) -> dict[str, np.ndarray]:
    if not text:
        return {}
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
