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
from fsr.train.fold import compare, dtype_of, folded_copy, layout_of, or_log
from fsr.train.objectives import craft, draw_start, full_precision, pgd_step, start

Function = Callable[..., Tensor]
MANY_STEPS = 2000  # crafting steps of a run from which compiling (about 10 s on a CPU) pays
# Largest relative difference of two steps that counts as rounding; where a share p of signs differs it is 2 sqrt(p)
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
    """Crafts a run's training images on a folded copy of the live model; `switches`: what its first batch turned on."""

    def __init__(self, model: nn.Module, run: Run, device="cpu", *, compile=None, layout=None, graphs=True):
        self.model, self.run, device = model, run, torch.device(device)
        self.dtype, self.layout = dtype_of(run.precision, model, device), layout or layout_of(model, device)
        self.switches: dict[str, Any] = {"compile": compile, "channels_last": self.layout == torch.channels_last}
        self.switches["graphs"] = device.type == "cuda" and graphs
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.copy: Any = None  # a FoldedCopy; None: crafting is on the network itself
        self.exact = 0  # first steps on the network itself, in exact float32: bf16 would drown KL near its flat start
        self._loop: Function | None = None  # all other steps, on the copy; None before the first batch

    @torch.no_grad()
    def craft(self, x: Tensor, y: Tensor, generator=None, *, source=None, noise: Tensor | None = None) -> Tensor:
        """Adversarial images like x, float32, by the run's attack (AT's for natural runs) on source or the model."""
        source = self.model if source is None else source
        x = x.detach().contiguous(memory_format=self.layout)
        x_adv = start(x, self.run, draw_start(x, self.run, generator) if noise is None else noise)
        if self._loop is None:
            self._loop = self._prepare(x, y)
        if self.copy:
            self.copy.refill(source)
        steps = partial(self._steps, source) if self.copy else partial(craft, source, self.run)
        with eval_mode(source):
            return torch.cat([steps(*rows) for rows in zip(*(t.split(self.run.batch) for t in (x_adv, x, y)))])

    def _steps(self, source: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self.exact:
            with exact_float32():  # nor may TensorFloat-32 drown it
                x_adv = craft(source, self.run, x_adv, x, y, steps=self.exact)
        return self._loop(x_adv, x, y)  # type: ignore[misc]

    def _filled(self, x_adv: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The batch filled up, or cut, to the one size that fast loops are made for; images do not see each other."""
        rows = torch.arange(self.run.batch, device=x.device) % len(x)
        return (*(t[rows].contiguous(memory_format=self.layout) for t in (x_adv, x)), y[rows])

    def _prepare(self, x: Tensor, y: Tensor) -> Function:
        """Make the copy on the first batch; returns its steps, compiled and recorded where that works."""
        on, run, step = self.switches, self.run, None
        self.copy = folded_copy(self.model, x, self.dtype, self.layout)
        if self.copy is None:
            on.update(compile=False, graphs=False, crafting="float32")
            return craft
        on["crafting"] = str(self.copy.dtype).removeprefix("torch.")
        self.exact = int(run.method == "trades" and self.copy.dtype == torch.bfloat16 and run.steps > 0)
        batch = self._filled(project_linf(1 - x, x, run.eps), x, y)  # far from x, where KL is not flat
        if on["compile"] is None:  # measured: on a CPU it gains a quarter from 16 channels and 32 pixels on
            steps = run.steps * run.epochs * math.ceil((run.train_size or 50_000) / run.batch)
            worth = self.layout == torch.channels_last and x.shape[-1] >= 32 and steps >= MANY_STEPS
            on["compile"] = x.is_cuda or worth
        if on["compile"]:
            with or_log("crafting is not compiled"):
                step = self._compiled(*batch)
        loop: Function = partial(craft, self.copy.net, run, step=step, steps=run.steps - self.exact)
        fast = loop
        if on["graphs"]:
            with or_log("crafting is not recorded as a CUDA graph"):
                replay = recorded(loop, batch)
                compare(replay(*batch) - batch[0], loop(*batch) - batch[0], SIGNS_BF16)
                fast = replay
        on["compile"], on["graphs"] = step is not None, fast is not loop
        if not (on["compile"] or on["graphs"]):
            return loop
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
    """A network for attacks to differentiate: model, in eval mode, folded, in `precision`; x: images to try it on."""

    def __init__(self, model: nn.Module, x: Tensor, precision="float32", *, compile=None):
        super().__init__()
        self.layout = layout_of(model, x.device, x[:2])
        copy = folded_copy(model, x, dtype_of(precision, model, x.device), self.layout)
        self.net: Any = copy.net if copy else model
        self.dtype = copy.dtype if copy else dtype_of("float32", model, x.device)
        self._fast: Function = self.net.__call__  # torch lets no function replace a module
        if copy and (x.is_cuda if compile is None else compile):
            with or_log("attacks are not compiled"):
                self._fast = self._compiled(x.contiguous(memory_format=self.layout))

    def _compiled(self, some: Tensor) -> Function:
        torch._dynamo.reset()  # after 8 networks torch would compile no more, unsaid
        compiled = torch.compile(self.net)

        def fast(x: Tensor) -> Tensor:
            pair = torch.cat([x, x]) if len(x) == 1 else x  # 1 would be a shape of its own
            torch._dynamo.maybe_mark_dynamic(pair, 0)  # attacks drop the images that they have broken
            return compiled(pair)[: len(x)]

        with torch.enable_grad():  # the backward pass is else compiled at its first use, inside an attack
            leaf = some.clone().requires_grad_()
            logits = fast(leaf)
            torch.autograd.grad(logits.float().sum(), leaf)
        compare(logits.detach(), self.net(some), 0.05 if self.dtype == torch.bfloat16 else 1e-3)
        return fast

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self._fast(x.clone(memory_format=self.layout)))

    def trace(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list]:
        logits, streams = self.net.trace(x.clone(memory_format=self.layout), y)
        return full_precision(logits), streams
