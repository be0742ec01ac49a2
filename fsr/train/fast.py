"""The same crafting as in `objectives`, faster: on a folded copy of the network, compiled and as one CUDA graph.

What does not give the plain function's results is left out, and one line of the log says so.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fsr.attacks.gradient import project_linf
from fsr.config import Run
from fsr.hardware import exact_float32
from fsr.models.modes import eval_mode
from fsr.train.fold import NARROW, FoldedCopy, dtype_of, folded_copy, laid_out, narrowest, use_channels_last
from fsr.train.objectives import craft, draw_start, full_precision, pgd_step, start

log = logging.getLogger("fsr")

Function = Callable[..., Tensor]
FAILURES = (RuntimeError, OSError)  # of tracing, of a missing or failing compiler, of graph capture
RECOMPILE = 64  # variants of all networks' forward passes together; beyond torch's 8 it runs uncompiled, unsaid
MANY_STEPS = 2000  # crafting steps of a run from which compiling (about 10 s on a CPU) pays
# Largest share of signs that may differ when compiled: bf16 is rounded less often (0.3 % seen; wrong code: 50 %).
MAY_DIFFER = {torch.float64: 0.01, torch.float32: 0.01, torch.bfloat16: 0.2}


def disagreement(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> float:
    """Share of entries that differ by more than tolerance; NaN counts as differing."""
    return float((~((a - b).abs() <= tolerance)).float().mean())


def agreeing(name: str, make: Callable[[], Function], plain: Function, example, *, may_differ: float, tolerance=1e-6):
    """make(), where it agrees with plain on the example but for a share of may_differ; None, logged, if not."""
    try:
        fast = make()
        differing = disagreement(fast(*example), plain(*example), tolerance)
        if differing <= may_differ:
            return fast
        reason = f"{differing:.3g} of its results differ"
    except FAILURES as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    log.warning("%s is left out: %s", name, reason)


def recorded(function: Function, example: tuple[Tensor, ...]) -> Function:
    """function, without host synchronisation, as one CUDA graph for the example's shapes; results are copies."""
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

    model: the live network, which is laid out as `channels_last` says; compile, graphs (CUDA), channels_last: None for
    the default. `switches`: what is in use, final after a batch.
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
        self.copy: Any = None  # a FoldedCopy; None: crafting is on the network itself
        self.exact: Any = None  # another in float32, for the first step on KL, which bf16 rounding would drown
        self._loop: Function = self._all_steps

    def craft(self, x: Tensor, y: Tensor, generator=None, *, noise: Tensor | None = None) -> Tensor:
        """Training images like x, float32, not part of any graph; natural training gets x itself."""
        return x if self.run.method == "natural" else self.attack(x, y, generator, noise=noise)

    @torch.no_grad()
    def attack(self, x: Tensor, y: Tensor, generator=None, *, source=None, noise: Tensor | None = None) -> Tensor:
        """The training attack (for natural runs, the one of plain AT) on source, by default the live model.

        x: (N, C, H, W) in [0, 1]; y: (N,) int64; generator, or noise: of the start; source: attacked in eval mode.
        """
        source = self.model if source is None else source
        x = laid_out(x.detach(), self.channels_last)
        x_adv = start(x, self.run, draw_start(x, self.run, generator) if noise is None else noise)
        if not self.ready:
            self._prepare(x, y)
        for copy in filter(None, (self.copy, self.exact)):
            copy.refill(source)
        with nullcontext() if self.copy else eval_mode(source):
            loop = self._loop if self.copy else partial(craft, source, self.run)
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
        n, rows = len(x), torch.arange(self.run.batch, device=x.device).clamp_max(len(x) - 1)
        if n == self.run.batch:
            return loop(x_adv, x, y)
        return loop(*(laid_out(t[rows], self.channels_last) for t in (x_adv, x)), y[rows])[:n]

    def _worth_compiling(self, x: Tensor) -> bool:
        """Measured: on a CPU it gains a quarter from 16 channels and 32 pixels on, and costs about 10 s."""
        steps = self.run.steps * self.run.epochs * math.ceil((self.run.train_size or 50_000) / self.run.batch)
        large = narrowest(self.model) >= NARROW and x.shape[-1] >= 32
        return self.device.type == "cuda" or (large and steps >= MANY_STEPS)

    def _prepare(self, x: Tensor, y: Tensor) -> None:
        """Make the copy, and the fast loop where it helps, on the first batch."""
        on, run, self.ready = self.switches, self.run, True
        dtype = dtype_of(run.precision, self.model, self.device)
        self.copy = folded_copy(self.model, x, dtype=dtype, channels_last=self.channels_last)
        if self.copy is None:
            on.update(compile=False, graphs=False, crafting="float32")
            return
        on["crafting"] = str(self.copy.dtype).removeprefix("torch.")
        if run.method == "trades" and self.copy.dtype == torch.bfloat16:
            self.exact = FoldedCopy(self.model, self.copy.pairs, torch.float32, self.channels_last)
        rows = torch.arange(run.batch, device=x.device) % len(x)  # any batch, repeated or cut to the usual size
        x, y = laid_out(x[rows], self.channels_last), y[rows]
        noise = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device, dtype=x.dtype)
        x_adv = project_linf(x + run.eps * (2 * noise - 1), x, run.eps)  # far from x, where KL is not flat
        asked = self._worth_compiling(x) if on["compile"] is None else on["compile"]
        step, graph, example = self._compiled_step(x_adv, x, y) if asked else None, None, (x_adv, x, y)
        loop: Function = partial(self._all_steps, step=step)
        if on["graphs"]:  # kernels that add in another order each time change signs, and later steps build on them
            graph = agreeing("the CUDA graph", partial(recorded, loop, example), loop, example, may_differ=0.3)
        on["compile"], on["graphs"] = step is not None, graph is not None
        if on["compile"] or on["graphs"]:  # a compiled function has no truth value
            loop = partial(self._filled, loop if graph is None else graph)
        self._loop = loop

    def _compiled_step(self, *batch: Tensor) -> Function | None:
        """`pgd_step` on the copy compiled, gradients included; unrolled first, so that it may hold any Python."""
        net, run = self.copy.net, self.run
        example = (*batch, net(batch[1])) if run.method == "trades" else batch
        plain = lambda *tensors: pgd_step(net, run, *tensors)  # noqa: E731 - make_fx wants a plain function
        make = lambda: torch.compile(make_fx(plain)(*example), dynamic=False)  # noqa: E731
        return agreeing("compiled crafting", make, plain, example, may_differ=MAY_DIFFER[self.copy.dtype])


