"""The same crafting as in `objectives`, faster: on a folded copy of the network, compiled and as one CUDA graph.

N images, C channels, H and W pixels, K classes. While an attack is crafted the network is in eval mode, where BatchNorm
is one multiply-add per channel: it folds exactly into the convolution that feeds it. Whatever does not give the plain
function's results is left out, and one line of the log says so.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fsr.attacks.gradient import project_linf
from fsr.config import Run
from fsr.hardware import bf16_is_fast, exact_float32
from fsr.models.modes import eval_mode
from fsr.train.fold import FoldedCopy, folded_copy
from fsr.train.objectives import craft, draw_start, full_precision, pgd_step, start

log = logging.getLogger("fsr")

Function = Callable[..., Tensor]
FAILURES = (RuntimeError, OSError)  # of tracing, of a missing or failing compiler, of graph capture
NARROW = 16  # channels; below, torch 2.15 can crash in channels-last backward passes on a CPU
RECOMPILE = 64  # variants of all networks' forward passes together; beyond torch's 8 it runs uncompiled, unsaid
MANY_STEPS = 2000  # crafting steps of a run from which compiling (about 10 s on a CPU) pays
# Largest share of pixels whose sign may differ between compiled and plain crafting: fusion rounds bf16 less often
# (a full-width ResNet-18 fresh from its initialisation: 0.3 %, and both differ from float32 in 4 %; wrong code: half).
MAY_DIFFER = {torch.float64: 0.01, torch.float32: 0.01, torch.bfloat16: 0.2}


def dtype_of(precision: str, model: nn.Module, device: torch.device) -> torch.dtype:
    """What crafting computes in: bf16 only where the processor multiplies it natively; a float64 network in float64."""
    if any(p.dtype == torch.float64 for p in model.parameters()):
        return torch.float64
    fast = precision == "bf16" and (device.type == "cuda" or bf16_is_fast())
    return torch.bfloat16 if fast else torch.float32


def narrowest(model: nn.Module) -> int:
    """Output channels of the narrowest convolution."""
    return min((m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)), default=0)


def use_channels_last(model: nn.Module, device: torch.device) -> bool:
    """The memory layout's default: channels last, except for narrow networks on a CPU."""
    return device.type == "cuda" or narrowest(model) >= NARROW


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """Images (N, C, H, W) in the memory layout asked for."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def disagreement(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> float:
    """Share of entries that differ by more than tolerance; NaN counts as differing."""
    return float((~((a - b).abs() <= tolerance)).float().mean())


def agreeing(name: str, make: Callable[[], Function], plain: Function, example, *, may_differ: float, tolerance=1e-6):
    """make(), where it agrees with plain on the example but for a share of may_differ; None, logged, if not."""
    try:
        fast = make()
        differing = disagreement(fast(*example), plain(*example), tolerance)
    except FAILURES as error:
        first = (str(error).strip().splitlines() or [""])[0][:160]
        log.warning("%s is left out: %s: %s", name, type(error).__name__, first)
        return None
    if differing > may_differ:
        log.warning("%s is left out: %.3g of its results differ", name, differing)
        return None
    return fast


def recorded(function: Function, example: tuple[Tensor, ...]) -> Function:
    """function as one CUDA graph on static buffers, for the example's shapes; results are copies.

    function: tensors to one tensor without host synchronisation.
    """
    buffers = [tensor.clone() for tensor in example]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up: libraries choose algorithms and allocate workspaces outside the graph
        for _ in range(2):
            function(*buffers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*buffers)

    def replay(*tensors: Tensor) -> Tensor:
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return result.clone()

    return replay


class Crafter:
    """Crafts a run's training images on a folded copy of the live model, refilled before each batch.

    model: the live network, which is laid out as `channels_last` says; run: what is crafted and in which precision;
    compile, graphs (CUDA), channels_last: None for the default of this shape and device. `switches` says what is in
    use; it is final after the first batch, whose shape decides.
    """

    def __init__(self, model: nn.Module, run: Run, device="cpu", *, compile=None, channels_last=None, graphs=None):
        self.model, self.run, self.device = model, run, torch.device(device)
        cuda = self.device.type == "cuda"
        self.channels_last = use_channels_last(model, self.device) if channels_last is None else channels_last
        self.switches: dict[str, Any] = {
            "compile": compile,
            "channels_last": self.channels_last,
            "graphs": cuda and graphs is not False,
            "crafting": str(dtype_of(run.precision, model, self.device)).removeprefix("torch."),
        }
        if cuda:
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
            self.switches["float32_convolutions"] = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ready = False
        self.copy: FoldedCopy | None = None  # None: crafting is on the network itself
        self.exact: FoldedCopy | None = None  # float32, for the first step on KL, which bf16 rounding would drown
        self._loop: Function = self._all_steps

    def craft(self, x: Tensor, y: Tensor, generator=None, *, noise: Tensor | None = None) -> Tensor:
        """Training images like x, float32, not part of any graph; natural training gets x itself."""
        return x if self.run.method == "natural" else self.attack(x, y, generator, noise=noise)

    @torch.no_grad()
    def attack(self, x: Tensor, y: Tensor, generator=None, *, source=None, noise: Tensor | None = None) -> Tensor:
        """The training attack (for natural runs, the one of plain AT) on source, by default the live model.

        x: (N, C, H, W) in [0, 1], any N; y: (N,) int64; generator, or noise: of the start (`objectives.draw_start`).
        source: a model of the same structure, as the running average; attacked in eval mode.
        """
        source = self.model if source is None else source
        x = laid_out(x.detach(), self.channels_last)
        x_adv = start(x, self.run, draw_start(x, self.run, generator) if noise is None else noise)
        if not self.ready:
            self._prepare(x, y)
        for copy in filter(None, (self.copy, self.exact)):
            copy.refill(source)
        with contextlib.ExitStack() as stack:
            loop = self._loop
            if self.copy is None:
                loop = partial(craft, stack.enter_context(eval_mode(source)), self.run)
            return torch.cat([loop(*rows) for rows in zip(*(t.split(self.run.batch) for t in (x_adv, x, y)))])

    def _all_steps(self, x_adv: Tensor, x: Tensor, y: Tensor, step=None) -> Tensor:
        """All the steps from x_adv on; step: a faster one on the copy."""
        steps = self.run.steps
        if self.exact is not None and steps:
            with exact_float32():  # nor may TensorFloat-32 drown it
                x_adv = craft(self.exact.net, self.run, x_adv, x, y, steps=1)
            steps -= 1
        return craft(self.copy.net, self.run, x_adv, x, y, step=step, steps=steps)

    def _filled(self, loop: Function, x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """loop on a batch filled up to the one size that it is made for; images do not see each other."""
        missing = self.run.batch - len(x)
        if not missing:
            return loop(x_adv, x, y)
        filled = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in (x_adv, x, y)]
        filled[:2] = [laid_out(t, self.channels_last) for t in filled[:2]]
        return loop(*filled)[: len(x)]

    def _worth_compiling(self, x: Tensor) -> bool:
        """Measured: on a CPU it gains a quarter from 16 channels and 32 pixels on, and costs about 10 s."""
        if self.device.type == "cuda":
            return True
        batches = self.run.epochs * math.ceil((self.run.train_size or 50_000) / self.run.batch)
        return narrowest(self.model) >= NARROW and x.shape[-1] >= 32 and batches * self.run.steps >= MANY_STEPS

    def _prepare(self, x: Tensor, y: Tensor) -> None:
        """Make the copy, and the fast loop where it helps, on the first batch."""
        on, run, self.ready = self.switches, self.run, True
        asked = self._worth_compiling(x) if on["compile"] is None else on["compile"]
        dtype = dtype_of(run.precision, self.model, self.device)
        self.copy = folded_copy(self.model, x, dtype=dtype, channels_last=self.channels_last)
        on["crafting"] = str(torch.float32 if self.copy is None else self.copy.dtype).removeprefix("torch.")
        if self.copy is None:
            on.update(compile=False, graphs=False)
            return
        if run.method == "trades" and self.copy.dtype == torch.bfloat16:
            self.exact = FoldedCopy(self.model, self.copy.pairs, torch.float32, self.channels_last)
        rows = torch.arange(run.batch, device=x.device) % len(x)  # any batch, repeated or cut to the usual size
        x, y = laid_out(x[rows], self.channels_last), y[rows]
        noise = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device, dtype=x.dtype)
        x_adv = project_linf(x + run.eps * (2 * noise - 1), x, run.eps)  # far from x, where KL is not flat
        step = self._compiled_step(x_adv, x, y) if asked else None
        loop: Function = partial(self._all_steps, step=step)
        graph = None
        if on["graphs"]:  # kernels that add in another order each time change signs, and later steps build on them
            example = (x_adv, x, y)
            graph = agreeing("the CUDA graph", lambda: recorded(loop, example), loop, example, may_differ=0.3)
        on["compile"], on["graphs"] = step is not None, graph is not None
        if step is not None or graph is not None:
            self._loop = partial(self._filled, graph or loop)

    def _compiled_step(self, *batch: Tensor) -> Function | None:
        """`pgd_step` on the copy compiled, gradients included; unrolled first, so that it may hold any Python."""
        net, run = self.copy.net, self.run
        example = (*batch, net(batch[1])) if run.method == "trades" else batch
        plain = lambda *tensors: pgd_step(net, run, *tensors)  # noqa: E731 - make_fx wants a plain function
        make = lambda: torch.compile(make_fx(plain)(*example), dynamic=False)  # noqa: E731
        return agreeing("compiled crafting", make, plain, example, may_differ=MAY_DIFFER[self.copy.dtype])


class FastNet(nn.Module):
    """A network for evaluation attacks to differentiate: model in eval mode, folded, in `precision`; logits float32.

    It is a copy, made at the first call from the model of that moment, with its interventions, or, where no copy is the
    same function, the model itself. compile, channels_last: None for the device's default.
    """

    def __init__(self, model: nn.Module, precision: str = "float32", *, compile=None, channels_last=None):
        super().__init__()
        device = next(model.parameters()).device
        self._model = [model]  # in a list: not a submodule
        self.dtype = dtype_of(precision, model, device)
        self.channels_last = use_channels_last(model, device) if channels_last is None else channels_last
        self.compile_asked = device.type == "cuda" if compile is None else compile
        self.net: Any = None  # None as well where the model itself is asked
        self.ready = False
        self._fast: Function | None = None

    def _prepare(self, x: Tensor) -> None:
        self.ready = True
        copy = folded_copy(self._model[0], x.detach(), dtype=self.dtype, channels_last=self.channels_last)
        if copy is None:
            self.dtype, self.channels_last = next(self._model[0].parameters()).dtype, False
            return
        self.net, self.dtype = copy.net, copy.dtype
        if self.compile_asked:
            x = laid_out(x.detach(), self.channels_last)
            limit = float(self.net(x).abs().max()) * (0.05 if self.dtype == torch.bfloat16 else 1e-3)
            how: dict[str, Any] = {"tolerance": limit, "may_differ": 0.0}
            self._fast = agreeing("compiled evaluation", lambda: _compiled_net(self.net, x), self.net, (x,), **how)

    @contextlib.contextmanager
    def _asked(self, x: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """(the network that is asked, a copy of the images that it may write into)."""
        if not self.ready:
            self._prepare(x)
        x = laid_out(x, True) if self.channels_last else x
        x = x.clone()
        if self.net is not None:
            yield self.net, x
        else:
            with eval_mode(self._model[0]) as net:
                yield net, x

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K) float32 at least, differentiable in x."""
        if self._fast is not None and len(x) == 1:  # a single image would be compiled as a shape of its own
            return self.forward(torch.cat([x, x]))[:1]
        with self._asked(x) as (net, x):
            if self._fast is None:
                return full_precision(net(x))
            torch._dynamo.maybe_mark_dynamic(x, 0)  # attacks drop the images they have broken: batches of any size
            return full_precision(self._fast(x))

    def trace(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list]:
        """Logits and streams of the copy, for attacks on more than the logits; not compiled."""
        with self._asked(x) as (net, x):
            logits, streams = net.trace(x, y)
            return full_precision(logits), streams

    @property
    def described(self) -> dict[str, str]:
        """What attacks are crafted in, for a record; final after the first call."""
        return {"dtype": str(self.dtype).removeprefix("torch.")}


def _compiled_net(net: nn.Module, x: Tensor) -> Function:
    """net compiled for any batch size, both passes: the backward pass is else compiled inside an attack."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE, torch._dynamo.config.recompile_limit)
    fast = torch.compile(net)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        torch._dynamo.maybe_mark_dynamic(leaf, 0)
        torch.autograd.grad(fast(leaf).float().sum(), leaf)
    return fast


def fast_net(model: nn.Module, precision: str = "float32", *, graphs=None, **switches) -> FastNet:
    """A network for evaluation attacks to differentiate, see FastNet; graphs, a switch of training, is not used."""
    return FastNet(model, precision, **switches)
