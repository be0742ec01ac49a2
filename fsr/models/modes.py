"""Evaluation mode and hooks that are put back exactly as they were, copies, and what any network costs."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import UsageError


@contextmanager
def eval_mode(model):
    """Evaluate inside the block; afterwards every submodule has its own mode back, a frozen part its frozen one."""
    with ExitStack() as stack:
        for module in reversed([*model.modules()]):  # a layer may merge its weights in `eval` and part them in `train`
            stack.callback(module.train, module.training)
        model.eval()
        yield model


@contextmanager
def hooked(parts: Iterable[nn.Module], after: Callable) -> Iterator[None]:
    """Inside, each of these modules that runs calls after(module, inputs, output), which gives None."""
    with ExitStack() as stack:
        for part in parts:
            stack.callback(part.register_forward_hook(after).remove)
        yield


def copied(model: Any) -> Any:
    """A deep copy, also of tensors derived from parameters (as in old weight norm); UsageError if it shares parts."""
    derived = [v for part in model.modules() for v in vars(part).values() if isinstance(v, Tensor) and not v.is_leaf]
    clone = copy.deepcopy(model, {id(value): value.detach().clone() for value in derived})
    own, others = ({*map(id, (*net.modules(), *net.parameters(), *net.buffers()))} for net in (model, clone))
    if own & others:
        raise UsageError("a deep copy of this network shares layers or weights with it; see its __deepcopy__")
    return clone


def count_params(model: nn.Module) -> int:
    """Trainable numbers of model; BatchNorm's running statistics are not among them."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products, per image of an eval-mode pass on x (N, C, H, W)."""
    from torch.utils.flop_counter import FlopCounterMode  # brings triton, which is slow to import

    with eval_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(x)
    return counted.get_total_flops() // 2 // len(x)
