"""DI, TI, MI and transfer: their parts by hand, and the whole loops against an independent library when it is there."""

import importlib
import sys
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from fsr.attacks import ATTACKS
from fsr.attacks import transfer as t
from fsr.attacks.gradient import cross_entropy, dlr, margin, pgd

SETTINGS = {"eps": 8 / 255, "alpha": 0.8 / 255, "steps": 6}


class Net(nn.Module):
    """A small convolutional net for images of any size."""

    def __init__(self, seed=0, classes=6):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )

    def forward(self, x):
        return self.layers(x)


def batch(n=5, size=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(n, 3, size, size, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(0, 6, (n,), generator=generator),
    )


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
    again = t.diversity(seed=0)
    assert all(torch.equal(again(x), out) for out in outs)
    assert not all(torch.equal(out, other) for out, other in zip(outs, map(t.diversity(seed=1), [x] * 400)))


def test_diversity_works_at_the_size_of_the_digits():
    outs = [t.diversity(seed=s, probability=1)(torch.ones(1, 3, 8, 8)) for s in range(40)]
    assert {int(out[0, 0].sum()) for out in outs} == {49}
    assert len({tuple(out[0, 0].flatten().tolist()) for out in outs}) == 4


def test_gaussian_kernel_is_dongs():
    from scipy.stats import norm

    line = norm.pdf(np.linspace(-3, 3, 7))
    expected = np.outer(line, line) / np.outer(line, line).sum()
    np.testing.assert_allclose(t.gaussian_kernel(7).numpy(), expected, rtol=1e-12)
    assert (t.kernel_for(8), t.kernel_for(32), t.kernel_for(64)) == (3, 7, 7)


def test_smoothing_is_a_gaussian_filter_with_zeros_outside():
    from scipy.ndimage import correlate

    gradient = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    smooth = t.smoothing(3)(gradient)
    for n in range(2):
        for c in range(3):
            expected = correlate(gradient[n, c].numpy(), t.gaussian_kernel(3).numpy(), mode="constant")
            np.testing.assert_allclose(smooth[n, c].numpy(), expected, atol=1e-12)


def test_momentum_sums_normalised_gradients():
    first, second = torch.randn(2, 1, 2, 2, dtype=torch.float64), torch.randn(2, 1, 2, 2, dtype=torch.float64)
    accumulate = t.momentum(0.5)
    accumulate(first)
    got = accumulate(second)
    for n in range(2):
        expected = 0.5 * first[n] / first[n].abs().sum() + second[n] / second[n].abs().sum()
        torch.testing.assert_close(got[n], expected)
    assert torch.isfinite(t.momentum(1.0)(torch.zeros(1, 1, 2, 2))).all()


def test_each_attack_falls_back_to_pgd_when_its_part_is_off():
    (x, y), net = batch(), Net().double()
    plain = pgd(net, x, y, random_start=False, **SETTINGS)
    for other in (
        t.di_fgsm(net, x, y, probability=0.0, **SETTINGS),
        t.ti_fgsm(net, x, y, kernel=1, **SETTINGS),
        t.mi_fgsm(net, x, y, decay=0.0, **SETTINGS),
        t.transfer(net, x, y, **SETTINGS),
    ):
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-12)
    for other in (
        t.di_fgsm(net, x, y, probability=1.0, **SETTINGS),
        t.ti_fgsm(net, x, y, **SETTINGS),
        t.mi_fgsm(net, x, y, **SETTINGS),
    ):
        assert not torch.allclose(other, plain)


@pytest.mark.parametrize("name", ["transfer", "di-fgsm", "ti-fgsm", "mi-fgsm"])
def test_crafted_on_the_surrogate_never_on_the_model(name):
    (x, y), surrogate = batch(), Net(1).double()

    def untouchable(images):
        raise AssertionError("a transfer attack asked the model")

    x_adv = ATTACKS[name](untouchable, x, y, eps=8 / 255, surrogate=surrogate, steps=5)
    alone = ATTACKS[name](untouchable, x[1:3], y[1:3], eps=8 / 255, surrogate=surrogate, steps=5)
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-12
    torch.testing.assert_close(alone, x_adv[1:3], rtol=0, atol=1e-12)
    gain = cross_entropy(surrogate(x_adv), y) - cross_entropy(surrogate(x), y)
    assert (gain > 0).all()


