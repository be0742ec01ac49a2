"""Honest slopes for flat operations, inside any model and in one forward pass.

A model may round its input, threshold its features or saturate its units; its gradient is then zero although its
decision is not flat. Backward pass differentiable approximation (BPDA, Athalye et al. 2018, section 4.1) replaces such
an operation's derivative and keeps its value. Here that happens to every such operation that a model calls.
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

STAIRS = {
    "round",
    "floor",
    "ceil",
    "trunc",
    "fix",
    "detach",
    "clamp",
    "clip",
    "clamp_min",
    "clamp_max",
    "hardtanh",
    "relu6",
    "fake_quantize_per_tensor_affine",
    "nan_to_num",
}
SIGNS = {"sign", "sgn", "heaviside"}
SQUASHED = {"sigmoid": torch.sigmoid, "expit": torch.sigmoid, "hardsigmoid": torch.sigmoid, "tanh": torch.tanh}
PROBABILITIES = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}
FLOORED = {"floor_divide", "__floordiv__", "__rfloordiv__"}
DIVIDED = {"div", "divide"}  # whole only with a rounding mode
REMAINDERS = {"remainder", "fmod", "__mod__"}
CASTS = {"int", "long", "short", "char", "byte", "bool", "to", "type"}
COMPARED = {
    "gt": 1,
    "ge": 1,
    "greater": 1,
    "greater_equal": 1,
    "__gt__": 1,
    "__ge__": 1,
    "lt": -1,
    "le": -1,
    "less": -1,
    "less_equal": -1,
    "__lt__": -1,
    "__le__": -1,
}
LOGIC = {
    "__and__": torch.mul,
    "bitwise_and": torch.mul,
    "logical_and": torch.mul,
    "__or__": torch.maximum,
    "bitwise_or": torch.maximum,
    "logical_or": torch.maximum,
    "__invert__": lambda a: 1 - a,
    "bitwise_not": lambda a: 1 - a,
    "logical_not": lambda a: 1 - a,
}


def _graded(x) -> bool:
    return isinstance(x, Tensor) and x.requires_grad and x.is_floating_point()


def _like(value: Tensor, slope: Tensor) -> Tensor:
    """value in the forward pass, the derivative of slope in the backward pass."""
    return value.detach() + (slope - slope.detach())


def _unsaturated(x: Tensor) -> Tensor:
    """x shrunk until it spreads over the sloping part of a squashing function."""
    return x / x.detach().std(correction=0).clamp_min(1)


def _compared(out: Tensor, x, other, sign: int) -> Tensor:
    """A comparison as 0 or 1 in floating point, with the slope of a sigmoid as wide as the differences."""
    difference = sign * (x - other)
    width = difference.detach().abs().mean().clamp_min(1e-12)
    return _like(out.to(difference.dtype), torch.sigmoid(difference / width))


def _quotient(args: tuple, kwargs: dict, *, reverse: bool) -> Tensor:
    """What a rounded division rounds, with its slopes by both of its sides."""
    above, below = args[0], args[1] if len(args) > 1 else kwargs["other"]
    return below / above if reverse else above / below


def _sloped(name: str, out: Tensor, x: Tensor, args: tuple, kwargs: dict) -> Tensor | None:
    """What `out`, the result of the operation of this name on x, becomes; None: it keeps its own slope.

    args: as they were before the operation, which may have worked in place.
    """
    if out.is_floating_point() and (name in FLOORED or (name in DIVIDED and kwargs.get("rounding_mode"))):
        return _like(out, _quotient(args, kwargs, reverse=name == "__rfloordiv__"))
    if out.shape != x.shape or not out.is_floating_point():
        return None
    if name in STAIRS:
        return _like(out, x)
    if name in SIGNS:
        return _like(out, torch.tanh(_unsaturated(x)))
    if name in SQUASHED:
        return _like(out, SQUASHED[name](_unsaturated(x)))
    if name in PROBABILITIES:
        return _like(out, PROBABILITIES[name](_unsaturated(x), kwargs["dim"] if "dim" in kwargs else args[1]))
    if name in REMAINDERS:
        return out.detach()
    return None


def _whole(name: str, out: Tensor, x: Tensor, args: tuple) -> Tensor | None:
    """As `_sloped`, for operations whose result is no floating point: it becomes that."""
    if out.is_floating_point():
        return None
    if name in CASTS:
        return _like(out.to(x.dtype), x)
    if name in COMPARED and len(args) > 1:
        return _compared(out, args[0], args[1], COMPARED[name])
    return None


class Sloped(TorchFunctionMode):
    """Inside, flat operations keep their values and get slopes, and no_grad has no effect.

    whole: also casts and comparisons, whose results become floating point; a model that indexes with them then
    raises, and the caller goes on without.
    """

    def __init__(self, *, whole: bool):
        super().__init__()
        self.whole = whole

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch._C._set_grad_enabled:
            return None
        graded = [x for x in args if _graded(x)]
        if not graded:
            return func(*args, **kwargs)
        x = graded[0]
        if func == Tensor.data.__get__:
            return x
        if self.whole and name in LOGIC:
            return LOGIC[name](*args)
        if self.whole and name == "where" and len(args) == 3 and _graded(args[0]):
            return args[2] + args[0] * (args[1] - args[2])
        before = args
        if name.endswith("_") and not name.startswith("__") and isinstance(args[0], Tensor):  # it works in place
            first = args[0].clone()
            before = tuple(first if a is args[0] else a for a in args)
            x = first if x is args[0] else x
        with torch.no_grad() if name == "floor_divide_" else nullcontext():  # this one has no derivative: an error
            out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        new = _sloped(name.removesuffix("_") if not name.startswith("__") else name, out, x, before, kwargs)
        if new is None and self.whole:
            new = _whole(name, out, x, before)
        if new is None:
            return out
        return out.copy_(new) if out is args[0] else new
