"""The same crafting and the same update as in `objectives`, faster.

N images, C channels, H and W pixels, K classes.
"""

import contextlib
import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fsr.attacks.gradient import project_linf
from fsr.config import Run
from fsr.hardware import exact_float32
from fsr.train.capture import NARROW, compiled, dtype_of, laid_out, narrowest, recorded, use_channels_last, use_winograd
from fsr.train.fastnet import FastNet, fast_net
from fsr.train.fold import Twin
from fsr.train.objectives import AWP, Crafting, craft_loss, craft_outputs, crafting, first_step

__all__ = ["Crafter", "FastNet", "Stepper", "ema_update", "fast_net", "sgd"]

MANY_STEPS = 2000  # crafting steps of a run from which compiling (about 10 s on a CPU) pays
# Largest share of pixels whose sign may differ between compiled and plain crafting: fusion rounds bf16 less often
# (a full-width ResNet-18 fresh from its initialisation: 0.3 %, and both differ from float32 in 4 %; wrong code: half).
MAY_DIFFER = {torch.float32: 0.01, torch.bfloat16: 0.2}


class Crafter:
    """Crafts a run's training images on a folded twin of the live model, refilled before each batch.

    model: the live network, which is laid out as `channels_last` says; run: what is crafted and in which precision;
    compile, graphs (CUDA), channels_last, winograd (float32 on a CPU): None for the default of this shape and device.
    `switches` says what is in use; it is final after the first batch, whose shape decides and on which compiled code
    must agree with plain code.
    """

    def __init__(
        self, model: nn.Module, run: Run, device="cpu", *, compile=None, channels_last=None, graphs=None, winograd=None
    ):
        self.model, self.run, self.device = model, run, torch.device(device)
        self.how = crafting(run) if run.method != "natural" else Crafting(start="uniform")
        cuda = self.device.type == "cuda"
        self.dtype = dtype_of(run.precision, self.device)
        self.switches: dict[str, Any] = {
            "compile": compile,
            "channels_last": use_channels_last(model, self.device) if channels_last is None else channels_last,
            "graphs": cuda and graphs is not False,
            "crafting": str(self.dtype).removeprefix("torch."),
        }
        self.switches["winograd"] = use_winograd(model, self.dtype, self.device) if winograd is None else winograd
        if cuda:
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
            self.switches["float32_convolutions"] = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        if self.switches["channels_last"]:
            cast(Any, model).to(memory_format=torch.channels_last)
        self.twin: Any = None  # a Twin from the first batch on
        self.exact: Any = None  # its float32 twin for the first step on KL, which bf16 rounding would drown
        self._loop: Any = None  # the compiled or recorded loop over whole batches, where there is one

    def craft(self, x: Tensor, y: Tensor, generator=None, *, start_noise: Tensor | None = None) -> Tensor:
        """Training images like x, float32, not part of any graph: as `objectives.craft`; natural training gets x."""
        if self.run.method == "natural":
            return x
        return self.attack(x, y, generator, start_noise=start_noise)

    @torch.no_grad()
    def attack(self, x: Tensor, y: Tensor, generator=None, *, source=None, start_noise: Tensor | None = None) -> Tensor:
        """The training attack (for natural runs, the one of plain AT) on source, by default the live model.

        x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64; any N. generator, start_noise: see `objectives.first_step`.
        source: a model of the same structure, as the running average; eval mode is the twin's own.
        """
        x = laid_out(x.detach(), self.switches["channels_last"])
        x_adv = project_linf(x + first_step(x, self.run, generator, start_noise), x, self.run.eps)
        if self.twin is None:
            self._prepare(x, y)
        for twin in (self.twin, self.exact):
            if twin is not None:
                twin.refill(self.model if source is None else source)
        climb = self._climb if self._loop is None else self._whole
        parts = [climb(*rows) for rows in zip(*(t.split(self.run.batch) for t in (x, x_adv, y)))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _clean(self, net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """The logits (N, K) that the KL loss starts from, as an optional last argument of a step."""
        return (net(x),) if self.how.loss == "kl" else ()

    def _step(self, net, x_adv: Tensor, x: Tensor, y: Tensor, clean: Tensor | None = None) -> Tensor:
        """One projected sign step on the crafting loss of net."""
        with torch.enable_grad():
            leaf = x_adv.detach().requires_grad_()
            loss = craft_loss(self.how, y, clean)(craft_outputs(net, self.how)(leaf))
            gradient = torch.autograd.grad(loss.sum(), leaf)[0]
        return project_linf(x_adv + self.run.alpha * gradient.sign(), x, self.run.eps)

    def _climb(self, x: Tensor, x_adv: Tensor, y: Tensor, step=None) -> Tensor:
        """All the steps from x_adv on; step: a faster `_step` on the twin."""
        steps = self.run.steps
        if self.exact is not None and steps:
            with exact_float32():  # nor may TensorFloat-32 drown it
                x_adv = self._step(self.exact.net, x_adv, x, y, *self._clean(self.exact.net, x))
            steps -= 1
        clean, step = self._clean(self.twin.net, x), partial(self._step, self.twin.net) if step is None else step
        for _ in range(steps):
            x_adv = step(x_adv, x, y, *clean)
        return x_adv

    def _whole(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """The fast loop on a batch filled up to the one size that it is made for; images do not see each other."""
        missing = self.run.batch - len(x)
        if not missing:
            return self._loop(x, x_adv, y)
        filled = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in (x, x_adv, y)]
        filled = [laid_out(t, self.switches["channels_last"]) if t.ndim == 4 else t for t in filled]
        return self._loop(*filled)[: len(x)]

    def _worth_compiling(self, x: Tensor) -> bool:
        """Measured: on a CPU it gains a quarter from 16 channels and 32 pixels on, and costs about 10 s."""
        if self.device.type == "cuda":
            return True
        batches = self.run.epochs * math.ceil((self.run.train_size or 50_000) / self.run.batch)
        return narrowest(self.model) >= NARROW and x.shape[-1] >= 32 and batches * self.run.steps >= MANY_STEPS

    def _prepare(self, x: Tensor, y: Tensor) -> None:
        """Make the twin, and the fast loop where it helps, on the first batch."""
        on = self.switches
        self.twin = Twin(
            self.model, x, dtype=self.dtype, channels_last=on["channels_last"], fewer_products=on["winograd"]
        )
        on["winograd"] = self.twin.winograd
        if self.how.loss == "kl" and self.twin.dtype == torch.bfloat16:
            self.exact = Twin(self.model, x, channels_last=on["channels_last"])
        on["crafting"] = str(self.twin.dtype).removeprefix("torch.")
        wanted = self._worth_compiling(x) if on["compile"] is None else on["compile"]
        rows = torch.arange(self.run.batch, device=x.device) % len(x)  # any batch, repeated or cut to the usual size
        x = laid_out(x[rows], on["channels_last"])
        noise = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device)
        x_adv = project_linf(x + self.run.eps * (2 * noise - 1), x, self.run.eps)  # far from x, where KL is not flat
        y, step = y[rows], None
        if wanted:
            net = self.twin.net
            example = (x_adv, x, y, *self._clean(net, x))
            step = compiled(partial(self._step, net), *example, may_differ=MAY_DIFFER[self.twin.dtype])
        on["compile"] = step is not None

        def loop(x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
            return self._climb(x, x_adv, y, step)

        recording = recorded(loop, x, x_adv, y) if on["graphs"] else None
        on["graphs"] = recording is not None
        self._loop = loop if recording is None and step is not None else recording


def sgd(model: nn.Module, run: Run, device: torch.device) -> torch.optim.SGD:
    """The authors' optimiser, SGD with momentum: one kernel for all weights on a GPU, grouped operations on a CPU."""
    own: dict[str, Any] = {"lr": run.lr, "momentum": run.momentum, "weight_decay": run.weight_decay}
    return torch.optim.SGD(model.parameters(), **own, **{"fused" if device.type == "cuda" else "foreach": True})


class Stepper:
    """One optimiser step at a time; losses and accuracy stay on the device until `tally`.

    objective: an Objective, or what wraps one; with precision bf16 its matrix products run in bf16 on float32
    master weights. compile: the objective and its gradients compiled (on a GPU as CUDA graphs); on a CPU that took
    minutes and gained nothing, on a GPU it is for `benchmarks.gpu` to say.
    """

    def __init__(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, run: Run, device="cpu", *, compile=False
    ):
        self.objective: Any = objective
        self.optimizer, self.run, self.device = optimizer, run, torch.device(device)
        if compile:
            self.objective = torch.compile(objective, mode="reduce-overhead" if self.device.type == "cuda" else None)
        self.bare: Any = getattr(objective, "module", objective)  # the Objective itself
        self.autocast = dtype_of(run.precision, self.device) == torch.bfloat16
        self.awp = AWP(self.bare, run.awp)
        convolution = next((p for p in objective.parameters() if p.ndim == 4), None)
        self.channels_last = convolution is not None and convolution.is_contiguous(memory_format=torch.channels_last)
        self._sums: dict[str, Tensor] = {}
        self._bad = 0

    def step(self, x: Tensor, x_adv: Tensor, y: Tensor, awp: bool = False) -> None:
        """One update on a batch: images (N, C, H, W) in [0, 1], labels (N,); awp: at perturbed weights."""
        x, x_adv = (laid_out(t, self.channels_last) for t in (x, x_adv))
        perturb = awp and self.run.awp > 0  # moves weights in place, which autocast's cache of them would not see
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=not perturb
            ))  # fmt: skip
            if perturb:
                stack.enter_context(self.awp.perturbed(x, x_adv, y))
            parts, logits = self.objective(x, x_adv, y)
            total = self.bare.total(parts)
            self.optimizer.zero_grad(set_to_none=True)  # of whatever a caller left there
            (total * self.bare.share).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)  # a recorded update reuses their memory in its next forward pass
        self._add({**parts, "total": total}, logits, y)

    @torch.no_grad()
    def _add(self, parts: dict[str, Tensor], logits: Tensor, y: Tensor) -> None:
        if not self._sums:
            names = (*parts, "adv_acc", "images", "steps", "bad")
            self._sums = {name: torch.zeros((), dtype=torch.float64, device=y.device) for name in names}
        sums, n = self._sums, len(y)
        values = torch.stack([v.detach().double() for v in parts.values()])
        first_bad = (sums["bad"] == 0) & ~torch.isfinite(values).all()
        sums["steps"] += 1
        sums["images"] += n
        sums["bad"] += sums["steps"] * first_bad
        sums["adv_acc"] += (logits.argmax(1) == y).sum()
        for name, value in zip(parts, values * n):
            sums[name] += value

    def state(self) -> dict[str, Tensor]:
        """The epoch's sums so far, for a resumed run; empty before its first step."""
        return dict(self._sums)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`; momentum takes on its weights' memory layout, which files do not keep."""
        self._sums = {k: v.clone().to(self.device) for k, v in state.items()}
        for parameter, own in self.optimizer.state.items():
            momentum = own.get("momentum_buffer")
            if momentum is not None and momentum.stride() != parameter.stride():
                own["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)

    def tally(self) -> dict[str, float]:
        """Means over the epoch's images of every loss part, of their total, and adv_acc; then everything starts anew.

        Synchronises with the device, once.
        """
        if not self._sums:
            return {}
        values = dict(zip(self._sums, torch.stack(list(self._sums.values())).tolist()))
        self._sums = {}
        images, self._bad = values.pop("images"), int(values.pop("bad"))
        values.pop("steps")
        return {name: value / images for name, value in values.items()}

    def first_bad_step(self) -> int:
        """The first step of the last tallied epoch, from 1, with a loss that is not finite; 0 if there is none."""
        return self._bad


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model, for parameters and floating buffers; counters are copied."""
    mine = [*ema.parameters(), *ema.buffers()]
    live = [*model.parameters(), *model.buffers()]
    floating = [(a, b) for a, b in zip(mine, live, strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1 - decay)
    counters = [(a, b) for a, b in zip(mine, live, strict=True) if not a.is_floating_point()]
    if counters:
        torch._foreach_copy_([a for a, _ in counters], [b for _, b in counters])
