"""The audit's attacks: ascent against a closed form, restored slopes, FSR's mask and twins, latent heads, students."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fsr.attacks import adaptive
from fsr.attacks.ascent import ascend, differentiated, is_wrong, lead, of, scale_free, windows
from fsr.attacks.distill import distill, through
from fsr.attacks.latent import LatentHeads, stages
from fsr.attacks.losses import cross_entropy
from fsr.attacks.slopes import Sloped
from fsr.attacks.unmask import Averaged, Guarded, Softened, estimated
from fsr.config import FSRSpec
from fsr.models import build_model
from fsr.models.fsr import FSR, Intervention

EPS = 0.1


class Linear(nn.Module):
    """Logits (w.x, -w.x, -100) of 3x4x4 images: the worst L-inf point for class 0 is x - eps * sign(w)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        score = (x * self.w).sum((1, 2, 3))
        return torch.stack([score, -score, torch.full_like(score, -100)], dim=1)


def grey(batch: int):
    return torch.full((batch, 3, 4, 4), 0.5), torch.zeros(batch, dtype=torch.long)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("loss", [cross_entropy, lead])
def test_the_ascent_reaches_the_optimum_of_a_linear_model(batch, loss):
    model, (x, y) = Linear(), grey(batch)
    x_adv = ascend(differentiated(of(model, loss)), x, y, eps=EPS, steps=10, until_wrong=False)
    torch.testing.assert_close(x_adv, x - EPS * model.w.sign())


def test_finite_differences_come_near_the_optimum_without_a_gradient():
    class Deaf(Linear):
        def forward(self, x):
            return super().forward(x.detach())

    model, (x, y) = Deaf(), grey(2)
    model.w = model.w[:1].expand(3, 4, 4)  # half of the directions are grey, and so is the answer
    look = estimated(model, lead, sigma=EPS, pairs=400)
    x_adv = ascend(look, x, y, eps=EPS, steps=10, until_wrong=False)
    optimum = 2 * EPS * model.w.abs().sum()
    gain = lead(model(x_adv), y) - lead(model(x), y)
    assert (gain > 0.8 * optimum).all() and (gain <= optimum + 1e-4).all()


@pytest.mark.parametrize("steps", [1, 7, 40, 100])
def test_windows_add_up_and_shrink(steps):
    lengths = windows(steps)
    assert sum(lengths) == steps and min(lengths) >= 1
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)


def test_a_wrong_iterate_is_kept_although_the_ascent_leaves_it():
    class Shell(nn.Module):
        """Wrong only between 0.15 and 0.25 above grey."""

        def forward(self, x):
            far = x.mean((1, 2, 3)) - 0.5
            return torch.stack([torch.zeros_like(far), ((far > 0.15) & (far < 0.25)).float() - 0.5], dim=1)

    def brightness(x_adv, y, rows):
        return x_adv.mean((1, 2, 3)), Shell()(x_adv)

    x, y = grey(2)
    settings = {"eps": 0.4, "steps": 10, "start": torch.full_like(x, 0.2)}
    assert is_wrong(Shell()(ascend(differentiated(brightness), x, y, **settings)), y).all()
    torch.testing.assert_close(ascend(differentiated(brightness), x, y, until_wrong=False, **settings), x + 0.4)


def test_scale_free_logits_ignore_scale_and_offset():
    logits = torch.randn(5, 10)
    torch.testing.assert_close(scale_free(1000 * logits + 3), scale_free(logits), rtol=1e-4, atol=1e-4)
    assert (scale_free(logits).argmax(1) == logits.argmax(1)).all()


class Front(nn.Module):
    """A linear classifier behind any function of its pixels."""

    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(48, 3)

    def forward(self, x):
        return self.linear(self.function(x).flatten(1))


def _without_graph(x):
    with torch.no_grad():
        return 2 * x


