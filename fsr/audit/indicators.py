"""Signs that an attack failed and not that the model held: six numbers (after Pintor et al. 2022, section 3).

The attack that is looked at is the authors' PGD-100: cross-entropy, steps of 0.1 * eps, no random start, last iterate.
Each number is the fraction, of the images that are right when clean, that shows the sign; 0 is good, and the thresholds
are written here. N images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsr.attacks.ascent import ascend, differentiated, lead, of
from fsr.attacks.distill import through
from fsr.attacks.gradient import project_linf
from fsr.attacks.losses import cross_entropy, is_wrong
from fsr.audit.case import Case
from fsr.audit.result import Findings

NAMES = (
    "unavailable_gradients",
    "unstable_predictions",
    "silent_success",
    "incomplete_optimisation",
    "transfer_failure",
    "unbounded_attack_fails",
)
UNSTABLE = 0.1  # mean change of 1 - p_y under noise of one step
INCOMPLETE = 0.01  # gain of the last tenth of the steps, as a part of the whole path's
STEPS = 100


@dataclass
class Path:
    """What one PGD run showed per image: (N,) bool or float, heights (steps + 1, N)."""

    flat: Tensor  # the gradient was zero somewhere while the image was still right
    change: Tensor
    ever_wrong: Tensor
    heights: Tensor
    x_adv: Tensor


def _doubt(logits: Tensor, y: Tensor) -> Tensor:
    """1 - p_y, (N,) in [0, 1]."""
    return 1 - logits.softmax(dim=1).gather(1, y[:, None]).squeeze(1)


def _shaken(case: Case, x_adv: Tensor, y: Tensor, draws: int = 5) -> Tensor:
    """Mean change of 1 - p_y when every pixel moves by at most one step, (N,); a randomised model changes by itself."""
    with torch.no_grad():
        here = _doubt(case.model(x_adv), y)
        moves = (0.1 * case.eps * (2 * torch.rand_like(x_adv) - 1) for _ in range(draws))
        changes = [(_doubt(case.model((x_adv + move).clamp(0, 1)), y) - here).abs() for move in moves]
    return torch.stack(changes).mean(dim=0)


def walk(case: Case, rows: Tensor) -> Path:
    """The authors' PGD-100 on the images rows (N,), watched; one draw of a randomised model is no error of it."""
    x, y, look = case.x[rows], case.y[rows], differentiated(of(case.net, cross_entropy))
    x_adv = x
    flat, ever_wrong = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
    change, heights = torch.zeros(len(x), device=x.device), []
    for step in range(STEPS + 1):
        value, gradient, wrong = look(x_adv, y, rows)
        heights.append(value)
        if not case.randomised:
            ever_wrong |= wrong
        elif step % 10 == 0:
            ever_wrong |= ~case.judge.correct(x_adv, rows)
        flat |= ~wrong & (gradient.flatten(1).abs().amax(dim=1) == 0)
        if step % 10 == 0:
            change += _shaken(case, x_adv, y) / (STEPS // 10 + 1)
        if step < STEPS:
            x_adv = project_linf(x_adv + 0.1 * case.eps * gradient.sign(), x, case.eps)
    return Path(flat, change, ever_wrong, torch.stack(heights), x_adv)


def signs(case: Case, rows: Tensor) -> dict[str, Tensor]:
    """Each sign for the images rows (M,), as (M,) bool; transfer_failure only says something where `fooled`."""
    x, y = case.x[rows], case.y[rows]
    path = walk(case, rows)
    held = case.judge.correct(path.x_adv, rows)
    tail = STEPS // 10
    before, after = path.heights[:-tail].amax(dim=0), path.heights[-tail:].amax(dim=0)
    whole = (torch.maximum(before, after) - path.heights[0]).clamp_min(1e-12)
    borrowed = through(case.student, x, y, eps=case.eps, steps=case.budget.steps)
    with torch.no_grad():
        fooled = is_wrong(case.student(borrowed), y)
    free = ascend(
        differentiated(of(case.net, lead), draws=case.draws),
        x,
        y,
        eps=1.0,
        steps=case.budget.steps,
        until_wrong=not case.randomised,
    )
    return {
        "unavailable_gradients": path.flat,
        "unstable_predictions": path.change > UNSTABLE,
        "silent_success": path.ever_wrong & held,
        "incomplete_optimisation": held & ((after - before) / whole > INCOMPLETE),
        "transfer_failure": fooled & case.judge.correct(borrowed, rows),
        "unbounded_attack_fails": ~is_wrong(case.judge.scores(free), y),
    }


def indicators(case: Case) -> Findings:
    """The six numbers, None where no image is right when clean.

    unavailable_gradients: the gradient was exactly zero, missing or not finite at an iterate that is still right.
    unstable_predictions: along the path, noise of one step changes 1 - p_y by more than 0.1 on average.
    silent_success: an iterate was wrong, the last one is not. incomplete_optimisation: the last tenth of the steps
    still brought more than 1 % of the whole gain, and the image held. transfer_failure: an image fools the smooth
    student and not the model. unbounded_attack_fails: not even eps = 1 breaks it.
    """
    parts = [signs(case, rows) for rows in case.parts(case.clean)]
    if not parts:
        return Findings(details=dict.fromkeys(NAMES))
    return Findings(details={name: float(torch.cat([part[name] for part in parts]).double().mean()) for name in NAMES})
