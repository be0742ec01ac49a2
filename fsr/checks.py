"""What a config may hold: checks that name the field and say what to type."""

import math
import types
import typing
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from fsr.errors import UsageError


def _matches(value: Any, kind: Any) -> bool:
    """Is value of this annotation?  bool is not an int here, int is not a float: 1 and 1.0 hash differently."""
    if isinstance(kind, types.UnionType):
        return any(_matches(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_matches(v, inner) for v in value)
    if kind in (int, float):
        return type(value) is kind
    return isinstance(value, kind)


def require(condition: bool, message: str) -> None:
    """Raise UsageError with this message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def check_types(config: Any) -> None:
    """Every field of a dataclass is of its annotation, and finite; UsageError names the first that is not."""
    for f in fields(config):
        value = getattr(config, f.name)
        if not _matches(value, f.type):
            raise UsageError(f"{type(config).__name__}.{f.name} must be {f.type}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{type(config).__name__}.{f.name} must be finite, not {value!r}")


def one_of(config: Any, name: str, allowed: Iterable[str]) -> None:
    """A field's value is one of these; UsageError lists them."""
    value = getattr(config, name)
    require(value in allowed, f"{type(config).__name__}.{name} is {value!r}; choose one of {', '.join(allowed)}")


def positive(config: Any, *names: str) -> None:
    """These fields are above 0, or None where that stands for a default; UsageError names the first that is not."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{type(config).__name__}.{name} must be positive, not {value}")


def not_negative(config: Any, *names: str) -> None:
    """These fields are at least 0, or None; UsageError names the first that is not."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 0, f"{type(config).__name__}.{name} must not be negative, not {value}")
