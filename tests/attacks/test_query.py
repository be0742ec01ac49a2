"""N-Attack against a slow re-derivation of its algorithm, a linear model, and invariants."""

import numpy as np
import pytest
import torch

from fsr.attacks import gradient as query
from fsr.attacks.gradient import nattack


class Linear:
    """Two classes with logits (w.x + b, 0), and the sizes of the batches that it was asked about."""

    def __init__(self, bias=0.0, pixels=16):
        self.w, self.bias, self.sizes = torch.linspace(-1, 1, pixels, dtype=torch.float64), bias, []

    def __call__(self, x):
        self.sizes.append(len(x))
        z = x.flatten(1) @ self.w.to(x.dtype) + self.bias
        return torch.stack([z, torch.zeros_like(z)], dim=1)


def images(n=4):
    x = 0.3 + 0.4 * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.zeros(n, dtype=torch.long)


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
    (x, y), population, turns, model = images(3), 20, 6, Linear(bias)
    x_adv = nattack(model, x, y, eps=0.05, queries=population * turns + 7, population=population, seed=4)
    first = 0.001 * query.noise_for(x, seed=4, kind="standard_normal")
    noises = [next(query._population(x, population, 4, turn))[1].numpy() for turn in range(turns)]
    assert (model(x_adv).argmax(1) != 0).any().item() is breaks
    for n in range(3):
        more = {"population": population, "turns": turns, "first": first[n].numpy(), "noises": noises}
        expected = slow_nattack(model, x[n].numpy(), 0, eps=0.05, **more)
        np.testing.assert_allclose(x_adv[n].numpy(), expected, atol=1e-9)


def test_finds_the_way_down_that_single_draws_do_not_find():
    x, y = (part[:1].repeat(4, *[1] * (part.ndim - 1)) for part in images())
    lowest, highest = (float(Linear()(z)[0, 0]) for z in (x - 0.1 * Linear().w.sign().view(1, 4, 4), x))
    model = Linear(bias=-lowest - 0.12 * (highest - lowest))  # only points near the optimum fool it
    few, many = (nattack(model, x, y, eps=0.1, queries=queries, population=50) for queries in (50, 20_000))
    assert (model(x).argmax(1) == 0).all() and (model(few).argmax(1) == 0).all() and (model(many).argmax(1) == 1).all()


def test_never_asks_more_than_its_queries_and_stops_when_done():
    (x, y), model = images(2), Linear(bias=50.0)
    nattack(model, x, y, eps=0.1, queries=1000, population=300)
    assert sum(model.sizes) - 2 == 2 * 900
    model = Linear(bias=-50.0)
    assert torch.equal(nattack(model, x, y, eps=0.1, queries=1000), x), "wrong from the start: nothing to attack"
    assert sum(model.sizes) == 2
    barely = Linear(bias=-float(Linear()(x)[0, 0]) + 1e-6)
    nattack(barely, x[:1], y[:1], eps=0.1, queries=20_000, population=300)
    assert sum(barely.sizes) <= 1 + 300


@pytest.mark.parametrize("limit", [40 * 16, 39 * 16, 5 * 16, 1])
def test_a_population_that_does_not_fit_is_asked_part_by_part(monkeypatch, limit):
    (x, y), model, how = images(3), Linear(bias=0.62), {"eps": 0.05, "queries": 400, "population": 40, "seed": 1}
    whole = nattack(Linear(bias=0.62), x, y, **how)
    monkeypatch.setattr(query, "VALUES_PER_PASS", limit)
    parts = nattack(model, x, y, **how)
    assert 16 * max(model.sizes[1:]) <= max(limit, 16)
    if limit >= 16 * 16:  # the same draws
        torch.testing.assert_close(parts, whole)
