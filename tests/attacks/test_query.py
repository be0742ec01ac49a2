"""N-Attack against a slow re-derivation of its algorithm, a linear model, and invariants."""

import numpy as np
import pytest
import torch

from fsr.attacks import query
from fsr.attacks.query import nattack


class Linear:
    """Two classes with logits (w.x + b, 0), and a count of the images that were asked."""

    def __init__(self, pixels, bias=0.0):
        self.w = torch.linspace(-1, 1, pixels, dtype=torch.float64)
        self.bias, self.asked, self.passes = bias, 0, 0

    def __call__(self, x):
        self.asked += len(x)
        self.passes += 1
        z = x.flatten(1) @ self.w.to(x.dtype) + self.bias
        return torch.stack([z, torch.zeros_like(z)], dim=1)


def images(n=4, size=4):
    generator = torch.Generator().manual_seed(2)
    return 0.3 + 0.4 * torch.rand(n, 1, size, size, generator=generator, dtype=torch.float64)


def slow_nattack(model, x, label, *, eps, population, turns, first, noises, sigma=0.1, step=0.02):
    """One image, one member at a time, straight from the algorithm; returns the image."""
    mean, z = first.copy(), np.arctanh((2 * x - 1) * (1 - 1e-6))
    for turn in range(turns):
        scores = []
        for member in noises[turn]:
            image = (np.tanh(z + mean + sigma * member) + 1) / 2
            image = np.clip(x + np.clip(image - x, -eps, eps), 0, 1)
            logits = model(torch.from_numpy(image)[None])[0].numpy()
            if logits.argmax() != label:
                return image
            scores.append(-0.5 * max(logits[label] - logits[1 - label], 0))
        scores = np.array(scores)
        scores = (scores - scores.mean()) / (scores.std() + 1e-7)
        for score, member in zip(scores, noises[turn]):
            mean += step / (population * sigma) * score * member
    return np.clip(x + np.clip((np.tanh(z + mean) + 1) / 2 - x, -eps, eps), 0, 1)


@pytest.mark.parametrize("bias, breaks", [(4.0, False), (0.62, True)])
def test_equals_a_slow_rederivation(bias, breaks):
    x, y, population, turns = images(3), torch.zeros(3, dtype=torch.long), 20, 6
    model = Linear(16, bias)
    x_adv = nattack(model, x, y, eps=0.05, queries=population * turns + 7, population=population, seed=4)
    first = 0.001 * query.noise_for(x, seed=4, kind="standard_normal")
    noises = [next(query._population(x, population, 4, turn))[1].numpy() for turn in range(turns)]
    broken = model(x_adv).argmax(1) != 0
    assert broken.any().item() is breaks
    for n in range(3):
        more = {"population": population, "turns": turns, "first": first[n].numpy(), "noises": noises}
        expected = slow_nattack(model, x[n].numpy(), 0, eps=0.05, **more)
        np.testing.assert_allclose(x_adv[n].numpy(), expected, atol=1e-9)


def test_finds_the_way_down_that_single_draws_do_not_find():
    x, y = images(1).repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.long)
    optimum = x - 0.1 * Linear(16).w.sign().view(1, 4, 4)
    lowest, highest = float(Linear(16)(optimum)[0, 0]), float(Linear(16)(x)[0, 0])
    model = Linear(16, bias=-lowest - 0.12 * (highest - lowest))  # only points near the optimum fool it
    assert (model(x).argmax(1) == 0).all()
    few = nattack(model, x, y, eps=0.1, queries=50, population=50)
    many = nattack(model, x, y, eps=0.1, queries=20_000, population=50)
    assert (model(few).argmax(1) == 0).all() and (model(many).argmax(1) == 1).all()


def test_never_asks_more_than_its_queries_and_stops_when_done():
    x, y, model = images(2), torch.zeros(2, dtype=torch.long), Linear(16, bias=50.0)
    nattack(model, x, y, eps=0.1, queries=1000, population=300)
    assert model.asked - 2 == 2 * 900
    model = Linear(16, bias=-50.0)
    assert torch.equal(nattack(model, x, y, eps=0.1, queries=1000), x), "wrong from the start: nothing to attack"
    assert model.asked == 2
    barely = Linear(16, bias=-float(Linear(16)(x)[0, 0]) + 1e-6)
    nattack(barely, x[:1], y[:1], eps=0.1, queries=20_000, population=300)
    assert barely.asked <= 1 + 300


@pytest.mark.parametrize("limit", [40 * 16, 39 * 16, 5 * 16, 1])
def test_a_population_that_does_not_fit_is_asked_part_by_part(monkeypatch, limit):
    x, y, sizes = images(3), torch.zeros(3, dtype=torch.long), []

    def model(x):
        sizes.append(x[1:].numel())
        return Linear(16, bias=0.62)(x)

    whole = nattack(model, x, y, eps=0.05, queries=400, population=40, seed=1)
    monkeypatch.setattr(query, "VALUES_PER_PASS", limit)
    sizes.clear()
    parts = nattack(model, x, y, eps=0.05, queries=400, population=40, seed=1)
    assert max(sizes[1:]) < max(limit, 16)
    if limit >= 16 * 16:  # the same draws
        torch.testing.assert_close(parts, whole)
