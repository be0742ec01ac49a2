"""The folded copy of a network: the same function in eval mode, with each BatchNorm inside the convolution before it.

N images, C channels. A copy is used only where it gives the live network's logits and input gradients.
"""

import logging
from collections import Counter
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import FSRError
from fsr.hardware import bf16_is_fast
from fsr.models.modes import copied, eval_mode
from fsr.train.distributed import CpuSyncBatchNorm

log = logging.getLogger("fsr")

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, CpuSyncBatchNorm)
NARROW = 16  # channels; below, torch 2.15 can crash in channels-last backward passes on a CPU
EXACT, CLOSE, ANY = 1e-6, 0.05, 1e9  # largest relative difference: in float64, in the live precision, if it runs at all


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


class FoldedConv(nn.Conv2d):
    """A convolution in its weights' own precision, (N, C, H, W) in any."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.to(self.weight.dtype), self.weight, self.bias)


class FoldedLinear(nn.Linear):
    """A linear layer in its weights' own precision, (N, C) in any."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


@contextmanager
def _before_and_after(net: nn.Module, before, after=lambda *_: None):
    """Inside, before(name, input) and after(name, output) are called for every layer of net that runs."""
    handles = []
    for name, layer in net.named_modules():
        handles.append(layer.register_forward_pre_hook(lambda _, x, name=name: before(name, x[0] if x else None)))
        handles.append(layer.register_forward_hook(lambda _, x, y, name=name: after(name, y)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def feeding_convolutions(net: nn.Module, x: Tensor) -> dict[str, str]:
    """Path of each convolution to that of the BatchNorm that gets its output, both called once; seen while net runs.

    Whether something else reads the convolution's output too is for the caller to check.
    """
    layers: dict[str, Any] = dict(net.named_modules())
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def before(name: str, x: Any) -> None:
        calls[name] += 1
        conv, version = getattr(x, "made_by", ("", -1))
        if type(layers[name]) in BATCHNORMS and layers[name].running_mean is not None and version == x._version:
            pairs.append((conv, name))  # not where it was changed in place since

    def after(name: str, y: Any) -> None:
        if type(layers[name]) is nn.Conv2d:
            y.made_by = (name, y._version)

    with _before_and_after(net, before, after):
        net(x.clone())
    uses = Counter(conv for conv, _ in pairs)
    return {conv: bn for conv, bn in pairs if calls[conv] == calls[bn] == uses[conv] == 1}


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    return dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))


class FoldedCopy:
    """`net` computes model(x) of eval mode; `refill` takes over the live weights.

    pairs: see `feeding_convolutions`; dtype: of the convolutions; other layers are float32 at least. Attributes and
    hooks of modules (FSR's noise, interventions) are those at the time of copying.
    """

    def __init__(self, model: nn.Module, pairs: dict[str, str], dtype: torch.dtype, channels_last: bool = False):
        self.pairs, self.dtype, self._source = pairs, dtype, None
        self.net: Any = copied(model).eval().requires_grad_(False)
        layer: Any
        for conv, bn in pairs.items():
            layer = self.net.get_submodule(conv)
            layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)  # its own, where weights are tied
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels), requires_grad=False)
            self.net.get_submodule(bn).__class__ = nn.Identity
        for layer in self.net.modules():  # only the class changes: hooks and other attributes stay
            if type(layer) is nn.Conv2d:
                layer.to(dtype).__class__ = FoldedConv
            elif type(layer) is nn.Linear:
                layer.to(torch.promote_types(dtype, torch.float32)).__class__ = FoldedLinear
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.refill(model)

    def _bind(self, source: Any) -> None:
        """Pair every tensor of the copy with what it is made of; once per source."""
        self._source = source
        nets = (self.net, source, source)
        self._folded = [[n.get_submodule(p) for n, p in zip(nets, (c, c, b))] for c, b in self.pairs.items()]
        made = {id(tensor) for conv, _, _ in self._folded for tensor in (conv.weight, conv.bias)}
        mine, live = _tensors(self.net), _tensors(source)
        names = [name for name, tensor in mine.items() if id(tensor) not in made]
        self._copied = [[tensors[name] for name in names] for tensors in (mine, live)]

    @torch.no_grad()
    def refill(self, source: nn.Module) -> None:
        """Take over the weights and statistics of source, in place: compiled code and captured graphs stay valid.

        source: the model that the copy was made of, or another of the same structure.
        """
        if source is not self._source:
            self._bind(source)
        for conv, live, bn in self._folded:
            scale = torch.rsqrt(bn.running_var + bn.eps)
            scale = scale if bn.weight is None else scale * bn.weight
            shift = -bn.running_mean * scale
            shift = shift if bn.bias is None else shift + bn.bias
            conv.weight.copy_(live.weight * scale.view(-1, 1, 1, 1))
            conv.bias.copy_(shift if live.bias is None else shift + live.bias * scale)
        if self._copied[0]:
            torch._foreach_copy_(self._copied[0], self._copied[1])


