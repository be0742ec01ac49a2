"""The binarization test: does an attack find images known to exist? (Zimmermann et al., NeurIPS 2022)

Around each image a last layer on the network's features tells a random corner of the ball from points inside.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fsr.attacks.gradient import project_linf
from fsr.attacks.inputs import check_images, own_randomness
from fsr.audit.context import Attackable, private_copy
from fsr.files import UsageError
from fsr.models.modes import hooked

INNER = 200  # points inside each ball
GAP = 10.0  # logits between these points' mean and the corner
OFF = -100.0  # logit of the classes beyond the two


def _last_layer(model: nn.Module, x: Tensor) -> nn.Linear:
    called: list[nn.Linear] = []
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    with hooked(linear, lambda layer, *_: called.append(layer)):
        classes = model(x[:1].clone()).shape[1]
    if found := [layer for layer in called if layer.out_features == classes]:
        return found[-1]
    raise UsageError("the binarization test replaces a last nn.Linear, and this network has none")


def _head(points: Tensor, closeness: float) -> tuple[Tensor, Tensor]:
    """Weight (D,) and bias () of Fisher's discriminant between the first of the points (M, D) and all others."""
    corner, cloud, mean = points[0], points[1:], points[1:].mean(dim=0)
    spread = (cloud - mean).T @ (cloud - mean) / len(cloud)
    spread.diagonal().add_(spread.diagonal().mean().clamp_min(1e-12))
    weight = torch.linalg.solve(spread, corner - mean)
    weight = GAP * weight / (weight @ (corner - mean)).clamp_min(1e-12)
    highest = (cloud @ weight).max()
    return weight, -(highest + closeness * (corner @ weight - highest))


@torch.no_grad()
def binary_problem(model, x: Tensor, eps: float, *, seed: int, closeness: float) -> tuple[nn.Module, Tensor, Tensor]:
    """(copy of the network, images, labels 0) of those images that have a problem; UsageError where none has.

    Its last layer tells class 0, near the nearest image, from class 1, towards that image's corner.
    """
    net, generator, problems = private_copy(model).eval(), torch.Generator().manual_seed(seed), []
    points, rows = list[Tensor](), list[Tensor]()  # what the hooks last saw

    def replaced(layer: nn.Module, given: tuple, out: Tensor) -> Tensor:
        value = (given[0] * weight[rows[-1]]).sum(dim=1, keepdim=True) + bias[rows[-1], None]
        return torch.cat([-value / 2, value / 2, torch.full_like(out[:, 2:], OFF)], dim=1)

    def find_rows(_, given: tuple) -> None:
        rows[:] = [torch.cdist(given[0].detach().flatten(1), x.flatten(1), p=torch.inf).argmin(dim=1)]

    with own_randomness(seed):
        layer: Any = _last_layer(net, x) if len(x) else None
        for image in x:
            noise = 2 * torch.rand((INNER + 2, *image.shape), generator=generator).to(x) - 1
            noise[0], noise[1] = noise[0].sign(), 0
            near = (image + eps * noise).clamp(0, 1)
            with hooked([layer], lambda _, given, out: points.append(given[0].double())):
                net(near.clone())
            problems.append((*_head(points.pop().flatten(1), closeness), near[0]))
        if layer is not None:
            weight, bias, corners = (torch.stack(part).to(x) for part in zip(*problems))
            layer.register_forward_hook(replaced)
            net.register_forward_pre_hook(find_rows, prepend=True)
            solvable = (net(x.clone()).argmax(dim=1) == 0) & (net(corners).argmax(dim=1) == 1)
            if solvable.any():
                return net, x[solvable], torch.zeros(int(solvable.sum()), dtype=torch.int64, device=x.device)
    raise UsageError("no image has a corner that the network's features tell from the points inside its ball")


def binarization_test(
    model: nn.Module, attack: Callable[..., Tensor], x: Tensor, eps: float, *, seed: int = 0, closeness: float = 0.99
) -> float:
    """Share of adversarial images, known to exist, that attack(model, x, y, eps=) finds: near one, or it is too weak.

    closeness: of the boundary, from the outermost point inside (0) to the corner (1); attacks on scores need 0.5.
    """
    check_images(x, torch.zeros(len(x), dtype=torch.int64))
    binary, x, y = binary_problem(model, x.detach().float(), eps, seed=seed, closeness=closeness)
    net = Attackable(binary, x)
    x_adv = project_linf(attack(net, x, y, eps=eps).detach(), x, eps)
    with torch.no_grad():
        return float((net(x_adv).argmax(dim=1) == 1).double().mean())
