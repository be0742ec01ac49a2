"""Evaluation mode that is put back exactly as it was, and copies of any network."""

import copy
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def eval_mode(model):
    """Evaluate inside the block; afterwards every submodule has its own mode back, a frozen part its frozen one."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, was_training in before.items():
            module.training = was_training


def copied(model: Network) -> Network:
    """A deep copy, also of a network that holds tensors derived from its parameters, as the older weight norm does."""
    derived = [v for part in model.modules() for v in vars(part).values() if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in derived})
