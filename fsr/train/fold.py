"""A crafting twin: the same function as a network in eval mode, with less to compute, refilled from the live weights.

N images, C channels. While an attack is crafted the network is in eval mode, where BatchNorm is one multiply-add per
channel: it folds exactly into the convolution that feeds it, and parameters need no gradient.
"""

import copy
import logging
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from fsr.train import winograd
from fsr.train.syncnorm import CpuSyncBatchNorm

log = logging.getLogger("fsr")

_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, CpuSyncBatchNorm)


class FoldedConv(nn.Conv2d):
    """A convolution in its weights' own precision, (N, C, H, W) in any."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.to(self.weight.dtype), self.weight, self.bias)


class WinogradConv(FoldedConv):
    """The same on a CPU with fewer products: 3x3 at stride 1 in float32, see `winograd`."""

    def forward(self, x: Tensor) -> Tensor:
        return winograd.convolve3x3(x.to(self.weight.dtype), self.weight, self.bias)


class FoldedLinear(nn.Linear):
    """A linear layer in its weights' own precision, (N, C) in any."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class ScaleShift(nn.Module):
    """BatchNorm in eval mode where no convolution feeds it: one multiply-add per channel, in float32 at least."""

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.ndim - 2)
        return (x * self.scale.view(shape) + self.shift.view(shape)).to(x.dtype)


def _foldable(module: nn.Module) -> bool:
    """A BatchNorm that uses stored statistics in eval mode."""
    return type(module) in _BATCHNORMS and module.running_mean is not None


def feeding_convolutions(net: nn.Module, x: Tensor) -> dict[str, str]:
    """Path of each BatchNorm to the path of the convolution whose output it receives, seen while net runs on x.

    Only pairs that are called once, one after the other; whether something else reads the convolution's output too is
    for the caller to check.
    """
    made: dict[int, tuple[str, Tensor]] = {}  # holds the outputs, so that no id is given out twice
    calls: Counter[str] = Counter()
    pairs: dict[str, str] = {}

    def after_convolution(name):
        def hook(_module, _inputs, output):
            calls[name] += 1
            made[id(output)] = (name, output)

        return hook

    def before_batchnorm(name):
        def hook(_module, inputs):
            calls[name] += 1
            if id(inputs[0]) in made:
                pairs[name] = made[id(inputs[0])][0]

        return hook

    handles = []
    for name, module in net.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after_convolution(name)))
        elif _foldable(module):
            handles.append(module.register_forward_pre_hook(before_batchnorm(name)))
    try:
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    uses = Counter(pairs.values())
    return {bn: conv for bn, conv in pairs.items() if calls[bn] == calls[conv] == uses[conv] == 1}


def _repeatable(net: nn.Module, x: Tensor) -> Tensor:
    """net(x) with the same random numbers in every call, for a network that draws some in eval mode."""
    torch.manual_seed(0)
    return net(x)


def randomised_statistics(net: nn.Module) -> nn.Module:
    """net, changed: statistics and weights of every BatchNorm are random, since fresh ones are nearly the identity."""
    device = next((p.device for p in net.parameters()), "cpu")
    generator = torch.Generator(device).manual_seed(0)
    module: Any
    for module in net.modules():
        if _foldable(module):
            for tensor, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5),
                                      (module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):  # fmt: skip
                if tensor is not None:
                    tensor.uniform_(low, high, generator=generator)
    return net


