"""The audited network as attacks see it, FSR's switches, and what an attack must leave as it was.

N images, K classes.
"""

import copy
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsr.files import UsageError
from fsr.models.fsr import FSR


def private_copy(model: nn.Module) -> nn.Module:
    """The same network, not compiled, with float32 parameters that ask for no gradient; the caller's stays as it is."""
    try:
        return copy.deepcopy(getattr(model, "_orig_mod", model)).float().requires_grad_(False)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UsageError(f"audit works on a copy of the model, and this one cannot be copied: {error}") from error


class Attackable(nn.Module):
    """A model that any attack can be run on: images (N, C, H, W) to finite float32 logits (N, K) with a gradient.

    The gradient is zero where the model has none. Logits of minus infinity become one below the row's lowest other.
    draws: passes of a randomised model, whose mean softmax's logarithm, up to a constant, is given.
    """

    def __init__(self, model: nn.Module, probe: Tensor, draws: int = 1):
        super().__init__()
        self.model, self.draws, self.differentiable = model, draws, True
        leaf = probe[:1].detach().clone().requires_grad_()
        try:
            with torch.enable_grad():
                torch.autograd.grad(self._pass(leaf).sum(), leaf)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, NotImplementedError):
            self.differentiable = False

    def _pass(self, x: Tensor) -> Tensor:
        images = x.clone() if self.differentiable else x.detach().clone()
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient.nan_to_num(0, 0, 0))
        logits = self.model(images).float()
        off = torch.isneginf(logits)
        lowest = logits.detach().masked_fill(off, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(off, lowest - 1, logits) + 0 * x.flatten(1).sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.draws == 1:
            return self._pass(x)
        return torch.stack([self._pass(x).log_softmax(dim=1) for _ in range(self.draws)]).logsumexp(dim=0)


def masked(model: nn.Module) -> list[FSR]:
    """The FSR modules of a model that have a mask, in the order of `modules()`."""
    return [part for part in model.modules() if isinstance(part, FSR) and part.has_mask]


@contextmanager
def switched(model: nn.Module, **switches) -> Iterator[None]:
    """FSR's test-time attributes (backward_tau, noise, intervention) set inside; a list gives each module its own."""
    modules = masked(model)
    before = [{name: getattr(module, name) for name in switches} for module in modules]
    try:
        for i, module in enumerate(modules):
            for name, value in switches.items():
                setattr(module, name, value[i] if isinstance(value, list) else value)
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            for name, value in values.items():
                setattr(module, name, value)


@contextmanager
def reading(modules: Sequence[nn.Module], read: Callable[[Any, tuple, Tensor], None]) -> Iterator[None]:
    """Inside, read(module, inputs, output) is called after each of these modules; afterwards the hooks are gone."""
    handles = [module.register_forward_hook(lambda *given: read(*given)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def differs(net: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Do two networks' logits on x differ by more than 1e-4 of a row's largest?"""
    first = net(x)
    scale = first.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    return bool((((other(x) - first) / scale).abs() > 1e-4).any())


def fingerprint(model: nn.Module) -> dict[str, object]:
    """What an attack must leave as it was, by name."""
    parts, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
    return {
        "train mode": [part.training for part in parts],
        "weights and buffers": [zlib.crc32(t.detach().cpu().contiguous().numpy().tobytes()) for t in tensors],
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "hooks": [[*p._forward_hooks, *p._forward_pre_hooks, *p._backward_hooks] for p in parts],
        "random state": (torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()),
    }


def changed(before: dict[str, object], model: nn.Module) -> list[str]:
    """The names of what is no longer as in an earlier fingerprint of the model."""
    after = fingerprint(model)
    return [name for name, value in before.items() if after[name] != value]
