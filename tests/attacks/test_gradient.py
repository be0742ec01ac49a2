"""Attacks by gradients against closed forms, invariants, stored parity fixtures and what other libraries answered."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import Linear, Net, parity
from torch import nn

from fsr.attacks import ATTACKS
from fsr.attacks import gradient as g
from fsr.files import UsageError


def batch(n=6, classes=5, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


@pytest.fixture(scope="module")
def fixture():
    arrays = parity("attacks")
    conv, head = nn.Conv2d(3, 8, 3, padding=1).double(), nn.Linear(8, 10).double()
    with torch.no_grad():
        for layer, name in ((conv, "conv"), (head, "linear")):
            layer.weight.copy_(arrays[f"{name}_weight"])
            layer.bias.copy_(arrays[f"{name}_bias"])
    return (lambda x: head(conv(x).relu().mean((2, 3)))), arrays


PARITY = {name: ATTACKS[name.replace("cw30", "cw")] for name in ("fgsm", "pgd20", "pgd100", "cw30")}
PARITY |= dict.fromkeys(("pgd10_train", "pgd10_train_random"), partial(g.pgd, alpha=2 / 255, steps=10))


@pytest.mark.parametrize("name", PARITY)
def test_attacks_equal_the_parity_fixture(fixture, name):
    model, arrays = fixture
    more = {"start": arrays.get(f"{name}.delta0")} if "train" in name else {}
    x_adv = PARITY[name](model, arrays["x"], arrays["y"], eps=8 / 255, **more)
    torch.testing.assert_close(x_adv, arrays[f"{name}.x_adv"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("loss", [g.cross_entropy, g.margin, partial(g.margin, kappa=1e6)])
def test_pgd_reaches_the_closed_form_optimum_of_a_linear_model(n, loss):
    model, (x, y) = Linear(), batch(n, classes=2, dtype=torch.float64)
    x_adv = g.pgd(model, x, y, eps=0.1, alpha=0.02, steps=12, loss=loss, start=g.uniform_start(x, eps=0.1, seed=0))
    # a margin that already leads by kappa = 50 may stop early; these models stay far below that
    toward = (model.w[1 - y] - model.w[y]).detach().view(x.shape)  # lowers z_y - z_other most
    torch.testing.assert_close(x_adv, (x + 0.1 * toward.sign()).clamp(0, 1), rtol=0, atol=1e-12)


def test_restarts_have_ten_starts_and_three_step_sizes(monkeypatch):
    made = []

    def pgd(model, x, y, *, alpha, start, **_):
        made.append((alpha, float(start.flatten()[0])))
        return x

    monkeypatch.setattr(g, "pgd", pgd)
    model, (x, _) = Linear(), batch(2, dtype=torch.float64)
    g.pgd_restarts(model, x, model(x).argmax(1), eps=0.1)
    assert [alpha for alpha, _ in made] == pytest.approx([0.025, 0.01, 0.0025] * 3 + [0.025])
    assert len({start for _, start in made}) == 10


def test_joint_loss_adds_twice_the_mean_of_the_probes():
    y = torch.tensor([1, 0])
    heads = [torch.randn(2, 3, dtype=torch.float64) for _ in range(3)]
    streams = [SimpleNamespace(aux=aux) for aux in ({"probe": heads[1]}, {}, {"probe": heads[2]})]
    expected = g.cross_entropy(heads[0], y) + g.cross_entropy(heads[1], y) + g.cross_entropy(heads[2], y)
    torch.testing.assert_close(g.joint_loss((heads[0], streams), y), expected)
    with pytest.raises(UsageError, match="auxiliary"):
        g.joint_loss((heads[0], []), y)


def test_a_cut_graph_gives_no_step_and_inference_mode_is_refused():
    model, (x, y) = Linear(classes=5), batch(dtype=torch.float64)
    assert torch.equal(ATTACKS["fgsm"](lambda x: model(x.detach()), x, y, eps=0.1), x)
    assert torch.equal(ATTACKS["fgsm"](lambda x: model((x * 255).round() / 255), x, y, eps=0.1), x)
    with torch.no_grad():
        assert not torch.equal(ATTACKS["fgsm"](model, x, y, eps=0.1), x)
    for wrong in ({"alpha": float("nan")}, {"alpha": -0.1}, {"start": x / 0}, {"eps": True}):
        with pytest.raises(UsageError, match=r"finite start and a finite alpha|eps must lie"):
            g.pgd(model, x, y, **{"eps": 0.1} | wrong)
    with torch.inference_mode(), pytest.raises(UsageError, match="inference_mode"):
        g.pgd(model, x, y, eps=0.1)


def test_random_starts_are_uniform_reproducible_and_their_own():
    x, _ = batch(64)
    start = g.uniform_start(x, eps=0.3, seed=1)
    assert torch.equal(start, g.uniform_start(x, eps=0.3, seed=1))
    assert not torch.equal(start, g.uniform_start(x, eps=0.3, seed=2))
    assert not torch.equal(start, g.uniform_start(x, eps=0.3, seed=1, stream=1))
    assert start.abs().max() <= 0.3
    assert start.mean().abs() < 0.02 and abs(start.std() - 0.3 / 3**0.5) < 0.01
    assert torch.equal(g.uniform_start(x[[5, 2]], eps=0.3, seed=1, indices=[5, 2]), start[[5, 2]])
    normal = g.noise_for(torch.zeros(50, 3, 8, 8), seed=0, kind="standard_normal")
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05


def test_multi_targeted_breaks_what_any_single_target_breaks():
    model, (x, _) = Linear(classes=5, seed=4), batch(40, dtype=torch.float64)
    x = x * 0.2 + 0.4
    order = model(x).argsort(1, descending=True)
    y, broken = order[:, 0], torch.zeros(40, dtype=torch.bool)
    for i in range(4):
        start = g.uniform_start(x, eps=0.05, seed=0, stream=i)
        loss = partial(g.targeted_margin, target=order[:, i + 1])
        broken |= model(g.pgd(model, x, y, start=start, loss=loss, eps=0.05, steps=9)).argmax(1) != y
    assert torch.equal(model(g.multi_targeted(model, x, y, eps=0.05, steps=9)).argmax(1) != y, broken)
    assert 0 < broken.sum() < 40


def test_losses_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 4.0, 2.0, 1.0]], dtype=torch.float64)
    y, target = torch.tensor([0, 2]), torch.tensor([2, 3])
    assert g.margin(logits, y, kappa=50).tolist() == [-52.0, -48.0]
    assert g.margin(logits, y, kappa=0).tolist() == [-2.0, 0.0]
    assert g.logit_margin(logits, y).tolist() == [-2.0, 2.0]
    assert g.targeted_margin(logits, y, target).tolist() == [-2.5, -1.0]


def test_minus_infinity_is_judged_by_argmax_and_no_number_is_never_right():
    logits = torch.tensor([[1.0, -torch.inf], [-torch.inf, 1.0], [torch.nan, 1.0], [torch.inf, 1.0], [-torch.inf] * 2])
    assert g.is_wrong(logits, torch.tensor([0, 0, 0, 0, 0])).tolist() == [False, True, True, True, True]


def test_diversity_changes_about_half_of_the_calls_within_its_range():
    x = torch.ones(2, 3, 20, 20)
    transform = g.diversity(seed=0)
    outs = [transform(x) for _ in range(400)]
    sizes = [round(float(out[0, 0].sum()) ** 0.5) for out in outs]
    assert set(sizes) == {18, 19, 20}
    assert 0.4 < np.mean([size == 20 for size in sizes]) < 0.6
    corners = {(int(out[0, 0].sum(1).argmax()), int(out[0, 0].sum(0).argmax())) for out in outs}
    assert corners == {(top, left) for top in range(3) for left in range(3)}
    assert all(torch.equal(out[0], out[1]) for out in outs), "one draw serves the batch"
    again, other = g.diversity(seed=0), g.diversity(seed=1)
    assert all(torch.equal(again(x), out) for out in outs) and not all(torch.equal(other(x), out) for out in outs)


@pytest.mark.parametrize("name", ["transfer", "di-fgsm", "ti-fgsm", "mi-fgsm"])
def test_crafted_on_the_surrogate_never_on_the_model(name):
    (x, y), surrogate = batch(5, 6, torch.float64), Net(seed=1).double()

    def untouchable(images):
        raise AssertionError("a transfer attack asked the model")

    x_adv = ATTACKS[name](untouchable, x, y, eps=8 / 255, surrogate=surrogate, steps=5)
    alone = ATTACKS[name](untouchable, x[1:3], y[1:3], eps=8 / 255, surrogate=surrogate, steps=5)
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-12
    torch.testing.assert_close(alone, x_adv[1:3], rtol=0, atol=1e-12)
    gain = g.cross_entropy(surrogate(x_adv), y) - g.cross_entropy(surrogate(x), y)
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
    stored = parity("attack_libraries")
    body = nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Tanh()
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)).double()
    net.load_state_dict({name: stored[f"net.{name}"].double() for name in net.state_dict()})
    x = stored["grey"].double() / 255
    return net, x, stored["y"], lambda name: x + stored[name].double() / (5 * 255), stored


ATTACKED = {"pgd": g.pgd, "mi": g.mi_fgsm, "ti": g.ti_fgsm}


@pytest.mark.parametrize("name", ATTACKED)
def test_pgd_momentum_and_translation_invariance_equal_torchattack(frozen, name):
    net, x, y, answer, _ = frozen
    ours = ATTACKED[name](net, x, y, **LIBRARY)
    torch.testing.assert_close(ours, answer(f"torchattack.{name}"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, loss", [("ce", g.cross_entropy), ("dl", partial(g.margin, kappa=1e4))])
def test_pgd_equals_adv_lib_on_every_loss(frozen, name, loss):
    net, x, y, answer, _ = frozen
    last = g.pgd(net, x, y, loss=loss, **LIBRARY)
    # of an image that errs at last adv-lib returns that last iterate, of another an earlier one
    broken = net(last).argmax(1) != y
    assert (net(x).argmax(1) == y).sum() == 5 and broken.sum() > 8
    torch.testing.assert_close(last[broken], answer(f"adv-lib.{name}")[broken], rtol=0, atol=1e-12)


def test_input_diversity_equals_torchattack_with_the_same_draws(frozen, monkeypatch):
    net, x, y, answer, stored = frozen
    draws = stored["torchattack.di.draws"].tolist()
    assert len({size for size, _, _ in draws}) > 2 and [12, 0, 0] in draws
    left = iter(draws)

    def replay(seed, **chances):
        assert (seed, chances) == (3, {"probability": 0.7, "resize": 0.5})
        return lambda image: g.resize_and_pad(image, *next(left))

    monkeypatch.setattr(g, "diversity", replay)
    ours = g.di_fgsm(net, x, y, seed=3, probability=0.7, resize=0.5, **LIBRARY)
    torch.testing.assert_close(ours, answer("torchattack.di"), rtol=0, atol=1e-12)
    assert next(left, None) is None, "one draw for each step"