class FastNet(nn.Module):
    """A network for evaluation attacks to differentiate: model in eval mode, folded, in `precision`; logits float32.

    A copy made at the first call, with the interventions of then, or, where none is the same function, the model.
    compile, channels_last: None for the default; graphs, a switch of training, is not used.
    """

    def __init__(self, model: nn.Module, precision="float32", *, compile=None, channels_last=None, graphs=None):
        super().__init__()
        device = next(model.parameters()).device
        self._model = [model]  # in a list: not a submodule
        self.dtype = dtype_of(precision, model, device)
        self.channels_last = use_channels_last(model, device) if channels_last is None else channels_last
        self.compiles = device.type == "cuda" if compile is None else compile
        self.ready, self.net = False, None  # None: the model itself is asked
        self._fast: Any = None

    def _prepare(self, x: Tensor) -> None:
        self.ready, x = True, laid_out(x.detach(), self.channels_last)
        copy = folded_copy(self._model[0], x, dtype=self.dtype, channels_last=self.channels_last)
        self.dtype = next(self._model[0].parameters()).dtype if copy is None else copy.dtype
        self.net = None if copy is None else copy.net
        if self.compiles and copy is not None:
            limit = float(copy.net(x).abs().max()) * (0.05 if self.dtype == torch.bfloat16 else 1e-3)
            make = partial(_compiled_for_any_size, copy.net, x)
            self._fast = agreeing("compiled evaluation", make, copy.net, (x,), may_differ=0.0, tolerance=limit)

    def _asked(self, x: Tensor) -> tuple[AbstractContextManager, Tensor]:
        """The network that is asked, and a copy of the images that it may write into."""
        if not self.ready:
            self._prepare(x)
        net = eval_mode(self._model[0]) if self.net is None else nullcontext(self.net)
        return net, (laid_out(x, True) if self.channels_last else x).clone()

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K) float32 at least, differentiable in x."""
        if self._fast is not None and len(x) == 1:  # a single image would be compiled as a shape of its own
            return self.forward(torch.cat([x, x]))[:1]
        asked, x = self._asked(x)
        with asked as net:
            return full_precision((self._fast or net)(x))

    def trace(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list]:
        """Logits and streams, for attacks on more than the logits; not compiled."""
        asked, x = self._asked(x)
        with asked as net:
            logits, streams = net.trace(x, y)
        return full_precision(logits), streams

    @property
    def described(self) -> dict[str, str]:
        """What attacks are crafted in, for a record; final after the first call."""
        return {"dtype": str(self.dtype).removeprefix("torch.")}


def _compiled_for_any_size(net: nn.Module, x: Tensor) -> Function:
    """Both passes: the backward pass is else compiled at its first use, inside an attack."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE, torch._dynamo.config.recompile_limit)
    fast = torch.compile(net)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        torch._dynamo.maybe_mark_dynamic(leaf, 0)
        torch.autograd.grad(fast(leaf).float().sum(), leaf)

    def of_any_size(x: Tensor) -> Tensor:  # attacks drop the images they have broken
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return fast(x)

    return of_any_size
