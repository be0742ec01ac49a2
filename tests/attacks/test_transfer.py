"""DI, TI, MI and transfer: their parts by hand, and the whole loops against what independent libraries answered."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Net
from torch import nn

from fsr.attacks import ATTACKS
from fsr.attacks import gradient as t
from fsr.attacks.gradient import cross_entropy, dlr, margin, pgd

SETTINGS = {"eps": 8 / 255, "alpha": 0.8 / 255, "steps": 6}


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, 3, 16, 16, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 6, (5,), generator=generator)


def test_resize_and_pad_puts_the_shrunk_image_where_it_says():
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    out = t.resize_and_pad(x, size=2, top=2, left=1)
    assert out.shape == x.shape
    assert out[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 3, 0], [0, 9, 11, 0]]


def test_diversity_changes_about_half_of_the_calls_within_its_range():
    x = torch.ones(2, 3, 20, 20)
    transform = t.diversity(seed=0)
    outs = [transform(x) for _ in range(400)]
    sizes = [round(float(out[0, 0].sum()) ** 0.5) for out in outs]
    assert set(sizes) == {18, 19, 20}
    assert 0.4 < np.mean([size == 20 for size in sizes]) < 0.6
    corners = {(int(out[0, 0].sum(1).argmax()), int(out[0, 0].sum(0).argmax())) for out in outs}
    assert corners == {(top, left) for top in range(3) for left in range(3)}
    assert all(torch.equal(out[0], out[1]) for out in outs), "one draw serves the batch"
    again, other = t.diversity(seed=0), t.diversity(seed=1)
    assert all(torch.equal(again(x), out) for out in outs) and not all(torch.equal(other(x), out) for out in outs)
    small = [t.diversity(seed=s, probability=1)(torch.ones(1, 3, 8, 8)) for s in range(40)]  # the size of the digits
    assert {int(out[0, 0].sum()) for out in small} == {49} and len({str(out[0, 0].tolist()) for out in small}) == 4


def test_each_attack_falls_back_to_pgd_when_its_part_is_off():
    (x, y), net = batch(), Net().double()
    expected = pgd(net, x, y, random_start=False, **SETTINGS)
    for attack, off in ((t.di_fgsm, {"probability": 0.0}), (t.ti_fgsm, {"kernel": 1}), (t.mi_fgsm, {"decay": 0.0})):
        torch.testing.assert_close(attack(net, x, y, **off, **SETTINGS), expected, rtol=0, atol=1e-12)
        assert not torch.allclose(attack(net, x, y, **SETTINGS), expected)


@pytest.mark.parametrize("name", ["transfer", "di-fgsm", "ti-fgsm", "mi-fgsm"])
def test_crafted_on_the_surrogate_never_on_the_model(name):
    (x, y), surrogate = batch(), Net(seed=1).double()

    def untouchable(images):
        raise AssertionError("a transfer attack asked the model")

    x_adv = ATTACKS[name](untouchable, x, y, eps=8 / 255, surrogate=surrogate, steps=5)
    alone = ATTACKS[name](untouchable, x[1:3], y[1:3], eps=8 / 255, surrogate=surrogate, steps=5)
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-12
    torch.testing.assert_close(alone, x_adv[1:3], rtol=0, atol=1e-12)
    gain = cross_entropy(surrogate(x_adv), y) - cross_entropy(surrogate(x), y)
    assert (gain > 0).all()


# Against torchattack and adv-lib, whose answers are stored with the net, the images and the versions: torchattack's
# PGD(random_start=False), MIFGSM(decay=1), DIFGSM(decay=0, resize_rate=0.5, diversity_prob=0.7) with the draws it made,
# and TIFGSM(decay=0) with the kernel of Dong et al.'s code; adv-lib's pgd_linf(random_init=False) with one step more,
# since it returns the last image that erred before the final one. Pixels, eps and alpha are whole fifths of a grey
# level, hence so is each iterate; no gradient is so small that rounding turns its sign.
LIBRARY = {"eps": 8 / 255, "alpha": 0.8 / 255, "steps": 12}  # steps enough to meet the border of the ball


@pytest.fixture(scope="module")
def frozen():
    """(net, x, y, function that gives a library's x_adv, all arrays), in float64."""
    stored = dict(np.load(Path(__file__).parent.parent / "parity" / "attack_libraries.npz", allow_pickle=False))
    body = nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Tanh()
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)).double()
    net.load_state_dict({name: torch.from_numpy(stored[f"net.{name}"]).double() for name in net.state_dict()})
    x, y = torch.from_numpy(stored["grey"]).double() / 255, torch.from_numpy(stored["y"])
    return net, x, y, lambda name: x + torch.from_numpy(stored[name]).double() / (5 * 255), stored


ATTACKED = {"pgd": partial(pgd, random_start=False), "mi": t.mi_fgsm, "ti": t.ti_fgsm}


@pytest.mark.parametrize("name", ATTACKED)
def test_pgd_momentum_and_translation_invariance_equal_torchattack(frozen, name):
    net, x, y, answer, _ = frozen
    ours = ATTACKED[name](net, x, y, **LIBRARY)
    torch.testing.assert_close(ours, answer(f"torchattack.{name}"), rtol=0, atol=1e-12)


def test_input_diversity_equals_torchattack_with_the_same_draws(frozen, monkeypatch):
    net, x, y, answer, stored = frozen
    draws = stored["torchattack.di.draws"].tolist()
    assert len({size for size, _, _ in draws}) > 2 and [12, 0, 0] in draws
    left = iter(draws)

    def replay(seed, **chances):
        assert (seed, chances) == (3, {"probability": 0.7, "resize": 0.5})
        return lambda image: t.resize_and_pad(image, *next(left))

    monkeypatch.setattr(t, "diversity", replay)
    ours = t.di_fgsm(net, x, y, seed=3, probability=0.7, resize=0.5, **LIBRARY)
    torch.testing.assert_close(ours, answer("torchattack.di"), rtol=0, atol=1e-12)
    assert next(left, None) is None, "one draw for each step"


@pytest.mark.parametrize("name, loss", [("ce", cross_entropy), ("dl", partial(margin, kappa=1e4)), ("dlr", dlr)])
def test_pgd_equals_adv_lib_on_every_loss(frozen, name, loss):
    net, x, y, answer, _ = frozen
    last = pgd(net, x, y, random_start=False, loss=loss, **LIBRARY)
    # of an image that errs at last adv-lib returns that last iterate, of another an earlier one
    broken = net(last).argmax(1) != y
    assert (net(x).argmax(1) == y).sum() == 5 and broken.sum() > 8
    torch.testing.assert_close(last[broken], answer(f"adv-lib.{name}")[broken], rtol=0, atol=1e-12)
