"""Failure indicators of Pintor et al. 2022 (section 3): signs that the authors' PGD-100 failed, not that nets held.

Each is the share, of the images that are right when clean, that shows it; 0 is good.
"""

import torch
from torch import Tensor, nn

from fsr.attacks.gradient import cross_entropy, is_wrong, logit_margin, project_linf
from fsr.audit.ascent import ascend, slope
from fsr.audit.context import Context, differs
from fsr.models.modes import eval_mode

UNSTABLE = 0.1  # mean change of 1 - p_y under noise of one step
INCOMPLETE = 0.01  # gain of the last tenth of the steps, as a part of the whole path's
STEPS, EVERY = 100, 10
NAMES: tuple[str, ...] = ("unavailable_gradients", "unstable_predictions", "silent_success", "incomplete_optimisation")
NAMES += ("transfer_failure", "unbounded_attack_fails")


@torch.no_grad()
def _change(c: Context, x: Tensor, y: Tensor, draws: int = 5) -> Tensor:
    """Mean change of 1 - p_y when every pixel moves by at most one step, (N,); a randomised one changes by itself."""

    def right(images: Tensor) -> Tensor:
        return c.reference(images).softmax(dim=1).gather(1, y[:, None]).squeeze(1)

    moves = [0.1 * c.eps * (2 * torch.rand_like(x) - 1) for _ in range(draws)]
    return torch.stack([(right((x + move).clamp(0, 1)) - right(x)).abs() for move in moves]).mean(dim=0)


def _observed(c: Context, rows: Tensor) -> dict[str, Tensor]:
    """The indicators of the images rows (M,), each (M,) bool; transfer_failure only with a surrogate."""
    x, y, oracle = c.x[rows], c.y[rows], slope(c.net, cross_entropy)
    x_adv, values = x, list[Tensor]()
    flat = ever_wrong = torch.zeros_like(y, dtype=torch.bool)
    change = torch.zeros_like(y, dtype=x.dtype)
    for step in range(STEPS + 1):
        value, gradient, wrong = oracle(x_adv, y)
        values.append(value)
        flat = flat | (~wrong & (gradient.flatten(1).abs().amax(dim=1) == 0))
        if step % EVERY == 0:
            change += _change(c, x_adv, y) / (STEPS // EVERY + 1)
            wrong = ~c.correct(x_adv, rows)
        if not c.randomised or step % EVERY == 0:  # one draw of a randomised network is no error of it
            ever_wrong = ever_wrong | wrong
        if step < STEPS:
            x_adv = project_linf(x_adv + 0.1 * c.eps * gradient.sign(), x, c.eps)
    held, tail, heights = c.correct(x_adv, rows), STEPS // 10, torch.stack(values)
    before, after = heights[:-tail].amax(dim=0), heights[-tail:].amax(dim=0)
    gain = (torch.maximum(before, after) - heights[0]).clamp_min(1e-12)
    steps = c.budget["steps"]
    free = ascend(slope(c.net, logit_margin), x, y, eps=1.0, steps=steps, stop=not c.randomised)
    found = {
        "unavailable_gradients": flat,  # zero, missing or not finite at an iterate that is still right
        "unstable_predictions": change > UNSTABLE,
        "silent_success": ever_wrong & held,  # an iterate was wrong, the last one is not
        "incomplete_optimisation": held & ((after - before) / gain > INCOMPLETE),
        "unbounded_attack_fails": ~is_wrong(c.scores(free), y),  # not even eps = 1 breaks it
    }
    if c.surrogate is not None:
        x_adv = ascend(slope(c.surrogate, logit_margin), x, y, eps=c.eps, steps=steps, stop=False)
        with torch.no_grad():
            fooled = is_wrong(c.surrogate(x_adv), y)
        found["transfer_failure"] = fooled & c.correct(x_adv, rows)  # it fools the surrogate and not the network
    return found


def indicators(c: Context, details: dict) -> list:
    """The six shares, None where there is nothing to measure; what each means is said in `_observed`."""
    parts = [_observed(c, rows) for rows in c.clean_rows()] or [{}]
    details |= {name: torch.cat([part[name] for part in parts]) if name in parts[0] else None for name in NAMES}
    return []


def cheap_checks(model: nn.Module, c: Context) -> dict[str, bool]:
    """Does the network look at the whole batch, and does a compiled one differ from its eager form?"""
    found, x = {"batch_dependent": False, "compiled_differs": False}, c.x[:8]
    if not c.randomised:
        found["batch_dependent"] = differs(c.reference, lambda x: torch.cat([*map(c.reference, x.split(1))]), x)
        if hasattr(model, "_orig_mod"):
            with eval_mode(model):
                found["compiled_differs"] = differs(c.reference, lambda x: model(x.clone()), x)
    return found
