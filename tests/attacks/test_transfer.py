"""DI, TI, MI and transfer: their parts by hand, and the whole loops against what independent libraries answered."""

from functools import partial
from importlib.metadata import version
from itertools import combinations

import numpy as np
import pytest
import torch
from parity import make_attack_libraries as libraries
from torch import nn

from fsr.attacks import ATTACKS
from fsr.attacks import transfer as t
from fsr.attacks.gradient import pgd
from fsr.attacks.losses import cross_entropy, dlr, margin

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


def test_the_stored_answers_tell_the_attacks_apart(frozen):
    (x, _), names = libraries.images(frozen), ["torchattack.pgd", "torchattack.mi", "torchattack.ti", "torchattack.di"]
    for kind in (names, [f"adv-lib.{loss}" for loss in libraries.LOSSES]):
        answers = [libraries.answer(frozen, name) for name in kind]
        assert all((one != other).double().mean() > 0.02 for one, other in combinations(answers, 2))
        for x_adv in answers:  # they met every border there is
            assert (x_adv - x).abs().max() == pytest.approx(libraries.SETTINGS["eps"], abs=1e-12)
            assert x_adv.min() == 0 and x_adv.max() == 1 and ((x_adv == 0) & (x > 0)).any()


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


def test_partial_of_an_attack_is_an_attack():
    (x, y), net = batch(2), Net().double()
    by_name = ATTACKS["di-fgsm"](net, x, y, eps=0.1, seed=7, steps=3)
    by_hand = partial(t.di_fgsm, eps=0.1, alpha=0.01, steps=3)(net, x, y, seed=7)
    torch.testing.assert_close(by_name, by_hand)