FLAT = {
    "round": lambda x: torch.round(8 * x) / 8,
    "round in place": lambda x: (8 * x).round_() / 8,
    "integer cast": lambda x: (255 * x).int().float() / 255,
    "byte": lambda x: (255 * x).to(torch.uint8) / 255,
    "threshold": lambda x: (x > 0.5).float(),
    "two thresholds": lambda x: ((x > 0.2) & (x < 0.7)).float(),
    "where": lambda x: torch.where(x > 0.5, 1.0, 0.0),
    "sign": lambda x: torch.sign(x - 0.5),
    "saturated sigmoid": lambda x: torch.sigmoid((x - 0.47) * 1e6),
    "detach": lambda x: x.detach(),
    "data": lambda x: 2 * x.data,
    "no_grad": _without_graph,
    "floor division": lambda x: (x // 0.1) * 0.1,
    "remainder": lambda x: x - x % 0.1,
}


@pytest.mark.parametrize("name", FLAT)
def test_softened_models_keep_their_logits_and_get_a_slope(name):
    model, x = Front(FLAT[name]), torch.rand(4, 3, 4, 4)
    plain, soft = Guarded(model), Guarded(Softened(model, x))
    torch.testing.assert_close(soft(x), model(x), rtol=0, atol=0)
    leaf = x.clone().requires_grad_()
    (before,) = torch.autograd.grad(plain(leaf).square().sum(), leaf)
    (after,) = torch.autograd.grad(soft(leaf).square().sum(), leaf)
    assert (before == 0).all()
    assert (after.flatten(1).abs().amax(1) > 0).all()


def _of_copy(function):
    """A function that changes its first argument, on a copy of it."""
    return lambda x: function(x.clone(), x)


def _floor_of_constant_in_place(x):
    above = torch.full_like(x, 3.0).detach()
    above //= x
    return above


DIVISIONS = {
    "x // number": (lambda x: x // 0.1, lambda x: x / 0.1),
    "number // x": (lambda x: 3 // x, lambda x: 3 / x),
    "floor_divide(number, x)": (lambda x: torch.floor_divide(3, x), lambda x: 3 / x),
    "floor_divide(tensor, x)": (lambda x: torch.floor_divide(torch.full((4, 5), 3.0), x), lambda x: 3 / x),
    "both sides": (lambda x: x // x.flip(0), lambda x: x / x.flip(0)),
    "a divisor of another shape": (lambda x: 3 // x.mean(), lambda x: 3 / x.mean()),
    "div, floor": (lambda x: torch.div(3, x, rounding_mode="floor"), lambda x: 3 / x),
    "div, trunc": (lambda x: torch.div(x, -0.1, rounding_mode="trunc"), lambda x: x / -0.1),
    "other by name": (lambda x: torch.div(x, other=x.flip(0), rounding_mode="floor"), lambda x: x / x.flip(0)),
    "in place, the divided": (_of_copy(lambda y, _: y.floor_divide_(0.1)), lambda x: x / 0.1),
    "in place, both": (_of_copy(lambda y, x: y.div_(x.flip(0), rounding_mode="floor")), lambda x: x / x.flip(0)),
    "in place, by itself": (_of_copy(lambda y, _: y.floor_divide_(y)), lambda x: x / x),
    "in place, the divisor": (_floor_of_constant_in_place, lambda x: 3 / x),
}


@pytest.mark.parametrize("name", DIVISIONS)
@pytest.mark.parametrize("whole", [False, True])
def test_a_rounded_division_has_the_slopes_of_the_quotient(name, whole):
    rounded, quotient = DIVISIONS[name]
    x = torch.rand(4, 5).add_(0.2).requires_grad_()
    with Sloped(whole=whole):
        out = rounded(x)
    torch.testing.assert_close(out.detach(), rounded(x.detach()), rtol=0, atol=0)
    weight = torch.rand(out.shape)
    found, expected = (torch.autograd.grad((value * weight).sum(), x)[0] for value in (out, quotient(x)))
    torch.testing.assert_close(found, expected)


def test_softening_leaves_a_smooth_model_as_it_is():
    model = Front(lambda x: torch.relu(x - 0.3))
    leaf = torch.rand(4, 3, 4, 4).requires_grad_()
    gradients = [
        torch.autograd.grad(net(leaf).square().sum(), leaf)[0]
        for net in (model, Guarded(model), Guarded(Softened(model, leaf)))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=0)


def test_a_model_that_needs_whole_numbers_is_attacked_as_it_is():
    model = Front(lambda x: torch.arange(256.0)[(255 * x).long()] / 255)
    x = torch.rand(2, 3, 4, 4)
    assert Softened(model, x).form == "part"
    torch.testing.assert_close(Guarded(Softened(model, x))(x.requires_grad_()), model(x))


def test_a_model_that_refuses_gradients_is_attacked_without_them():
    model = Front(lambda x: torch.from_numpy(x.numpy().round()))  # numpy() raises where a gradient is asked for
    x = torch.rand(2, 3, 4, 4)
    for net in (Guarded(model), Softened(model, x)):
        _, gradient, _ = differentiated(of(net, lead))(x, torch.zeros(2, dtype=torch.long), torch.arange(2))
        assert (gradient == 0).all()
        torch.testing.assert_close(net(x), model(x))


def test_averaged_is_the_mean_softmax():
    class Alternating(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, -3.0]])]

        def forward(self, x):
            self.logits.reverse()
            return self.logits[0]

    model = Alternating()
    expected = (model.logits[0].softmax(1) + model.logits[1].softmax(1)) / 2
    torch.testing.assert_close(Averaged(model, 2)(torch.zeros(1)).exp(), expected)


@pytest.fixture
def network():
    """A small untrained FSR network in eval mode with BatchNorm statistics that are not trivial, images and labels."""
    model = build_model("resnet18", 10, FSRSpec(at=("layer2",), hidden=8), width=4, blocks=(1, 1, 1, 1))
    x = torch.rand(6, 3, 8, 8)
    for _ in range(3):
        model(torch.rand(16, 3, 8, 8))
    model.eval().requires_grad_(False)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def attributes(model):
    return [(m.noise, m.backward_tau, m.intervention) for m in adaptive.masked(model)]


FSR_ATTACKS = {
    "smooth": adaptive.smooth_mask,
    "frozen": adaptive.frozen_mask,
    "to 0": lambda *a, **k: adaptive.driven_mask(*a, towards=0.0, **k),
    "to 1": lambda *a, **k: adaptive.driven_mask(*a, towards=1.0, **k),
    "joint": adaptive.joint_logits,
    "m1": lambda *a, **k: adaptive.bypassed(*a, twin="m1", **k),
    "r0": lambda *a, **k: adaptive.bypassed(*a, twin="r0", **k),
    "noisy": lambda *a, **k: adaptive.noisy_mask(*a, loss=lead, draws=2, **k),
}


@pytest.mark.parametrize("name", FSR_ATTACKS)
def test_fsr_attacks_stay_in_the_ball_raise_the_margin_and_put_the_model_back(network, name):
    model, x, y = network
    before = copy.deepcopy(model.state_dict())
    x_adv = FSR_ATTACKS[name](model, x, y, eps=EPS, steps=8)
    assert ((x_adv - x).abs() <= EPS + 1e-6).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert attributes(model) == [(None, None, None)]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    corners = (x + EPS * torch.randn_like(x).sign()).clamp(0, 1)
    assert lead(model(x_adv), y).mean() > lead(model(corners), y).mean()


@pytest.mark.parametrize("name, tau", [("smooth", 1.0), ("to 0", 1.0), ("to 1", 1.0), ("joint", 1.0), ("frozen", None)])
def test_fsr_attacks_differentiate_the_mask_at_the_temperature_they_say(network, name, tau, monkeypatch):
    seen, mask = [], FSR.mask
    monkeypatch.setattr(FSR, "mask", lambda self, *a: seen.append((self.backward_tau, self.noise)) or mask(self, *a))
    model, x, y = network
    FSR_ATTACKS[name](model, x, y, eps=EPS, steps=4)
    assert set(seen) == {(tau, None)}


def test_attributes_are_put_back_after_an_exception(network):
    model = network[0]
    with pytest.raises(KeyError), adaptive.changed(adaptive.masked(model), backward_tau=1.0, noise=True):
        raise KeyError
    assert attributes(model) == [(None, None, None)]


def test_a_smooth_backward_pass_changes_the_gradient_and_not_the_logits(network):
    model, x, _ = network
    adaptive.masked(model)[0].tau = 1e-12  # a saturated mask
    leaf = x.clone().requires_grad_()

    def score_gradient():
        logits, streams = adaptive.traced(model, leaf)
        (gradient,) = torch.autograd.grad(streams[0].mask.sum(), leaf)
        return logits.detach(), gradient

    plain, zero = score_gradient()
    with adaptive.changed(adaptive.masked(model), backward_tau=1.0):
        smooth, gradient = score_gradient()
    torch.testing.assert_close(smooth, plain, rtol=0, atol=0)
    assert zero.abs().max() == 0 and gradient.abs().max() > 0


def test_the_frozen_attack_is_the_attack_on_the_network_with_constant_masks(network):
    model, x, y = network
    mask = adaptive.traced(model, x)[1][0].mask
    twin = copy.deepcopy(model)
    adaptive.masked(twin)[0].intervention = Intervention(mask=lambda _: mask)
    expected = ascend(differentiated(of(twin, cross_entropy)), x, y, eps=EPS, steps=8, until_wrong=False)
    torch.testing.assert_close(adaptive.frozen_mask(model, x, y, eps=EPS, steps=8), expected)


@pytest.mark.parametrize("towards", [0.0, 1.0])
def test_the_mask_is_driven_where_it_is_sent(network, towards, monkeypatch):
    """By the push that the audit uses: further than the margin alone takes it, before the half without a push."""
    model, x, y = network
    ends = []

    def noted(*given, **more):
        ends.append(ascend(*given, **more))
        return ends[-1]

    def mean_mask(images):
        return adaptive.traced(model, images)[1][0].mask.mean()

    monkeypatch.setattr(adaptive, "ascend", noted)
    adaptive.driven_mask(model, x, y, eps=EPS, steps=20, towards=towards)
    adaptive.driven_mask(model, x, y, eps=EPS, steps=20, towards=towards, push=0.0)
    sign = 1 if towards else -1
    assert (mean_mask(ends[0]) - mean_mask(x)) * sign > 0
    assert (mean_mask(ends[0]) - mean_mask(ends[2])) * sign > 0


def test_estimated_gradients_of_an_attack_do_not_share_their_directions():
    """Of a linear model every estimate is the true gradient's image in the drawn directions: few of them, one rank."""
    torch.manual_seed(0)
    weights = torch.randn(2, 3 * 4 * 4)

    def net(x):
        return x.flatten(1) @ weights.T

    looks = [estimated(net, lead, sigma=0.1, pairs=2, seed=3) for _ in range(2)]
    x, y, rows = torch.rand(1, 3, 4, 4), torch.tensor([0]), torch.arange(1)
    first, again = ([look(x, y, rows)[1].flatten() for _ in range(10)] for look in looks)
    assert torch.linalg.matrix_rank(torch.stack(first)) == 10  # not 2
    assert torch.equal(torch.stack(first), torch.stack(again))  # the same attack draws the same


def test_the_joint_loss_is_the_sum_that_the_streams_give(network):
    model, x, y = network
    value, logits = adaptive.joint(model)(x, y, torch.arange(len(x)))
    expected, streams = model.trace(x)
    aux = streams[0].aux
    mean = sum(F.cross_entropy(aux[name], y, reduction="none") for name in ("robust", "nonrobust", "recalibrated")) / 3
    torch.testing.assert_close(value, F.cross_entropy(expected, y, reduction="none") + mean)
    torch.testing.assert_close(logits, expected)


def test_both_twins_pass_the_features_on_unchanged(network):
    model, x, y = network
    bare = copy.deepcopy(model)
    place = bare.inserted()[0]
    place.module = nn.Identity()
    expected = ascend(differentiated(of(bare, lead)), x, y, eps=EPS, steps=8, until_wrong=False)
    for twin in ("m1", "r0"):  # f + (1 - m) R is f where m = 1, and where R = 0
        torch.testing.assert_close(adaptive.bypassed(model, x, y, eps=EPS, steps=8, twin=twin), expected)


def test_streams_are_found_inside_another_module(network):
    model, x, _ = network
    outer = nn.Sequential(nn.Identity(), model)
    assert adaptive.has_auxiliary(outer) and len(adaptive.traced(outer, x)[1]) == 1
    assert all(place.recorder is None for place in model.inserted())


def test_stages_are_found_in_any_network(network):
    model, x, _ = network
    assert stages(model, x)[-1] is model.net.layer4
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    assert stages(plain, x) == list(plain.children())[:3]
    assert stages(nn.Linear(8, 10), torch.rand(2, 8)) == []


def test_latent_heads_learn_what_the_features_tell_and_leave_no_hooks():
    y = torch.arange(40) % 4
    x = 0.1 * torch.rand(40, 3, 4, 4)
    for i, k in enumerate(y.tolist()):  # the class is a bright quarter
        x[i, :, 2 * (k // 2) : 2 * (k // 2) + 2, 2 * (k % 2) : 2 * (k % 2) + 2] += 0.8
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(128, 4))
    heads = LatentHeads(model, x, y, classes=4, steps=50)
    logits, latent = heads(model, x)
    torch.testing.assert_close(logits, model(x))
    assert all((z.argmax(1) == y).all() for z in latent) and len(latent) == 2
    assert not any(m._forward_hooks for m in model.modules())


def test_latent_objective_is_differentiable_down_to_the_pixels(network):
    model, x, y = network
    heads = LatentHeads(model, x, y, classes=10, steps=20)
    for net in (model, Softened(model, x)):
        value, gradient, _ = differentiated(heads.objective(net))(x, y, torch.arange(len(x)))
        final, without, _ = differentiated(heads.objective(net, weight=0.0))(x, y, torch.arange(len(x)))
        assert (value > final).all()
        assert ((gradient - without).flatten(1).abs().amax(1) > 0).all()  # the heads' own part


def test_a_student_agrees_with_a_teacher_that_has_no_gradient_and_betrays_it():
    class Teacher(nn.Module):
        """Is the left half brighter?  Coarsely quantised, so flat everywhere."""

        def forward(self, x):
            x = torch.round(6 * x) / 6
            gap = x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3))
            return torch.stack([gap, -gap], dim=1)

    x = torch.rand(60, 3, 8, 8)
    model = Teacher()
    y = model(x).argmax(1)
    student = distill(model, x, classes=2, eps=EPS, rounds=2, samples=600, steps=60)
    assert (student(x).argmax(1) == y).float().mean() > 0.8
    x_adv = through(student, x, y, eps=EPS, steps=10)
    assert ((x_adv - x).abs() <= EPS + 1e-6).all()
    assert is_wrong(model(x_adv), y).float().mean() > 0.9


def test_the_stages_behind_a_layer_that_normalises_are_the_networks_own(network):
    model, x, _ = network

    class Normalised(nn.Module):
        def forward(self, x):
            return 2 * x - 1

    bare = stages(model, x)
    assert len(bare) > 1 and stages(nn.Sequential(Normalised(), model), x) == bare
    single = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 5)))
    assert stages(single, torch.rand(2, 3, 8, 8)) == [single[1][0]]  # the one map there is, as the head sees it
    assert stages(nn.Sequential(nn.Linear(8, 5)), torch.rand(2, 8)) == []


def test_a_softened_form_with_other_logits_than_the_models_is_not_taken():
    class Bits(nn.Module):
        """Two bits of each pixel, by an operation that means nothing on floating numbers."""

        def forward(self, x):
            kept = (x * 255).to(torch.uint8) & 0xC0
            return kept.float().flatten(1)[:, :5]

    model, x = Bits(), torch.rand(4, 3, 2, 2)
    soft = Softened(model, x)
    torch.testing.assert_close(soft(x.clone().requires_grad_()).detach(), model(x))


@pytest.mark.parametrize("source", [torch.rand, np.random.rand])
def test_a_model_that_draws_is_softened_and_not_cut_whatever_it_draws_from(source):
    class Drawing(nn.Module):
        def forward(self, x):
            return x.round().flatten(1)[:, :5] + float(source(1)[0])

    x = torch.rand(4, 3, 2, 2)
    soft = Softened(Drawing(), x)
    assert soft.form == "whole"
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(soft(leaf).sum(), leaf)[0].abs().max() > 0  # rounding has none of its own
