"""Losses, FGSM and PGD against closed forms, invariants and a stored parity fixture."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Linear, Net
from torch import nn

from fsr.attacks import ATTACKS
from fsr.attacks import gradient as g
from fsr.config import PeerSpec
from fsr.files import UsageError
from fsr.models import build_model

FIXTURE = Path(__file__).parent.parent / "parity" / "attacks.npz"


def batch(n=6, classes=5, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


@pytest.fixture(scope="module")
def fixture():
    arrays = {name: torch.from_numpy(value) for name, value in np.load(FIXTURE).items()}
    conv, head = nn.Conv2d(3, 8, 3, padding=1).double(), nn.Linear(8, 10).double()
    with torch.no_grad():
        for layer, name in ((conv, "conv"), (head, "linear")):
            layer.weight.copy_(arrays[f"{name}_weight"])
            layer.bias.copy_(arrays[f"{name}_bias"])
    return (lambda x: head(conv(x).relu().mean((2, 3)))), arrays


@pytest.mark.parametrize("name", ["fgsm", "pgd20", "pgd100", "cw30"])
def test_evaluation_attacks_equal_the_parity_fixture(fixture, name):
    model, arrays = fixture
    x_adv = ATTACKS[name.replace("cw30", "cw")](model, arrays["x"], arrays["y"], eps=8 / 255)
    torch.testing.assert_close(x_adv, arrays[f"{name}.x_adv"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, delta", [("pgd10_train", None), ("pgd10_train_random", "pgd10_train_random.delta0")])
def test_training_attack_equals_the_parity_fixture(fixture, name, delta):
    model, arrays = fixture
    more = {"random_start": False, "start": None if delta is None else arrays[delta]}
    x_adv = g.pgd(model, arrays["x"], arrays["y"], eps=8 / 255, alpha=2 / 255, steps=10, **more)
    torch.testing.assert_close(x_adv, arrays[f"{name}.x_adv"], rtol=0, atol=1e-12)


def linear_optimum(model, x, y, eps):
    """The point of the ball, inside [0, 1], that lowers z_y - z_other most: every pixel goes its own way."""
    toward = (model.w[1 - y] - model.w[y]).detach().view(x.shape)
    return (x + eps * toward.sign()).clamp(0, 1)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("loss", [g.cross_entropy, g.margin, partial(g.margin, kappa=1e6)])
def test_pgd_reaches_the_closed_form_optimum_of_a_linear_model(n, loss):
    model, (x, y) = Linear(), batch(n, classes=2, dtype=torch.float64)
    x_adv = g.pgd(model, x, y, eps=0.1, alpha=0.02, steps=12, loss=loss, start=g.uniform_start(x, eps=0.1, seed=0))
    # a margin that already leads by kappa = 50 may stop early; these models stay far below that
    torch.testing.assert_close(x_adv, linear_optimum(model, x, y, 0.1), rtol=0, atol=1e-12)


def test_restarts_have_ten_starts_and_three_step_sizes(monkeypatch):
    """Steps of 0.25, 0.1 and 0.025 eps in turn."""
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


@pytest.mark.parametrize("peer", ["cas", "cifs"])
def test_joint_attack_climbs_the_peers_joint_loss(peer):
    torch.manual_seed(0)
    model = build_model("resnet18", width=4, blocks=(1, 1, 1, 1), peer=PeerSpec(name=peer, at=("layer3.0",))).eval()
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6)
    x_adv = ATTACKS["pgd20-joint"](model, x, y, eps=0.1)
    with torch.no_grad():
        gain = g.joint_loss(model.trace(x_adv), y) - g.joint_loss(model.trace(x), y)
    assert (gain > 0).all()
    assert not torch.equal(x_adv, ATTACKS["pgd20"](model, x, y, eps=0.1))


def test_a_cut_graph_gives_no_step_and_inference_mode_is_refused():
    model, (x, y) = Linear(classes=5), batch(dtype=torch.float64)
    assert torch.equal(ATTACKS["fgsm"](lambda x: model(x.detach()), x, y, eps=0.1), x)
    assert torch.equal(ATTACKS["fgsm"](lambda x: model((x * 255).round() / 255), x, y, eps=0.1), x)
    with torch.no_grad():
        assert not torch.equal(ATTACKS["fgsm"](model, x, y, eps=0.1), x)
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


def test_strongest_keeps_the_first_break_else_the_largest_loss():
    model = Linear(classes=2, pixels=1)
    with torch.no_grad():
        model.w.copy_(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    x = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64).view(3, 1, 1, 1) - 0.4
    y = torch.zeros(3, dtype=torch.long)
    seen = []

    def craft(attempt, rows):
        seen.append(rows.tolist())
        return x[rows] + (-0.05, -0.2, 0.1)[attempt]

    x_adv = g.strongest(model, x, y, 3, craft)
    assert seen == [[0, 1], [0, 1], [0]]
    torch.testing.assert_close(x_adv.flatten(), torch.tensor([0.3, -0.1, -0.4], dtype=torch.float64))


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


def test_noise_control_moves_every_pixel_by_eps_and_reads_no_model():
    x = torch.full((4, 3, 4, 4), 0.5)
    noisy = g.random_noise(None, x, None, eps=0.1, seed=0)
    torch.testing.assert_close((noisy - x).abs(), torch.full_like(x, 0.1))
    assert 0.2 < (noisy > x).float().mean() < 0.8


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 0.6), st.floats(0, 0.3), st.integers(0, 4), st.integers(0, 10_000))
def test_no_setting_leaves_the_ball_or_the_image_range(eps, alpha, steps, seed):
    x, y = batch(3, seed=seed)
    x_adv = g.pgd(Net(5), x, y, eps=eps, alpha=alpha, steps=steps, start=g.uniform_start(x, eps=eps, seed=seed))
    assert (x_adv - x).abs().max() <= eps + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1


def test_losses_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 4.0, 2.0, 1.0]], dtype=torch.float64)
    y, target = torch.tensor([0, 2]), torch.tensor([2, 3])
    assert g.margin(logits, y, kappa=50).tolist() == [-52.0, -48.0]
    assert g.margin(logits, y, kappa=0).tolist() == [-2.0, 0.0]
    assert g.dlr(logits, y).tolist() == pytest.approx([-2 / 2.5, 2 / 3], abs=1e-9)
    assert g.logit_margin(logits, y).tolist() == [-2.0, 2.0]
    assert g.targeted_margin(logits, y, target).tolist() == [-2.5, -1.0]


def test_dlr_ignores_the_scale_of_the_logits_and_cross_entropy_does_not():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(64, 5, generator=generator, dtype=torch.float64), torch.arange(64) % 5
    for scale in (1e-3, 1e3):
        torch.testing.assert_close(g.dlr(scale * logits, y), g.dlr(logits, y), atol=1e-6, rtol=1e-6)
        assert not torch.allclose(g.cross_entropy(scale * logits, y), g.cross_entropy(logits, y))


def test_minus_infinity_is_judged_by_argmax_and_no_number_is_never_right():
    logits = torch.tensor([[1.0, -torch.inf], [-torch.inf, 1.0], [torch.nan, 1.0], [torch.inf, 1.0], [-torch.inf] * 2])
    assert g.is_wrong(logits, torch.tensor([0, 0, 0, 0, 0])).tolist() == [False, True, True, True, True]
