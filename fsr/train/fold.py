"""The folded copy of a network in eval mode: each BatchNorm inside the convolution before it; used where equal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import FSRError
from fsr.hardware import BF16_UNITS
from fsr.models.modes import copied, eval_mode, hooked
from fsr.train.distributed import CpuSyncBatchNorm

log = logging.getLogger("fsr")
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, CpuSyncBatchNorm)


def dtype_of(precision: str, model: nn.Module, device: torch.device) -> torch.dtype:
    """What crafting computes in: bf16 only where the processor multiplies it natively; a float64 network in float64."""
    if any(p.dtype == torch.float64 for p in model.parameters()):
        return torch.float64
    fast = precision == "bf16" and (device.type == "cuda" or BF16_UNITS)
    return torch.bfloat16 if fast else torch.float32


def layout_of(model: nn.Module, device: torch.device, x: Tensor | None = None) -> torch.memory_format:
    """The fastest memory layout that takes x; on a CPU, torch 2.15 can crash in channels-last backward below 16."""
    narrowest = min((m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)), default=0)
    if device.type == "cuda" or narrowest >= 16:
        with suppress(Exception), torch.no_grad():  # `view` may need contiguous maps
            net = copied(model).eval()  # or read its strides
            if x is not None:
                compare(net(x.clone(memory_format=torch.channels_last)), net(x.clone()), 1e-3)
            return torch.channels_last
    return torch.contiguous_format


@contextmanager
def or_log(failed: str) -> Iterator[None]:
    """What is raised inside, by a network or a compiler, ends the block with one line in the log that begins so."""
    try:
        yield
    except FSRError:  # a hook that stops the computation
        raise
    except Exception as error:
        log.warning("%s: %s", failed, (str(error).strip().splitlines() or [type(error).__name__])[0][:160])


def compare(ours: Tensor, own: Tensor, limit: float) -> None:
    """ValueError where an answer differs from the network's own by more than limit times the norm of that."""
    difference = float((ours - own).norm() / own.norm().clamp_min(1e-30))
    if not difference <= limit:
        raise ValueError(f"its answers differ by {difference:.2g}")


@torch.no_grad()
def feeding_convolutions(net: nn.Module, x: Tensor) -> dict[str, str]:
    """Path of each convolution to that of the BatchNorm that gets its output."""
    names = {module: name for name, module in net.named_modules() if type(module) in (nn.Conv2d, *BATCHNORMS)}
    pairs, idle = dict[str, str](), {module for module in names if type(module) is not nn.Conv2d}

    def after(module: Any, given: tuple, y: Any) -> None:
        idle.discard(module)
        if type(module) is nn.Conv2d:
            y.made_by = names[module], y._version
        elif (made_by := getattr(given[0], "made_by", None)) and made_by[1] == given[0]._version:  # not changed since
            pairs[made_by[0]] = names[module]

    with hooked(names, after):
        net(x.clone())
    return {} if idle else pairs  # other images may go through a BatchNorm that these left out


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    every: Any = {"remove_duplicate": False}  # under every name that they have
    return dict(net.named_parameters(**every)) | dict(net.named_buffers(**every))


class FoldedCopy:
    """`net` computes model(x) of eval mode, with the hooks and attributes of now; `refill` takes the live weights."""

    def __init__(self, model: nn.Module, pairs: dict[str, str], dtype: torch.dtype, layout=torch.contiguous_format):
        self.pairs, self.dtype, made = pairs, dtype, set()
        self.net: Any = copied(model).eval().requires_grad_(False)
        for conv, bn in pairs.items():
            layer = self.net.get_submodule(conv)
            layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)  # its own, where weights are tied
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels), requires_grad=False)
            self.net.get_submodule(bn).__class__ = nn.Identity
            made |= {layer.weight, layer.bias}
        for layer in self.net.modules():
            if type(layer) in (nn.Conv2d, nn.Linear):
                layer.to(dtype if type(layer) is nn.Conv2d else torch.promote_types(dtype, torch.float32))
                layer.register_forward_pre_hook(lambda own, given: (given[0].to(own.weight.dtype),))
        self.net.to(memory_format=layout)
        self._kept = {name: tensor for name, tensor in _tensors(self.net).items() if tensor not in made}
        self.refill(model)

    @torch.no_grad()
    def refill(self, source: nn.Module) -> None:
        """Take the weights and statistics of source, of the same structure, in place: recorded graphs stay valid."""
        if self._kept:
            tensors = _tensors(source)
            torch._foreach_copy_([*self._kept.values()], [tensors[name] for name in self._kept])
        for path, norm in self.pairs.items():
            layers: Any = self.net.get_submodule(path), source.get_submodule(path), source.get_submodule(norm)
            conv, live, bn = layers
            scale = torch.rsqrt(bn.running_var + bn.eps) * (1 if bn.weight is None else bn.weight)
            shift = -bn.running_mean * scale + (0 if bn.bias is None else bn.bias)
            conv.weight.copy_(live.weight * scale.view(-1, 1, 1, 1))
            conv.bias.copy_(shift if live.bias is None else shift + live.bias * scale)


@torch.no_grad()
def randomised_statistics(net: nn.Module) -> nn.Module:
    """net, changed: statistics and weights of every BatchNorm are random, since fresh ones are nearly the identity."""
    for module in net.modules():
        for tensor in module.state_dict().values() if type(module) in BATCHNORMS else ():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return net


def _answers(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = net(leaf.clone()).to(x.dtype)
        weights = torch.linspace(-1, 1, logits.numel(), dtype=x.dtype, device=x.device).view_as(logits)
        return logits.detach(), torch.autograd.grad((logits * weights).sum(), leaf)[0]


def folded_copy(model, x: Tensor, dtype=torch.float32, layout=torch.contiguous_format) -> FoldedCopy | None:
    """The folded copy of any network, or None, with one line in the log, where none is the same function."""
    converted = (nn.Conv2d, nn.Linear, *BATCHNORMS)  # others with weights stay float32
    if any(type(m) not in converted and list(m.parameters(recurse=False)) for m in model.modules()):
        dtype = torch.promote_types(dtype, torch.float32)
    light, live = x.detach().flatten(1).mean(dim=1), torch.promote_types(dtype, torch.float32)
    # the darkest and the brightest of all images may go another way than the first
    x, called = x.detach()[[0, int(light.argmin()), int(light.argmax())]].clone(), list[str]()
    failed = "attacks are crafted on the network itself, without its folded copy"
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), or_log(failed), eval_mode(model):
        torch.manual_seed(0)
        shadow = randomised_statistics(copied(model).double().requires_grad_(False))
        pairs = feeding_convolutions(shadow, x.double())
        copies = {each: FoldedCopy(model, pairs, each, layout) for each in (live, dtype)}
        cases = [(FoldedCopy(shadow, pairs, torch.float64), shadow, x.double(), 1e-6)]
        cases += [(copy, model, x, 0.05 if each == live else 1e9) for each, copy in copies.items()]
        for copy, net, images, limit in cases:
            own = _answers(net, images)
            with hooked(model.modules(), lambda module, *_: called.append(type(module).__name__)):
                ours = _answers(copy.net, images)
            for a, b in zip(ours, own):
                compare(a, b, limit)
        if called:  # by a closure: the copy would see the live weights in the live mode
            raise ValueError(f"it goes on to call the network's own {called[0]}")
        return copies[dtype]
    return None
