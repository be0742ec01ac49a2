"""The folded copy of a network: the same function in eval mode, with every BatchNorm inside the convolution before it.

N images, C channels. A copy is used only where it gives the live network's logits and input gradients.
"""

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import FSRError
from fsr.models.modes import copied, eval_mode
from fsr.train.distributed import CpuSyncBatchNorm

log = logging.getLogger("fsr")

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, CpuSyncBatchNorm)
EXACT, CLOSE, ANY = 1e-6, 0.05, 1e9  # largest relative difference: in float64, in the live precision, if it runs at all


class FoldedConv(nn.Conv2d):
    """A convolution in its weights' own precision, (N, C, H, W) in any."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.to(self.weight.dtype), self.weight, self.bias)


class FoldedLinear(nn.Linear):
    """A linear layer in its weights' own precision, (N, C) in any."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


def feeding_convolutions(net: nn.Module, x: Tensor) -> dict[str, str]:
    """Path of each convolution to that of the BatchNorm that gets its output, both called once; seen while net runs.

    Whether something else reads the convolution's output too is for the caller to check.
    """
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def after_convolution(name, output):
        calls[name] += 1
        output.made_by = (name, output._version)

    def before_batchnorm(name, x):
        calls[name] += 1
        conv, version = getattr(x, "made_by", (None, -1))
        if version == x._version:  # else changed in place since
            pairs.append((conv, name))

    handles = []
    for name, module in net.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(lambda _m, _x, y, name=name: after_convolution(name, y)))
        elif type(module) in BATCHNORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(lambda _m, x, name=name: before_batchnorm(name, x[0])))
    with torch.no_grad():
        net(x.clone())
    for handle in handles:
        handle.remove()
    uses = Counter(conv for conv, _ in pairs)
    return {conv: bn for conv, bn in pairs if calls[conv] == calls[bn] == uses[conv] == 1}


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    both = (net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False))
    return {name: tensor for some in both for name, tensor in some}


class FoldedCopy:
    """`net` computes model(x) of eval mode; `refill` takes over the live weights.

    pairs: see `feeding_convolutions`; dtype: of the convolutions; linear layers and BatchNorms that stay, both cheap,
    are float32 at least. Attributes and hooks of modules (FSR's noise, interventions) are those at the time of copying.
    """

    def __init__(self, model: nn.Module, pairs: dict[str, str], dtype: torch.dtype, channels_last: bool = False):
        self.pairs, self.dtype, self._source = pairs, dtype, None
        self.net: Any = copied(model).eval().requires_grad_(False)
        for conv, bn in pairs.items():
            layer = self.net.get_submodule(conv)
            layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)  # its own, where weights are tied
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels), requires_grad=False)
            self.net.get_submodule(bn).__class__ = nn.Identity
        for layer in self.net.modules():  # only the class changes: hooks and other attributes stay
            if type(layer) is nn.Conv2d:
                layer.__class__ = FoldedConv
                layer.to(dtype)
            elif type(layer) is nn.Linear:
                layer.__class__ = FoldedLinear
                layer.to(torch.promote_types(dtype, torch.float32))
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.refill(model)

    def _bind(self, source: Any) -> None:
        """Pair every tensor of the copy with what it is made of; once per source."""
        self._source = source
        self._folded = [
            (self.net.get_submodule(c), source.get_submodule(c), source.get_submodule(b)) for c, b in self.pairs.items()
        ]
        made = {id(tensor) for conv, _, _ in self._folded for tensor in (conv.weight, conv.bias)}
        mine, live = _tensors(self.net), _tensors(source)
        names = [name for name, tensor in mine.items() if id(tensor) not in made]
        self._copied = [[tensors[name] for name in names] for tensors in (mine, live)]

    @torch.no_grad()
    def refill(self, source: nn.Module) -> None:
        """Take over the weights and statistics of source, in place: compiled code and captured graphs stay valid.

        source: the model that the copy was made of, or another of the same structure (its running average).
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
            torch._foreach_copy_(*self._copied)


def randomised_statistics(net: nn.Module) -> nn.Module:
    """net, changed: statistics and weights of every BatchNorm are random, since fresh ones are nearly the identity."""
    device = next((p.device for p in net.parameters()), "cpu")
    generator = torch.Generator(device).manual_seed(0)
    ranges = {"running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5), "weight": (0.5, 1.5), "bias": (-0.2, 0.2)}
    for module in net.modules():
        if type(module) in BATCHNORMS and module.running_mean is not None:
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


def _difference(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    """How far net is from other in logits and input gradients at x, relative to other's; NaN where either has NaN."""
    pairs = zip(_answers(net, x), _answers(other, x))
    return float(torch.stack([(a - b).norm() / b.norm().clamp_min(1e-30) for a, b in pairs]).max())


def _asks(net: nn.Module, model: nn.Module, x: Tensor) -> bool:
    """Does a pass of net call layers of model, by a closure that a copy keeps?"""
    calls: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda m, _: calls.append(m)) for m in model.modules()]
    _answers(net, x)
    for handle in handles:
        handle.remove()
    return bool(calls)


def _checked(model: nn.Module, x: Tensor, dtype: torch.dtype, channels_last: bool) -> FoldedCopy:
    """The copy; ValueError where it is another function, and whatever a network raises that cannot be copied."""
    shadow = randomised_statistics(copied(model).double().eval().requires_grad_(False))
    pairs = feeding_convolutions(shadow, x.double())
    live = torch.promote_types(dtype, torch.float32)
    found = FoldedCopy(model, pairs, dtype, channels_last)
    same = found if dtype == live else FoldedCopy(model, pairs, live, channels_last)
    with eval_mode(model):
        for net, other, images, limit in (
            (FoldedCopy(shadow, pairs, torch.float64).net, shadow, x.double(), EXACT),
            (same.net, model, x, CLOSE),
            (found.net, model, x, ANY),
        ):
            difference = _difference(net, other, images)
            if not difference <= limit:
                raise ValueError(f"its answers differ by {difference:.2g}")
        if _asks(same.net, model, x):
            raise ValueError("it goes on to call the network's own layers")
    return found


def folded_copy(model: nn.Module, x: Tensor, *, dtype=torch.float32, channels_last: bool = False) -> FoldedCopy | None:
    """The folded copy of any network, or None, with one line in the log, where none is the same function.

    x: some of its images (N, C, H, W), which show what feeds what. Compared are logits and input gradients, in float64
    on random statistics and in the live precision. In bf16 networks whose other layers have weights stay float32.
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
