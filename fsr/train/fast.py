"""Crafting as in `objectives`, faster: folded, compiled, as one CUDA graph; left out, and logged, where it differs."""

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
from fsr.train.fold import FoldedCopy, compare, dtype_of, folded_copy, is_wide, laid_out, or_log
from fsr.train.objectives import craft, draw_start, full_precision, pgd_step, start

Function = Callable[..., Tensor]
RECOMPILE = 64  # variants of all networks' forward passes together; beyond torch's 8 it runs uncompiled, unsaid
MANY_STEPS = 2000  # crafting steps of a run from which compiling (about 10 s on a CPU) pays
# Largest difference of steps that compiling (in bf16 or not) or a CUDA graph may make, each of which adds in another
# order. Where a share p of the signs differs it is 2 sqrt(p); 1.4 where they have nothing in common.
SIGNS, SIGNS_BF16 = 0.2, 0.9


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
    """Crafts a run's training images on a folded copy of the live model; `switches`: what is in use after a batch."""

    def __init__(self, model: nn.Module, run: Run, device="cpu", *, compile=None, channels_last=None, graphs=None):
        self.model, self.run, self.device = model, run, torch.device(device)
        self.dtype, cuda = dtype_of(run.precision, model, self.device), self.device.type == "cuda"
        self.channels_last = (cuda or is_wide(model)) if channels_last is None else channels_last
        self.switches: dict[str, Any] = {"compile": compile, "channels_last": self.channels_last}
        self.switches |= {"graphs": cuda and graphs is not False, "crafting": str(self.dtype).removeprefix("torch.")}
        if cuda:
            torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
            self.switches["float32_convolutions"] = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.copy: Any = None  # a FoldedCopy; None: crafting is on the network itself
        self.exact: Any = None  # another in float32, for the first step on KL, which bf16 rounding would drown
        self._loop: Function | None = None  # all steps on the copy; None before the first batch

    def craft(self, x: Tensor, y: Tensor, generator=None, *, noise: Tensor | None = None) -> Tensor:
        """Training images like x, float32, not part of any graph; natural training gets x itself."""
        return x if self.run.method == "natural" else self.attack(x, y, generator, noise=noise)

    @torch.no_grad()
    def attack(self, x: Tensor, y: Tensor, generator=None, *, source=None, noise: Tensor | None = None) -> Tensor:
        """The training attack (of plain AT for natural runs) on source, by default the live model."""
        source = self.model if source is None else source
        x = laid_out(x.detach(), self.channels_last)
        x_adv = start(x, self.run, draw_start(x, self.run, generator) if noise is None else noise)
        if self._loop is None:
            self._loop = self._prepare(x, y)
        for copy in filter(None, (self.copy, self.exact)):
            copy.refill(source)
        loop = self._loop if self.copy else partial(craft, source, self.run)
        with eval_mode(source):
            return torch.cat([loop(*rows) for rows in zip(*(t.split(self.run.batch) for t in (x_adv, x, y)))])

    def _all_steps(self, x_adv: Tensor, x: Tensor, y: Tensor, step: Function | None = None) -> Tensor:
        steps = self.run.steps
        if self.exact is not None and steps:
            with exact_float32():  # nor may TensorFloat-32 drown it
                x_adv = craft(self.exact.net, self.run, x_adv, x, y, steps=1)
            steps -= 1
        return craft(self.copy.net, self.run, x_adv, x, y, step=step, steps=steps)

    def _filled(self, x_adv: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The batch filled up, or cut, to the one size that fast loops are made for; images do not see each other."""
        rows = torch.arange(self.run.batch, device=x.device) % len(x)
        return (*(laid_out(t[rows], self.channels_last) for t in (x_adv, x)), y[rows])

    def _prepare(self, x: Tensor, y: Tensor) -> Function:
        """Make the copy on the first batch; returns all steps, compiled and recorded as asked for where that works."""
        on, run, step, graph = self.switches, self.run, None, None
        self.copy = folded_copy(self.model, x, dtype=self.dtype, channels_last=self.channels_last)
        if self.copy is None:
            on.update(compile=False, graphs=False, crafting="float32")
            return self._all_steps
        on["crafting"] = str(self.copy.dtype).removeprefix("torch.")
        if run.method == "trades" and self.copy.dtype == torch.bfloat16:
            self.exact = FoldedCopy(self.model, self.copy.pairs, torch.float32, self.channels_last)
        noise = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device, dtype=x.dtype)
        x_adv = project_linf(x + run.eps * (2 * noise - 1), x, run.eps)  # far from x, where KL is not flat
        batch = self._filled(x_adv, x, y)
        if on["compile"] is None:  # measured: on a CPU it gains a quarter from 16 channels and 32 pixels on
            steps = run.steps * run.epochs * math.ceil((run.train_size or 50_000) / run.batch)
            worth = is_wide(self.model) and x.shape[-1] >= 32 and steps >= MANY_STEPS
            on["compile"] = self.device.type == "cuda" or worth
        if on["compile"]:
            with or_log("crafting is not compiled"):
                step = self._compiled(*batch)
        loop = partial(self._all_steps, step=step)
        if on["graphs"]:
            with or_log("crafting is not recorded as a CUDA graph"):
                replay = recorded(loop, batch)
                compare(replay(*batch) - batch[0], loop(*batch) - batch[0], SIGNS_BF16)
                graph = replay
        on["compile"], on["graphs"] = step is not None, graph is not None
        if step is None and graph is None:  # a compiled function has no truth value
            return loop
        fast = loop if graph is None else graph
        return lambda *some: fast(*self._filled(*some))[: len(some[0])]

    def _compiled(self, *batch: Tensor) -> Function:
        """`pgd_step` on the copy, its gradients unrolled first, so that the network may hold any Python."""
        net, run = self.copy.net, self.run
        given = (*batch, net(batch[1])) if run.method == "trades" else batch
        plain = lambda *tensors: pgd_step(net, run, *tensors)  # noqa: E731 - make_fx wants a plain function
        step = torch.compile(make_fx(plain)(*given), dynamic=False)
        limit = SIGNS_BF16 if self.copy.dtype == torch.bfloat16 else SIGNS
        compare(step(*given) - batch[0], plain(*given) - batch[0], limit)
        return step


class FastNet(nn.Module):
    """A network for attacks to differentiate: model, in eval mode, folded, in `precision`; logits float32."""

    def __init__(self, model: nn.Module, precision="float32", *, compile=None):
        super().__init__()
        device = next(model.parameters()).device
        self.dtype, cuda = dtype_of(precision, model, device), device.type == "cuda"
        self.channels_last = cuda or is_wide(model)
        self.compiles = cuda if compile is None else compile
        self.net: Any = model
        self._fast: Function | None = None
        self.ready = False

    def _given(self, x: Tensor) -> Tensor:
        x = laid_out(x, True) if self.channels_last else x
        if not self.ready:
            self.ready = True
            copy = folded_copy(self.net, x, dtype=self.dtype, channels_last=self.channels_last)
            self.dtype = next(self.net.parameters()).dtype if copy is None else copy.dtype
            if copy is not None:
                self.net = copy.net
                if self.compiles:
                    with or_log("attacks are not compiled"):
                        self._fast = self._compiled(x.detach())
        return x.clone()

    def _compiled(self, some: Tensor) -> Function:
        torch._dynamo.config.recompile_limit = max(RECOMPILE, torch._dynamo.config.recompile_limit)
        compiled = torch.compile(self.net)

        def fast(x: Tensor) -> Tensor:
            torch._dynamo.maybe_mark_dynamic(x, 0)  # attacks drop the images that they have broken
            return compiled(x)

        with torch.enable_grad():  # the backward pass is else compiled at its first use, inside an attack
            leaf = some.clone().requires_grad_()
            logits = fast(leaf)
            torch.autograd.grad(logits.float().sum(), leaf)
        compare(logits.detach(), self.net(some), 0.05 if self.dtype == torch.bfloat16 else 1e-3)
        return fast

    def forward(self, x: Tensor) -> Tensor:
        x, n = self._given(x), len(x)
        if self._fast is None:
            return full_precision(self.net(x))
        return full_precision(self._fast(torch.cat([x, x]) if n == 1 else x))[:n]  # 1 would be a shape of its own

    def trace(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list]:
        x = self._given(x)
        logits, streams = self.net.trace(x, y)
        return full_precision(logits), streams
