"""DI, TI, MI and transfer: their parts by hand, and the whole loops against what independent libraries answered."""

from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import torch
from networks import Net
from parity import make_attack_libraries as libraries

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


# Against torchattack and adv-lib. What they answered is stored, so that neither is needed; where they are installed
# (extra `parity`), they are asked again. torchattack's loss is the batch mean, ours the sum: the signs are the same.


@pytest.fixture(scope="module")
def frozen():
    return libraries.load()


@pytest.mark.parametrize("library", libraries.ANSWERS)
def test_the_library_still_answers_what_is_stored(frozen, library):
    pytest.importorskip(library.replace("-", "_"), reason=f"not installed: pip install --no-deps {library}")
    again = libraries.ANSWERS[library](frozen)
    assert again.keys() == {name for name in frozen if name.startswith(f"{library}.")} - {f"{library}.version"}
    for name, value in again.items():
        message = f"{name} is stored from version {frozen[f'{library}.version']}, installed is {version(library)}"
        np.testing.assert_array_equal(value, frozen[name], err_msg=message)


@pytest.mark.parametrize(
    "name, attack", [("pgd", partial(pgd, random_start=False)), ("mi", t.mi_fgsm), ("ti", t.ti_fgsm)]
)
def test_pgd_momentum_and_translation_invariance_equal_torchattack(frozen, name, attack):
    (x, y), net = libraries.images(frozen), libraries.network(frozen)
    theirs = libraries.answer(frozen, f"torchattack.{name}")
    torch.testing.assert_close(attack(net, x, y, **libraries.SETTINGS), theirs, rtol=0, atol=1e-12)


def test_input_diversity_equals_torchattack_with_the_same_draws(frozen, monkeypatch):
    (x, y), net = libraries.images(frozen), libraries.network(frozen)
    draws = frozen["torchattack.di.draws"].tolist()
    assert len({size for size, _, _ in draws}) > 2 and [12, 0, 0] in draws
    left = iter(draws)

    def replay(seed, **chances):
        assert (seed, chances) == (3, {"probability": 0.7, "resize": 0.5})
        return lambda image: t.resize_and_pad(image, *next(left))

    monkeypatch.setattr(t, "diversity", replay)
    ours = t.di_fgsm(net, x, y, seed=3, probability=0.7, resize=0.5, **libraries.SETTINGS)
    torch.testing.assert_close(ours, libraries.answer(frozen, "torchattack.di"), rtol=0, atol=1e-12)
    assert next(left, None) is None, "one draw for each step"


@pytest.mark.parametrize("name, loss", [("ce", cross_entropy), ("dl", partial(margin, kappa=1e4)), ("dlr", dlr)])
def test_pgd_equals_adv_lib_on_every_loss(frozen, name, loss):
    (x, y), net = libraries.images(frozen), libraries.network(frozen)
    last = pgd(net, x, y, random_start=False, loss=loss, **libraries.SETTINGS)
    # of an image that errs at last adv-lib returns that last iterate, of another an earlier one
    broken = net(last).argmax(1) != y
    assert (net(x).argmax(1) == y).sum() == 5 and broken.sum() > 8
    torch.testing.assert_close(last[broken], libraries.answer(frozen, f"adv-lib.{name}")[broken], rtol=0, atol=1e-12)
