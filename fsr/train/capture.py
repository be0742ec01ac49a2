"""A function of tensors made faster: traced and compiled, or recorded as one CUDA graph; each with a logged fallback.

Both take the very function that the plain path runs, and are kept only if they agree with it on an example. Here are
also the defaults of precision and memory layout per network and device.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fsr.hardware import bf16_is_fast

log = logging.getLogger("fsr")

Function = Callable[..., Tensor]
# What tracing, a missing or failing compiler, and graph capture raise; torch's own exceptions are RuntimeErrors.
FAILURES = (RuntimeError, OSError)


RECOMPILE = 64  # variants of all networks' forward passes together; beyond torch's 8 it runs uncompiled, unsaid
NARROW = 16  # channels; below, torch 2.15 can crash in channels-last backward passes on a CPU


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What crafting computes in: bf16 only where the processor multiplies it natively, else the more exact float32."""
    if precision == "bf16" and (device.type == "cuda" or bf16_is_fast()):
        return torch.bfloat16
    return torch.float32


def narrowest(model: nn.Module) -> int:
    """Output channels of the narrowest convolution."""
    return min((m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)), default=0)


def use_channels_last(model: nn.Module, device: torch.device) -> bool:
    """The memory layout's default: channels last, except for narrow networks on a CPU."""
    return device.type == "cuda" or narrowest(model) >= NARROW


def use_winograd(model: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Convolutions with fewer products: on a CPU in float32, except for narrow networks, whose images are tiny too."""
    return device.type == "cpu" and dtype == torch.float32 and narrowest(model) >= NARROW


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """Images (N, C, H, W) in the wanted memory layout."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def reason(error: Exception) -> str:
    """An error's first line, for a log."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def disagreement(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> float:
    """Share of entries that differ by more than tolerance; NaN counts as differing."""
    return float((~((a - b).abs() <= tolerance)).float().mean())


def compiled(function: Function, *example: Tensor, may_differ: float) -> Function | None:
    """function compiled for the example's shapes and layouts, gradients inside it included; None, logged, if not.

    function: tensors to one tensor, every tensor it closes over may change in place later. It is first unrolled into
    single operations, so that it may hold any Python. may_differ: the largest share of output entries that may differ
    from the plain function's: signs of gradients near zero depend on rounding.
    """
    try:
        fast = torch.compile(make_fx(lambda *tensors: function(*tensors))(*example), dynamic=False)
        differing = disagreement(fast(*example), function(*example))
    except FAILURES as error:
        log.warning("not compiled, going on without: %s: %s", type(error).__name__, reason(error))
        return None
    if differing > may_differ:
        log.warning("not compiled, going on without: %.3g of the results differ", differing)
        return None
    return fast


def compiled_net(net: nn.Module, x: Tensor, *, may_differ: float) -> Function | None:
    """net compiled, for any batch size; None, logged, if it does not compile or disagrees with itself on x (N, ...).

    Forward and backward pass are both tried, because the latter is compiled at its first use, inside an attack.
    may_differ: the largest difference of logits, relative to their largest.
    """
    torch._dynamo.config.recompile_limit = max(RECOMPILE, torch._dynamo.config.recompile_limit)
    fast = torch.compile(net)
    try:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            torch._dynamo.maybe_mark_dynamic(leaf, 0)
            logits = fast(leaf)
            torch.autograd.grad(logits.float().sum(), leaf)
        expected = net(x.detach())
    except FAILURES as error:
        log.warning("evaluation is not compiled: %s: %s", type(error).__name__, reason(error))
        return None
    difference = float((logits.detach() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= may_differ:
        log.warning("evaluation is not compiled: logits differ by %.3g of the largest", difference)
        return None
    return fast


def recorded(function: Function, *example: Tensor) -> Function | None:
    """function as one CUDA graph on static buffers, for the example's shapes; None, logged, if that fails.

    function: tensors to one tensor without host synchronisation. Results are copies that the next call leaves alone.
    """
    buffers = [tensor.clone() for tensor in example]
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: libraries choose algorithms and allocate workspaces outside the graph
            for _ in range(2):
                expected = function(*buffers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function(*buffers)
        graph.replay()
        differing = disagreement(result, expected)
    except FAILURES as error:
        log.warning("no CUDA graph, going on without: %s: %s", type(error).__name__, reason(error))
        return None
    if differing > 0.3:  # kernels that add in another order each time change signs, and later steps build on them
        log.warning("no CUDA graph, going on without: %.3g of the results differ", differing)
        return None

    def replay(*tensors: Tensor) -> Tensor:
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return result.clone()

    return replay
