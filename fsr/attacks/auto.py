"""AutoAttack and Square: attack by attack over the survivors, resumable after any batch.

N images, K classes. The components are `pyautoattack`'s own (Croce & Hein 2020; Andriushchenko et al. 2020). It reseeds
for every batch, so outcomes belong to an order of images and a batch size; both are part of the state's identity.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fsr.attacks.components import FLAGS, RAND, STANDARD, Budget, Log, check_model, check_square, component, isolated
from fsr.attacks.gradient import project_linf
from fsr.attacks.losses import Net, is_wrong
from fsr.files import UsageError

State = dict[str, np.ndarray]
# (attack, where its batches begin, what attacks one) to (where, what came of it) of each, in order
Share = Callable[[str, range, Callable[[int], dict]], Iterable[tuple[int, dict]]]


def alone(name: str, places: range, attacked: Callable[[int], dict]) -> Iterator[tuple[int, dict]]:
    """All batches in this process, one after the other."""
    return ((at, attacked(at)) for at in places)


@dataclass(frozen=True, kw_only=True)
class AutoAttackResult:
    """What AutoAttack found; all per-sample tensors on the CPU, in the order of x.

    clean, correct: (N,) bool before and after all attacks. outcomes: attack name to (N,) bool, still correct after it.
    x_adv: like x, the image that broke each sample, else x; None when not kept. flags: the package's warnings as
    booleans (FLAGS), zero_gradient_points and their messages. flips: per attack, images that the model got wrong and
    the judge right. seconds: per attack.
    """

    clean: Tensor
    correct: Tensor
    outcomes: dict[str, Tensor]
    x_adv: Tensor | None
    flags: dict
    flips: dict[str, int]
    seconds: dict[str, float]


def sane(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The final float32 image: inside the ball and [0, 1]; an image with a non-finite pixel becomes its clean one."""
    finite = torch.isfinite(x_adv).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return project_linf(torch.where(finite, x_adv.detach().float(), x), x, eps)


