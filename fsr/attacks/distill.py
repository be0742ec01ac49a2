"""A smooth student of any classifier, trained on nothing but the classifier's own answers, and attacks through it.

Gradient masking hides slopes, not decisions. A student that agrees with the decisions has slopes, and what fools it
tends to fool its teacher (substitute models, Papernot et al. 2017).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsr.attacks.ascent import ascend, differentiated, lead, of
from fsr.attacks.losses import Net


def student_network(channels: int, classes: int, width: int = 16) -> nn.Sequential:
    """Three smooth convolutions and a linear layer for images of 4 pixels or more: (N, C, H, W) to logits (N, K)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, classes),
    )


def _around(x: Tensor, count: int, eps: float, generator: torch.Generator) -> Tensor:
    """count images near those of x: moved by up to 2*eps or to a corner of the ball, half blended with another."""
    device = x.device
    first, second = (torch.randint(len(x), (count,), generator=generator, device=device) for _ in range(2))
    noise = 2 * torch.rand((count, *x.shape[1:]), generator=generator, device=device) - 1
    grey = noise[:, :1].expand_as(noise)
    kind = torch.randint(4, (count, 1, 1, 1), generator=generator, device=device)
    noise = torch.where(kind < 2, noise, grey)
    noise = torch.where(kind % 2 == 0, 2 * noise, noise.sign())
    blend = torch.rand((count, 1, 1, 1), generator=generator, device=device)
    blend = torch.where(torch.rand(blend.shape, generator=generator, device=device) < 0.5, 0.6 * blend, 0 * blend)
    return ((1 - blend) * x[first] + blend * x[second] + eps * noise).clamp(0, 1)


def _answers(model: Net, x: Tensor, batch: int = 500) -> Tensor:
    """The teacher's decisions, (N,) int64."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(dim=1) for part in x.split(batch)])


def _study(student: nn.Module, x: Tensor, answers: Tensor, steps: int, batch: int, generator: torch.Generator) -> None:
    """Train the student, in place, on the teacher's answers: Adam, cosine from 3e-3 to 0."""
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,), generator=generator, device=x.device)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(student(x[rows]), answers[rows]).backward()
            optimizer.step()
            schedule.step()


def distill(
    model: Net,
    x: Tensor,
    *,
    classes: int,
    eps: float,
    rounds: int = 3,
    samples: int = 2000,
    steps: int = 150,
    batch: int = 128,
    seed: int = 0,
) -> nn.Module:
    """A student of `model` around the images x (N, C, H, W) in [0, 1], in eval mode; the caller keeps the global RNG.

    Each round asks the model about new images: first random ones near x, then those that fool the student so far,
    which lie where its boundary and the model's still differ.
    """
    torch.manual_seed(seed)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    student = student_network(x.shape[1], classes).to(x.device)
    asked = torch.cat([x, _around(x, samples, eps, generator)])
    answers = _answers(model, asked)
    for turn in range(rounds):
        _study(student, asked, answers, steps, batch, generator)
        if turn < rounds - 1:
            near = _around(x, min(samples, 4 * len(x)), eps, generator)
            crafted = ascend(differentiated(of(student, lead)), near, _answers(student, near), eps=eps, steps=5)
            asked = torch.cat([asked, near, crafted])
            answers = torch.cat([answers, _answers(model, torch.cat([near, crafted]))])
    return student.eval().requires_grad_(False)


def through(student: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, start: Tensor | None = None) -> Tensor:
    """x_adv that leads the student furthest astray, to be judged on its teacher; shapes as in `ascend`."""
    return ascend(differentiated(of(student, lead)), x, y, eps=eps, steps=steps, start=start, until_wrong=False)