# Against torchattack (extra `parity`). Its loss is the batch mean, ours the sum: the signs are the same.


@pytest.fixture
def library():
    return pytest.importorskip("torchattack", reason="torchattack is not installed: pip install --no-deps torchattack")


def test_pgd_and_momentum_equal_the_library(library):
    (x, y), net = batch(), Net().double()
    common = {"device": torch.device("cpu"), **SETTINGS}
    theirs = library.PGD(net, random_start=False, **common)(x, y)
    torch.testing.assert_close(pgd(net, x, y, random_start=False, **SETTINGS), theirs.detach(), rtol=0, atol=1e-12)
    theirs = library.MIFGSM(net, decay=1.0, **common)(x, y)
    torch.testing.assert_close(t.mi_fgsm(net, x, y, **SETTINGS), theirs.detach(), rtol=0, atol=1e-12)


def test_translation_invariance_equals_the_library_with_the_same_kernel(library):
    (x, y), net = batch(), Net().double()

    class SameKernel(library.TIFGSM):
        def get_kernel(self):
            return t.gaussian_kernel(7).expand(3, 1, 7, 7)

    theirs = SameKernel(net, decay=0.0, device=torch.device("cpu"), **SETTINGS)(x, y)
    torch.testing.assert_close(t.ti_fgsm(net, x, y, **SETTINGS), theirs.detach(), rtol=0, atol=1e-12)


def test_input_diversity_equals_the_library_with_the_same_draws(library, monkeypatch):
    (x, y), net = batch(), Net().double()
    module = __import__("torchattack.difgsm", fromlist=["input_diversity"])
    torch.manual_seed(5)
    theirs = module.input_diversity(x, 0.7, 1.0)
    torch.manual_seed(5)
    torch.rand(1)
    size = int(torch.randint(11, 16, (1,)))
    top, left = (int(torch.randint(0, 16 - size, (1,))) for _ in range(2))
    torch.testing.assert_close(t.resize_and_pad(x, size, top, left), theirs)

    ours = t.diversity(seed=3)
    monkeypatch.setattr(module, "input_diversity", lambda image, *rest: ours(image))
    whole = library.DIFGSM(net, decay=0.0, device=torch.device("cpu"), **SETTINGS)(x, y)
    torch.testing.assert_close(t.di_fgsm(net, x, y, seed=3, **SETTINGS), whole.detach(), rtol=0, atol=1e-12)


@pytest.fixture
def adv_lib(monkeypatch):
    """adv-lib's attacks; it imports visdom for its plots only, so an empty module does where that is missing."""
    pytest.importorskip("adv_lib", reason="adv-lib is not installed: pip install --no-deps adv-lib")
    if importlib.util.find_spec("visdom") is None:
        monkeypatch.setitem(sys.modules, "visdom", ModuleType("visdom"))
    return importlib.import_module("adv_lib.attacks")


@pytest.mark.parametrize("name, loss", [("ce", cross_entropy), ("dl", partial(margin, kappa=1e4)), ("dlr", dlr)])
def test_pgd_equals_adv_lib_on_every_loss(adv_lib, name, loss):
    (x, y), net = batch(40), Net().double()
    y[:20] = net(x[:20]).argmax(1)
    last = pgd(net, x, y, random_start=False, loss=loss, **SETTINGS)
    # it returns the last image that erred before the final step: one step more makes that our last iterate
    theirs = adv_lib.pgd_linf(
        net,
        x,
        y,
        SETTINGS["eps"],
        steps=SETTINGS["steps"] + 1,
        random_init=False,
        loss_function=name,
        absolute_step_size=SETTINGS["alpha"],
    )
    broken = net(last).argmax(1) != y
    assert broken.sum() > 20
    torch.testing.assert_close(last[broken], theirs[broken], rtol=0, atol=1e-12)


def test_partial_of_an_attack_is_an_attack():
    (x, y), net = batch(2), Net().double()
    by_name = ATTACKS["di-fgsm"](net, x, y, eps=0.1, seed=7, steps=3)
    by_hand = partial(t.di_fgsm, eps=0.1, alpha=0.01, steps=3)(net, x, y, seed=7)
    torch.testing.assert_close(by_name, by_hand)
