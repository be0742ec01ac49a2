"""The same crafting as in `objectives`, faster: on a folded copy of the network, compiled and as one CUDA graph.

What does not give the plain function's results is left out, and one line of the log says so.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fsr.attacks.gradient import project_linf
from fsr.config import Run
from fsr.hardware import exact_float32
from fsr.models.modes import eval_mode
from fsr.train.fold import FoldedCopy, attempt, compare, dtype_of, folded_copy, is_wide, laid_out
from fsr.train.objectives import craft, draw_start, full_precision, pgd_step, start

Function = Callable[..., Tensor]
RECOMPILE = 64  # variants of all networks' forward passes together; beyond torch's 8 it runs uncompiled, unsaid
MANY_STEPS = 2000  # crafting steps of a run from which compiling (about 10 s on a CPU) pays
# Largest relative difference of steps. Where a share p of signs differs it is 2 sqrt(p), and 1.4 where all are random.
# bf16 is rounded less often when compiled (0.3 % of signs seen); a CUDA graph's kernels may add in another order.
SIGNS = {torch.float64: 0.2, torch.float32: 0.2, torch.bfloat16: 0.9}
REPLAYED = 0.9


def agreeing(failed: str, make: Callable[[], Function], plain: Function, given, limit: float, origin=0.0):
    """make(), where its result for `given`, less origin, is plain's up to `limit`; None, logged, if not."""

    def made() -> Function:
        fast = make()
        compare(fast(*given) - origin, plain(*given) - origin, limit)
        return fast

    return attempt(failed, made)


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
        self.dtype = dtype_of(run.precision, model, self.device)
        self.channels_last = (cuda or is_wide(model)) if channels_last is None else channels_last
        self.switches = {
            "compile": compile,
            "channels_last": self.channels_last,
            "graphs": cuda and graphs is not False,
        }
        self.switches["crafting"] = str(self.dtype).removeprefix("torch.")
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
        loop = self._loop if self.copy else partial(craft, source, self.run)
        with eval_mode(source):
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
        """loop on a batch filled up, or cut, to the one size that it is made for; images do not see each other."""
        rows = torch.arange(self.run.batch, device=x.device) % len(x)
        return loop(*(laid_out(t[rows], self.channels_last) for t in (x_adv, x)), y[rows])[: len(x)]

    def _prepare(self, x: Tensor, y: Tensor) -> None:
        """Make the copy, and the fast loop where it helps, on the first batch."""
        on, run, self.ready = self.switches, self.run, True
        self.copy = folded_copy(self.model, x, dtype=self.dtype, channels_last=self.channels_last)
        if self.copy is None:
            on.update(compile=False, graphs=False, crafting="float32")
            return
        on["crafting"] = str(self.copy.dtype).removeprefix("torch.")
        if run.method == "trades" and self.copy.dtype == torch.bfloat16:
            self.exact = FoldedCopy(self.model, self.copy.pairs, torch.float32, self.channels_last)
        if on["compile"] is None:  # measured: on a CPU it gains a quarter from 16 channels and 32 pixels on
            steps = run.steps * run.epochs * math.ceil((run.train_size or 50_000) / run.batch)
            worth = is_wide(self.model) and x.shape[-1] >= 32 and steps >= MANY_STEPS
            on["compile"] = self.device.type == "cuda" or worth
        noise = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device, dtype=x.dtype)
        x_adv = project_linf(x + run.eps * (2 * noise - 1), x, run.eps)  # far from x, where KL is not flat
        rows = torch.arange(run.batch, device=x.device) % len(x)
        self._speed_up(*(laid_out(t[rows], self.channels_last) for t in (x_adv, x)), y[rows])

    def _speed_up(self, *batch: Tensor) -> None:
        """Compile a step, gradients included, and record all steps, as asked for and where the results stay."""
        on, run, net, step, graph = self.switches, self.run, self.copy.net, None, None
        if on["compile"]:
            given = (*batch, net(batch[1])) if run.method == "trades" else batch
            plain = lambda *tensors: pgd_step(net, run, *tensors)  # noqa: E731 - make_fx wants a plain function
            make = lambda: torch.compile(make_fx(plain)(*given), dynamic=False)  # noqa: E731 - any Python, unrolled
            step = agreeing("crafting is not compiled", make, plain, given, SIGNS[self.copy.dtype], batch[0])
        self._loop = loop = partial(self._all_steps, step=step)
        if on["graphs"]:
            failed = "crafting is not recorded as a CUDA graph"
            graph = agreeing(failed, partial(recorded, loop, batch), loop, batch, REPLAYED, batch[0])
        on["compile"], on["graphs"] = step is not None, graph is not None
        if on["compile"] or on["graphs"]:  # a compiled function has no truth value
            self._loop = partial(self._filled, loop if graph is None else graph)


class FastNet(nn.Module):
    """A network for attacks to differentiate: model, which is in eval mode, folded, in `precision`; logits float32.

    A copy made at the first call, with the interventions of then, or, where none is the same function, the model.
    compile, channels_last: None for the default; graphs, a switch of training, is not used.
    """

    def __init__(self, model: nn.Module, precision="float32", *, compile=None, channels_last=None, graphs=None):
        super().__init__()
        device = next(model.parameters()).device
        self.net, self.ready, self.dtype = model, False, dtype_of(precision, model, device)
        self.channels_last = (device.type == "cuda" or is_wide(model)) if channels_last is None else channels_last
        self.compiles = device.type == "cuda" if compile is None else compile
        self._fast: Any = None

    def _given(self, x: Tensor) -> Tensor:
        """The images as the network wants them, its own to write into; the first ones make the copy."""
        x = laid_out(x, True) if self.channels_last else x
        if not self.ready:
            self.ready, some = True, x.detach()
            copy = folded_copy(self.net, some, dtype=self.dtype, channels_last=self.channels_last)
            self.dtype = next(self.net.parameters()).dtype if copy is None else copy.dtype
            self.net = self.net if copy is None else copy.net
            if self.compiles and copy is not None:
                limit, make = 0.05 if self.dtype == torch.bfloat16 else 1e-3, partial(for_any_size, self.net, some)
                self._fast = agreeing("attacks are not compiled", make, self.net, (some,), limit)
        return x.clone()

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K) float32 at least, differentiable in x."""
        x, n = self._given(x), len(x)
        if self._fast is None:
            return full_precision(self.net(x))
        return full_precision(self._fast(torch.cat([x, x]) if n == 1 else x))[:n]  # 1 would be a shape of its own

    def trace(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list]:
        """Logits and streams, for attacks on more than the logits; not compiled."""
        x = self._given(x)
        logits, streams = self.net.trace(x, y)
        return full_precision(logits), streams


def for_any_size(net: nn.Module, x: Tensor) -> Function:
    """net compiled for batches that shrink, as attacks drop what they have broken; with its backward pass, now."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE, torch._dynamo.config.recompile_limit)
    compiled = torch.compile(net)

    def fast(x: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(x)

    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(fast(leaf).float().sum(), leaf)
    return fast