@torch.no_grad()
def _wrong(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """Where net errs, (N,) bool."""
    return is_wrong(net(x), y)


class _Loop:
    """The loop's settings and its state: a record (JSON) and arrays that grow attack by attack."""

    def __init__(self, model, judge, x, y, *, eps, attacks, budget, randomised_ok, seed, batch, device, state, keep):
        self.model, self.judge, self.x, self.y = model, judge or model, x, y
        self.eps, self.attacks, self.budget, self.seed, self.batch = eps, attacks, budget, seed, batch
        self.randomised_ok, self.device, self.state, self.log = randomised_ok, device, state, Log()
        self.identity = {
            "attacks": list(attacks),
            "eps": eps,
            "seed": seed,
            "batch": batch,
            "n": len(x),
            "keep_images": keep,
            "judged": judge is not None,
            "randomised_ok": randomised_ok,
            **asdict(budget),
            "images": zlib.crc32(y.cpu().numpy(), zlib.crc32(x.contiguous().cpu().numpy())),
        }
        self.record = self._opened(keep)

    def _opened(self, keep: bool) -> dict:
        """The record of a state that continues, or of a new one; another evaluation's state is refused."""
        if "record" in self.state:
            record = json.loads(str(self.state["record"]))
            other = [name for name, value in self.identity.items() if record["identity"].get(name) != value]
            if other:
                raise UsageError(f"this AutoAttack state is another evaluation's: it differs in {', '.join(other)}")
            self.log.join(record)
            return record
        # -2: not looked at, -1: still correct, 0: wrong without an attack, i + 1: broken by attacks[i]
        self.state["broken_by"] = np.full(len(self.x), -2, dtype=np.int8)
        if keep:
            self.state["x_adv"] = self.x.detach().cpu().numpy().copy()
        return {"identity": self.identity, "classes": 0, "done": {}, "flips": {}, "seconds": {}}

    def save(self, on_chunk) -> None:
        """Bring the record into the state and hand the state out."""
        self.record |= self.log.found()
        self.state["record"] = np.array(json.dumps(self.record))
        if on_chunk is not None:
            on_chunk(self.state)

    def rows(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images and labels of these places, on the device."""
        index = torch.from_numpy(numbers).to(self.x.device)
        return self.x[index].to(self.device), self.y[index].to(self.device)

    def clean(self) -> None:
        """Check the model on the first batch and find what is right without an attack."""
        numbers = np.arange(len(self.x))
        with isolated(self.seed):
            first = self.rows(numbers[: self.batch])
            self.record["classes"] = check_model(
                self.judge, *first, self.attacks, log=self.log, randomised_ok=self.randomised_ok
            )
            for at in range(0, len(numbers), self.batch):
                part = numbers[at : at + self.batch]
                self.state["broken_by"][part] = _wrong(self.judge, *self.rows(part)).cpu().numpy() - 1

    @torch.no_grad()
    def crafted(self, name: str, net: Net, x: Tensor, y: Tensor, log: Log, best_loss: bool = False) -> Tensor:
        """The component's images, made fit to be judged."""
        budget = replace(self.budget, targets=min(self.budget.targets, self.record["classes"] - 1))
        own = {"eps": self.eps, "seed": self.seed, "device": self.device, "budget": budget, "best_loss": best_loss}
        return sane(component(name, net, log=log, **own)(x, y), x, self.eps)

    def attacked(self, name: str, numbers: np.ndarray, at: int) -> dict:
        """Attack the batch of these images that begins at `at`, and judge it: what came of it.

        JSON-able, but for the images, which are there where they are kept.

        Where the model errs and the judge does not, the judge itself is attacked (a randomised one, too dear for that,
        gets the image of highest loss): else an image that only the fast model got wrong would never be attacked.
        """
        began, flips, log, part = time.perf_counter(), 0, Log(), numbers[at : at + self.batch]
        with isolated(self.seed):
            x, y = self.rows(part)
            x_adv = self.crafted(name, self.model, x, y, log)
            wrong = _wrong(self.judge, x_adv, y)
            if self.judge is not self.model:
                flipped = _wrong(self.model, x_adv, y) & ~wrong
                flips = int(flipped.sum())
                if flips:
                    net = self.model if self.randomised_ok else self.judge
                    more = {"best_loss": self.randomised_ok}
                    x_adv[flipped] = self.crafted(name, net, x[flipped], y[flipped], log, **more)
                    wrong = _wrong(self.judge, x_adv, y)
        found = {"broken": part[wrong.cpu().numpy()].tolist(), "flips": flips, **log.found()}
        images = {"images": x_adv[wrong].cpu().numpy()} if "x_adv" in self.state else {}
        return found | images | {"seconds": time.perf_counter() - began}

    def note(self, name: str, at: int, found: dict) -> None:
        """Bring what came of the batch that begins at `at` into the state."""
        self.state["broken_by"][found["broken"]] = self.attacks.index(name) + 1
        if "images" in found:
            self.state["x_adv"][found["broken"]] = found["images"]
        for what in ("flips", "seconds") if self.judge is not self.model else ("seconds",):
            self.record[what][name] = self.record[what].get(name, 0) + found[what]
        self.log.join(found)
        self.record["done"][name] = at + self.batch

    def run(self, on_chunk, share: Share) -> None:
        """From wherever the state stands to the end."""
        if (self.state["broken_by"] == -2).any():
            self.clean()
            self.save(on_chunk)
        for name in self.attacks:
            start = self.state.setdefault(f"start.{name}", np.flatnonzero(self.state["broken_by"] == -1))
            places = range(self.record["done"].get(name, 0), len(start), self.batch)
            for at, found in share(name, places, partial(self.attacked, name, start)):
                self.note(name, at, found)
                self.save(on_chunk)

    def result(self) -> AutoAttackResult:
        """The finished state as tensors and flags."""
        by = torch.from_numpy(self.state["broken_by"].copy())
        after = {"clean": by != 0} | {name: (by == -1) | (by > i + 1) for i, name in enumerate(self.attacks)}
        check_square({name: float(right.double().mean()) for name, right in after.items()}, self.log)
        flags: dict[str, object] = {flag: flag in self.log.flags for flag in FLAGS}
        flags |= {"zero_gradient_points": self.log.zero_gradient_points, "messages": dict(self.log.flags)}
        images = torch.from_numpy(self.state["x_adv"]).to(self.x.device) if "x_adv" in self.state else None
        clean = after.pop("clean")
        return AutoAttackResult(
            clean=clean,
            correct=by == -1,
            outcomes=after,
            x_adv=images,
            flags=flags,
            flips=dict(self.record["flips"]),
            seconds=dict(self.record["seconds"]),
        )


def _attacks_of(version: str, attacks) -> tuple[str, ...]:
    if version == "custom" and attacks:
        return tuple(attacks)
    if version in ("standard", "rand") and attacks is None:
        return STANDARD if version == "standard" else RAND
    raise UsageError('version is "standard" or "rand" (which choose the attacks), or "custom" with attacks=(...)')


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
    device=None,
    keep_images: bool = True,
    on_chunk: Callable[[State], None] | None = None,
    state: State | None = None,
    share: Share = alone,
) -> AutoAttackResult:
    """AutoAttack (Croce & Hein 2020): each attack gets what the ones before left correct.

    x: (N, C, H, W) in [0, 1], attacked in float32; y: (N,) int64; eps in pixels of [0, 1]. model: float32 images to
    logits (N, K), in the mode that the caller set. judge: a differentiable float32 net that alone decides what is
    right, for a `model` in a faster precision (or, version "rand", the mean of several draws).
    state: a dict of arrays, fit for one npz file; it is brought up to date in place and given to on_chunk after every
    batch (which may raise to stop), and a call with such a state continues exactly there. share: who attacks which of
    an attack's batches, which do not depend on each other. Raises UsageError for another evaluation's state.
    """
    names = _attacks_of(version, attacks)
    budget = Budget(steps=steps or 100, queries=queries or 5000, draws=20 if version == "rand" else 1)
    loop = _Loop(
        model,
        judge,
        x.detach().float().contiguous(),
        y,
        eps=eps,
        attacks=names,
        budget=budget,
        seed=seed,
        batch=batch,
        randomised_ok=version == "rand",
        device=torch.device(device or x.device),
        state={} if state is None else state,
        keep=keep_images,
    )
    loop.run(on_chunk, share)
    return loop.result()


@torch.no_grad()
def single(
    name: str, model: Net, x: Tensor, y: Tensor, *, eps: float, seed: int = 0, budget: Budget | None = None
) -> Tensor:
    """One component alone (a name of `components.NAMES`), x_adv like x; x where the model is wrong or stays right.

    Its randomness is the batch's: only the same images in the same order repeat it.
    """
    with isolated(seed):
        images = x.detach().float().contiguous()  # the package takes views
        classes = model(images[:1]).shape[1]
        if name == "apgd-dlr" and classes < 3:
            raise UsageError(f"apgd-dlr needs three classes, the network has {classes}")
        budget = budget or Budget(targets=min(9, classes - 1))
        attack = component(name, model, eps=eps, seed=seed, device=x.device, budget=budget, log=Log())
        return sane(attack(images, y), images, eps).to(x.dtype)


def square(model: Net, x: Tensor, y: Tensor, *, eps: float, queries: int = 5000, seed: int = 0) -> Tensor:
    """Square Attack alone (Andriushchenko et al. 2020), margin loss; x_adv like x.

    Its schedule of sizes is fitted to the queries, as in that paper; inside AutoAttack it is not, as in that package.
    """
    return single("square", model, x, y, eps=eps, seed=seed, budget=Budget(queries=queries, rescale=True))
