"""What a network costs: parameters and multiply-accumulates."""

import torch
from torch import Tensor, nn

from fsr.models.modes import eval_mode


def count_params(model: nn.Module) -> int:
    """Trainable numbers of model; BatchNorm's running statistics are not among them."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates per image of one eval-mode pass: convolutions and linear layers, as such tables count.

    x: (N, C, H, W). An auxiliary head does not run there and is not counted.
    """
    total = 0

    def add(module, args, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    parts = [part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    handles = [part.register_forward_hook(add) for part in parts]
    try:
        with eval_mode(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return total // len(x)
