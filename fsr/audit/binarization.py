"""The binarization test: does an attack find adversarial images that are known to exist?

Zimmermann, Brendel, Tramèr, Carlini (NeurIPS 2022): around each image a fresh last layer on the network's features
tells one random corner of the ball from many points inside. N images, D features, K classes.
"""

from collections.abc import Callable

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


def last_layer(model: nn.Module, x: Tensor) -> nn.Linear:
    """The last linear layer of a network that gives as many values as there are logits; UsageError without one."""
    called: list[nn.Linear] = []
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    hooks = [part.register_forward_hook(lambda layer, *_: called.append(layer)) for part in linear]
    with torch.no_grad(), hooked(hooks):
        classes = model(x[:1].clone()).shape[1]
    found = [layer for layer in called if layer.out_features == classes]
    if not found:
        raise UsageError("the binarization test replaces a last nn.Linear, and this network has none")
    return found[-1]


def _head(points: Tensor, closeness: float) -> tuple[Tensor, Tensor]:
    """Weight (D,) and bias () of Fisher's discriminant between the first of the points (M, D) and all others."""
    corner, cloud, mean = points[0], points[1:], points[1:].mean(dim=0)
    spread = (cloud - mean).T @ (cloud - mean) / len(cloud)
    spread.diagonal().add_(spread.diagonal().mean().clamp_min(1e-12))
    weight = torch.linalg.solve(spread, corner - mean)
    weight = GAP * weight / (weight @ (corner - mean)).clamp_min(1e-12)
    highest = (cloud @ weight).max()
    return weight, -(highest + closeness * (corner @ weight - highest))


class BinaryNetwork(nn.Module):
    """A copy of a network whose last layer tells class 0, near an image, from class 1, towards that image's corner.

    Which image is meant is read off the input: the nearest. solvable: (N,) bool, both are classified so.
    """

    def __init__(self, model: nn.Module, x: Tensor, *, eps: float, seed: int, closeness: float):
        super().__init__()
        self.model, self.x = private_copy(model).eval(), x
        layer, generator = last_layer(self.model, x), torch.Generator().manual_seed(seed)
        heads, corners, points = [], [], list[Tensor]()
        for image in x:
            noise = 2 * torch.rand((INNER + 2, *image.shape), generator=generator).to(x) - 1
            noise[0], noise[1] = noise[0].sign(), 0
            near = (image + eps * noise).clamp(0, 1)
            hook = layer.register_forward_hook(lambda _, given, out: points.append(given[0].double().flatten(1)))
            with torch.no_grad(), hooked([hook]):
                self.model(near.clone())
            heads.append(_head(points.pop(), closeness))
            corners.append(near[0])
        self.weight, self.bias = (torch.stack(part).to(x) for part in zip(*heads))
        layer.register_forward_hook(self._replaced)
        with torch.no_grad():
            self.solvable = (self(x).argmax(dim=1) == 0) & (self(torch.stack(corners)).argmax(dim=1) == 1)

    def _replaced(self, layer: nn.Module, given: tuple, out: Tensor) -> Tensor:
        value = (given[0] * self.weight[self.rows]).sum(dim=1, keepdim=True) + self.bias[self.rows, None]
        return torch.cat([-value / 2, value / 2, torch.full_like(out[:, 2:], OFF)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        self.rows = torch.cdist(x.detach().flatten(1), self.x.flatten(1), p=torch.inf).argmin(dim=1)
        return self.model(x)


def binary_problem(
    model: nn.Module, x: Tensor, eps: float, *, seed: int, closeness: float
) -> tuple[nn.Module, Tensor, Tensor]:
    """(network, images (M, C, H, W), labels (M,)) of those images that have a problem; UsageError where none has."""
    if not len(x):
        raise UsageError("the binarization test needs an image")
    with own_randomness(seed):
        binary = BinaryNetwork(model, x, eps=eps, seed=seed, closeness=closeness)
    x = x[binary.solvable]
    if not len(x):
        raise UsageError("no image has a corner that the network's features tell from the points inside its ball")
    return binary, x, torch.zeros(len(x), dtype=torch.int64, device=x.device)


def binarization_test(
    model: nn.Module, attack: Callable[..., Tensor], x: Tensor, eps: float, *, seed: int = 0, closeness: float = 0.99
) -> float:
    """Share of adversarial images, known to exist, that an attack finds: near one, or its numbers prove nothing.

    model: images to logits (N, K), which an nn.Linear gives; attack: (model, x, y, eps=) -> x_adv; x: (N, C, H, W) in
    [0, 1]; eps: in pixels. closeness: where the boundary lies, from the outermost point inside (0) to the corner (1);
    attacks that only read scores need 0.5. UsageError without such a layer, or where no corner is told from the rest.
    """
    check_images(x, torch.zeros(len(x), dtype=torch.int64))
    binary, x, y = binary_problem(model, x.detach().float(), eps, seed=seed, closeness=closeness)
    net = Attackable(binary, x)
    x_adv = project_linf(attack(net, x, y, eps=eps).detach(), x, eps)
    with torch.no_grad():
        return float((net(x_adv).argmax(dim=1) == 1).double().mean())