def randomised_statistics(net: nn.Module) -> nn.Module:
    """net, changed: statistics and weights of every BatchNorm are random, since fresh ones are nearly the identity."""
    generator = torch.Generator(next((p.device for p in net.parameters()), "cpu")).manual_seed(0)
    ranges = {"running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5), "weight": (0.5, 1.5), "bias": (-0.2, 0.2)}
    for module in (m for m in net.modules() if type(m) in BATCHNORMS and m.running_mean is not None):
        for name, (low, high) in ranges.items():
            if getattr(module, name) is not None:
                getattr(module, name).uniform_(low, high, generator=generator)
    return net


def _answers(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the input gradient of a weighted sum of them, with the same random numbers in every call."""
    torch.manual_seed(0)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = net(leaf.clone()).to(x.dtype)
        weights = torch.linspace(-1, 1, logits.numel(), dtype=x.dtype, device=x.device).view_as(logits)
        return logits.detach(), torch.autograd.grad((logits * weights).sum(), leaf)[0]


def _compare(net: nn.Module, other: nn.Module, x: Tensor, limit: float) -> None:
    """ValueError where net's logits and input gradients at x differ from other's by more than limit times theirs."""
    for a, b in zip(_answers(net, x), _answers(other, x)):
        difference = float((a - b).norm() / b.norm().clamp_min(1e-30))
        if not difference <= limit:
            raise ValueError(f"its answers differ by {difference:.2g}")


def _checked(model: nn.Module, x: Tensor, dtype: torch.dtype, channels_last: bool) -> FoldedCopy:
    """The copy; ValueError where it is another function, and whatever a network raises that cannot be copied."""
    shadow = randomised_statistics(copied(model).double().eval().requires_grad_(False))
    pairs = feeding_convolutions(shadow, x.double())
    live = torch.promote_types(dtype, torch.float32)
    found = FoldedCopy(model, pairs, dtype, channels_last)
    same = found if dtype == live else FoldedCopy(model, pairs, live, channels_last)
    called: list[str] = []
    with eval_mode(model):
        _compare(FoldedCopy(shadow, pairs, torch.float64).net, shadow, x.double(), EXACT)
        _compare(same.net, model, x, CLOSE)
        _compare(found.net, model, x, ANY)
        with _before_and_after(model, lambda name, _: called.append(name)):
            _answers(found.net, x)
    if called:  # by a closure: the copy would see the live weights in the live mode
        raise ValueError(f"it goes on to call the network's own layer {called[0]!r}")
    return found


def folded_copy(model: nn.Module, x: Tensor, *, dtype=torch.float32, channels_last: bool = False) -> FoldedCopy | None:
    """The folded copy of any network, or None, with one line in the log, where none is the same function.

    x: some of its images (N, C, H, W). Networks whose other layers have weights stay float32 where bf16 is asked for.
    """
    known = (nn.Conv2d, nn.Linear, *BATCHNORMS)
    others = [m for m in model.modules() if type(m) not in known and list(m.parameters(recurse=False))]
    if others and dtype == torch.bfloat16:
        log.warning("crafting stays in float32: %s has parameters of its own", type(others[0]).__name__)
        dtype = torch.float32
    x = x[:2].detach().clone()
    try:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            return _checked(model, x, dtype, channels_last)
    except FSRError:  # a hook that stops the computation
        raise
    except Exception as error:  # a network may raise anything where it is copied, cast or differentiated
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        log.warning("attacks are crafted on the network itself, without its folded copy: %s", reason)
        return None