def scale_and_shift(bn: Any) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as x * scale + shift, each (C,)."""
    scale = torch.rsqrt(bn.running_var + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -bn.running_mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def _replacement(module: Any, folds: bool) -> nn.Module | None:
    """What stands for module in a twin (its values are filled in later), or None to keep it."""
    if type(module) is nn.Conv2d:
        same = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        bias = folds or module.bias is not None
        conv = FoldedConv(**{name: getattr(module, name) for name in same}, bias=bias, device="meta")
        return conv.to_empty(device=module.weight.device)
    if type(module) is nn.Linear:
        linear = FoldedLinear(module.in_features, module.out_features, module.bias is not None, device="meta")
        return linear.to_empty(device=module.weight.device)
    if _foldable(module):
        return nn.Identity() if folds else ScaleShift(module.num_features).to(module.running_mean.device)
    return None


class Twin:
    """The folded copy of a model: `net` computes model(x) of eval mode, `refill` takes over the live weights.

    model: any nn.Module; x: a few of its images (N, C, H, W), which show what feeds what. dtype: of the convolutions;
    linear layers, cheap and last, stay float32, and everything does where a module of another kind has parameters.
    What folds is checked on random statistics in float64: a convolution with a second reader keeps its BatchNorm apart.
    Attributes of modules (FSR's noise, interventions) are those at the time of copying. fewer_products: 3x3
    convolutions by `winograd` where it can; `winograd` then says whether any is.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, *, dtype=torch.float32, channels_last: bool = False, fewer_products=False
    ):
        self.dtype, self.channels_last, self.winograd = dtype, channels_last, fewer_products
        self.pairs = self._checked_pairs(model, x[:2].detach())
        self.net = self._build(model)
        self._source: nn.Module | None = None
        self.refill(model)

    def _checked_pairs(self, model: nn.Module, x: Tensor) -> dict[str, str]:
        """The pairs that may fold: of those found, the ones whose folding changes nothing but rounding."""
        shadow = randomised_statistics(copy.deepcopy(model).double().eval().requires_grad_(False))
        x = x.double()
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.no_grad():
            pairs = feeding_convolutions(shadow, x)
            wanted = _repeatable(shadow, x)

            def exact(chosen: dict[str, str]) -> bool:
                twin = copy.copy(self)
                twin.dtype, twin.pairs, twin._source = torch.float64, chosen, None
                twin.net = twin._build(shadow)
                twin.refill(shadow)
                return torch.allclose(_repeatable(twin.net, x), wanted, rtol=1e-6, atol=1e-9)

            if exact(pairs):
                return pairs
            pairs = {bn: conv for bn, conv in pairs.items() if exact({bn: conv})}
            if exact(pairs):
                return pairs
        log.warning("no BatchNorm is folded: the folded network disagrees with the live one")
        return {}

    def _build(self, model: nn.Module) -> nn.Module:
        net = copy.deepcopy(model).eval()
        folded = set(self.pairs) | set(self.pairs.values())
        new: dict[nn.Module, nn.Module | None] = {}
        for name, module in list(net.named_modules(remove_duplicate=False)):
            if module not in new:
                new[module] = _replacement(module, name in folded)
            if new[module] is not None:
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, new[module])
        known = (FoldedConv, FoldedLinear, ScaleShift)
        strangers = [m for m in net.modules() if not isinstance(m, known) and list(m.parameters(recurse=False))]
        if strangers and self.dtype == torch.bfloat16:
            log.warning("crafting stays in float32: %s has parameters of its own", type(strangers[0]).__name__)
            self.dtype = torch.float32
        for module in net.modules():
            if isinstance(module, FoldedConv):
                module.to(self.dtype)
            elif isinstance(module, (FoldedLinear, ScaleShift)):
                module.to(torch.promote_types(self.dtype, torch.float32))
        if self.winograd:
            self.winograd = self._fewer_products(net)
        if self.channels_last:
            net = cast(Any, net).to(memory_format=torch.channels_last)
        for module in net.modules():
            if isinstance(module, WinogradConv):
                module.weight.data = module.weight.data.contiguous()  # the layout that its filters are read in
        return net.requires_grad_(False).eval()

    def _fewer_products(self, net: nn.Module) -> bool:
        """Convolutions that `winograd` computes get its class, weights and all; is there any?"""
        some = [module for module in net.modules() if type(module) is FoldedConv and winograd.fits(module)]
        if not (some and winograd.works()):
            return False
        for module in some:
            module.__class__ = WinogradConv
        return True

    def _bind(self, source: nn.Module) -> None:
        """Pair every tensor of the twin with what it is made of; once per source."""
        convs = {conv: bn for bn, conv in self.pairs.items()}
        self._convs: list[tuple[FoldedConv, Any, Any]] = []
        self._norms: list[tuple[ScaleShift, Any]] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        module: Any
        for name, module in self.net.named_modules():
            live: Any = source.get_submodule(name)
            if name in convs:
                self._convs.append((module, live, source.get_submodule(convs[name])))
            elif isinstance(module, ScaleShift):
                self._norms.append((module, live))
            elif name not in self.pairs:
                mine = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
                theirs = dict(live.named_parameters(recurse=False)) | dict(live.named_buffers(recurse=False))
                self._copies += [(tensor, theirs[key]) for key, tensor in mine.items()]
        self._source = source

    @torch.no_grad()
    def refill(self, source: nn.Module) -> None:
        """Take over the weights and statistics of source, in place: compiled code and captured graphs stay valid.

        source: the model that the twin was made of, or another of the same structure (its running average).
        """
        if source is not self._source:
            self._bind(source)
        for conv, live, bn in self._convs:
            scale, shift = scale_and_shift(bn)
            conv.weight.copy_(live.weight * scale.view(-1, 1, 1, 1))
            assert conv.bias is not None  # `_replacement` gave it one
            conv.bias.copy_(shift if live.bias is None else shift + live.bias * scale)
        for norm, bn in self._norms:
            scale, shift = scale_and_shift(bn)
            norm.scale.copy_(scale)
            norm.shift.copy_(shift)
        for tensor, live in self._copies:
            tensor.copy_(live)
