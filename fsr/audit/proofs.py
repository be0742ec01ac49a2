"""Does an attack find images known to exist? Did it fail?  The binarization test and the failure indicators.

Zimmermann et al. (NeurIPS 2022): around each image a last layer on the network's features tells a random corner of the
ball from points inside. Pintor et al. (2022, section 3): the share, of the images right when clean, that shows a sign.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fsr.attacks.gradient import cross_entropy, is_wrong, logit_margin, project_linf
from fsr.attacks.inputs import Network, check_images, check_numbers
from fsr.audit.ascent import ascend, slope
from fsr.audit.context import Context, attackable, differs, private_copy
from fsr.files import UsageError
from fsr.hardware import exact_float32
from fsr.models.modes import hooked

INNER, GAP, OFF = 200, 10.0, -100.0  # points inside a ball; logits from their mean to the corner; of other classes
STEPS, EVERY = 100, 2  # of the path that the indicators observe, and between two measurements of stability
UNSTABLE, INCOMPLETE = 0.1, 0.01  # mean change of p_y by noise of one step; part of the gain in the last tenth of steps
NAMES: tuple[str, ...] = ("unavailable_gradients", "unstable_predictions", "silent_success", "incomplete_optimisation")
NAMES += ("transfer_failure", "unbounded_attack_fails")


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
    """(copy with a binary last layer, images, labels 0) where there is a problem; UsageError where none is."""
    net, generator, problems = private_copy(model), torch.Generator().manual_seed(seed), []
    called, points, rows = list[nn.Linear](), list[Tensor](), list[Tensor]()  # what the hooks last saw

    def replaced(layer: nn.Module, given: tuple, out: Tensor) -> Tensor:
        value = (given[0] * weight[rows[-1]]).sum(dim=1, keepdim=True) + bias[rows[-1], None]
        return torch.cat([-value / 2, value / 2, torch.full_like(out[:, 2:], OFF)], dim=1)

    def find_rows(_, given: tuple) -> None:
        rows[:] = [torch.cdist(given[0].detach().flatten(1), x.flatten(1), p=torch.inf).argmin(dim=1)]

    linear = [part for part in net.modules() if isinstance(part, nn.Linear)]
    with hooked(linear, lambda layer, *_: called.append(layer)):
        classes = Network(net, x, torch.zeros_like(x[:, 0, 0, 0]).long())(x[:1]).shape[1] if len(x) else 0
    layers = [layer for layer in called if layer.out_features == classes]
    if not layers:
        raise UsageError("the binarization test needs an image, and an nn.Linear as the network's last layer")
    for image in x:
        noise = 2 * torch.rand((INNER + 2, *image.shape), generator=generator).to(x) - 1
        noise[0], noise[1] = noise[0].sign(), 0
        near = (image + eps * noise).clamp(0, 1)
        with hooked(layers[-1:], lambda _, given, out: points.append(given[0].double())):
            net(near.clone())
        problems.append((*_head(points.pop().flatten(1), closeness), near[0]))
    weight, bias, corners = (torch.stack(part).to(x) for part in zip(*problems))
    layers[-1].register_forward_hook(replaced)
    net.register_forward_pre_hook(find_rows, prepend=True)
    solvable = (net(x.clone()).argmax(dim=1) == 0) & (net(corners).argmax(dim=1) == 1)
    if not solvable.any():
        raise UsageError("no image has a corner that the network's features tell from the points inside its ball")
    return net, x[solvable], torch.zeros(int(solvable.sum()), dtype=torch.int64, device=x.device)


@exact_float32()
def binarization_test(model, attack: Callable[..., Tensor], x: Tensor, eps, *, seed=0, closeness=0.99) -> float:
    """Share of adversarial images, known to exist, that attack(model, x, y, eps=) finds: near one, or it is too weak.

    closeness: of the boundary, from the outermost point inside (0) to the corner (1); attacks on scores need 0.5.
    """
    check_images(x, torch.zeros(len(x), dtype=torch.int64))
    eps, seed = check_numbers(eps, seed=seed).values()
    binary, x, y = binary_problem(model, x.detach().float(), eps, seed=seed, closeness=closeness)
    net = attackable(binary, x, y)
    x_adv = project_linf(attack(net, x, y, eps=eps).detach(), x, eps)
    with torch.no_grad():
        return float((net(x_adv).argmax(dim=1) == 1).double().mean())


@torch.no_grad()
def indicators(c: Context, details: dict) -> list:
    """The six shares, of the first batch of images that are right when clean; None where nothing can be measured."""
    rows, oracle, steps = c.clean.nonzero().squeeze(1)[: c.batch], slope(c.net, cross_entropy), c.budget["steps"]
    details |= dict.fromkeys(NAMES)
    if not len(rows):
        return []
    x_adv, y, x, values = c.x[rows], c.y[rows], c.x[rows], list[Tensor]()
    change, flat = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(y, dtype=torch.bool)
    ever_wrong = flat
    for step in range(STEPS + 1):
        value, gradient, _ = oracle(x_adv, y)
        values.append(value)
        wrong = ~c.correct(x_adv, rows)
        ever_wrong, flat = ever_wrong | wrong, flat | (~wrong & (gradient.flatten(1).abs().amax(dim=1) == 0))
        if step % EVERY == 0:  # a randomised network changes by itself
            moved = (x_adv + 0.1 * c.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
            before, after = ((-cross_entropy(c.reference(images), y)).exp() for images in (x_adv, moved))
            change += (after - before).abs() / (STEPS // EVERY + 1)
        if step < STEPS:
            x_adv = project_linf(x_adv + 0.1 * c.eps * gradient.sign(), x, c.eps)
    heights = torch.stack(values)
    before, after = heights[: -STEPS // 10].amax(dim=0), heights[-STEPS // 10 :].amax(dim=0)
    gain = (torch.maximum(before, after) - heights[0]).clamp_min(1e-12)
    free = ascend(slope(c.net, logit_margin), x, y, eps=1.0, steps=steps, stop=not c.randomised)
    details["unavailable_gradients"] = flat  # zero, missing or not finite at an iterate that is still right
    details["unstable_predictions"] = change > UNSTABLE
    details["silent_success"] = ever_wrong & ~wrong  # an iterate was wrong, the last one is not
    details["incomplete_optimisation"] = ~wrong & ((after - before) / gain > INCOMPLETE)
    details["unbounded_attack_fails"] = ~is_wrong(c.judge(free), y)  # not even eps = 1 breaks it
    if c.surrogate is not None:  # the surrogate is fooled, the network is not
        x_adv = ascend(slope(c.surrogate, logit_margin), x, y, eps=c.eps, steps=steps, stop=False)
        details["transfer_failure"] = is_wrong(c.surrogate(x_adv), y) & c.correct(x_adv, rows)
    return []


@torch.no_grad()
def cheap_checks(model: nn.Module, c: Context) -> dict[str, bool | None]:
    """Does the network, in eval mode, look at the whole batch, and does a compiled one differ from its eager form?

    UsageError where the copy is another function than the network, as with a hook that asks `module is model`.
    """
    x, buffers = c.x[:8], [(buffer, buffer.clone()) for buffer in model.buffers()]
    if c.randomised:
        return dict.fromkeys(("batch_dependent", "compiled_differs", "gradients_change_it"))  # None: not measured
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    with torch.compiler.set_stance("default"):
        own = Network(model, c.x.to(dtype), c.y)(x).to(x)
    for buffer, before in buffers:
        if not torch.equal(buffer, before):  # it may count its passes
            buffer.copy_(before)
    compiled, other = hasattr(model, "_orig_mod"), differs(c.reference(x), own, 1e-4 if dtype == x.dtype else 0.05)
    if other and not compiled:
        raise UsageError("a deep copy of this network gives other logits than it does: nothing is audited")
    with torch.enable_grad():
        answers = {"gradients_change_it": c.reference(x.clone().requires_grad_()).detach()}
    answers["batch_dependent"] = torch.cat([*map(c.reference, x.split(1))])
    found: dict[str, bool | None] = {name: differs(c.reference(x), answer) for name, answer in answers.items()}
    return found | {"compiled_differs": compiled and other}
