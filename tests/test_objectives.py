import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fsr.config import FSRSpec, PeerSpec, Run
from fsr.models import Classifier, Streams, build_model, model_of
from fsr.models.modes import eval_mode
from fsr.train.objectives import (
    BETAS,
    PAIRS,
    Objective,
    craft,
    draw_start,
    fsr_terms,
    kl,
    mart_parts,
    perturbed_weights,
    probe_terms,
    runner_up,
    start,
    trades_parts,
)

PARITY = Path(__file__).parent / "parity"
SMALL = Run(dataset="digits", width=4, blocks=(1, 1, 1, 1), eps=0.15, alpha=0.04, steps=3)
MODULES = [
    None,
    FSRSpec(at=("layer3",)),
    FSRSpec(at=("layer2", "layer3")),
    FSRSpec(kind="separation"),
    FSRSpec(kind="residual"),
    FSRSpec(kind="aux"),
    *(PeerSpec(name=name) for name in ("fd", "cas", "cifs")),
]


@pytest.fixture(scope="module")
def fixture():
    with np.load(PARITY / "objectives.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def loss(method, clean, adv, y, beta=1.0):
    """The total of a method on two passes."""
    parts = PAIRS[method](clean, adv, y)
    return parts["cls"] + beta * parts["robust"]


def probabilities(row):
    """Softmax of a list, in plain Python."""
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / sum(e) for v in e]


def test_parity_with_the_public_formulas(fixture):
    clean, adv, y = fixture["natural_logits"], fixture["adversarial_logits"], fixture["y"]
    parts = trades_parts(clean, adv, y)
    found = {
        "trades.natural": parts["cls"],
        "trades.robust": parts["robust"],
        "trades.total": loss("trades", clean, adv, y, beta=float(fixture["trades.beta"])),
        "mart.total": loss("mart", clean, adv, y, beta=float(fixture["mart.beta"])),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, fixture[name], rtol=1e-9, atol=1e-9)
    assert {"trades": float(fixture["trades.beta"]), "mart": float(fixture["mart.beta"])} == BETAS


def test_trades_and_mart_equal_a_loop_over_samples():
    clean, adv = 3 * torch.randn(7, 5, dtype=torch.float64), 3 * torch.randn(7, 5, dtype=torch.float64)
    y = torch.randint(5, (7,))
    trades = mart = 0.0
    for c, a, label in zip(clean.tolist(), adv.tolist(), y.tolist()):
        p, q = probabilities(c), probabilities(a)
        distance = sum(pi * math.log(pi / qi) for pi, qi in zip(p, q))
        trades += -math.log(p[label]) + 2.5 * distance
        wrong = max(q[k] for k in range(5) if k != label)
        mart += -math.log(q[label]) - math.log(1.0001 - wrong) + 1.5 * distance * (1.0000001 - p[label])
    torch.testing.assert_close(loss("trades", clean, adv, y, beta=2.5).item(), trades / 7)
    torch.testing.assert_close(loss("mart", clean, adv, y, beta=1.5).item(), mart / 7, rtol=1e-8, atol=1e-8)


def test_runner_up_is_the_best_wrong_class():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, -1.0], [0.0, -math.inf, -1.0]])
    assert runner_up(logits, torch.tensor([0, 2, 0, 0])).tolist() == [2, 0, 1, 2]
    many, y = torch.randn(100, 10), torch.randint(10, (100,))
    assert (runner_up(many, y) != y).all()


def test_kl_is_zero_only_for_equal_distributions_and_not_symmetric():
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    torch.testing.assert_close(kl(a, a + 3), torch.zeros(6), atol=1e-6, rtol=0)
    assert (kl(a, b) > 0).all() and not torch.allclose(kl(a, b), kl(b, a))


@pytest.mark.parametrize("method", PAIRS)
def test_confident_logits_keep_gradients_finite(method):
    confident = 200.0 * torch.eye(4)
    for clean, adv in ((confident, confident), (confident, -confident), (confident, confident.flip(0))):
        for y in (torch.arange(4), torch.tensor([1, 2, 3, 0])):
            c, a = clean.clone().requires_grad_(), adv.clone().requires_grad_()
            value = loss(method, c, a, y)
            grads = torch.autograd.grad(value, (c, a))
            assert torch.isfinite(value) and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_low_precision_logits_are_computed_in_float32(dtype):
    clean, adv, y = torch.randn(9, 5).to(dtype), torch.randn(9, 5).to(dtype), torch.randint(5, (9,))
    for method in PAIRS:
        value = loss(method, clean, adv, y)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(method, clean.float(), adv.float(), y))


def test_mart_differentiates_both_passes():
    clean, adv = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    y = torch.arange(4)
    assert torch.autograd.gradcheck(
        lambda c, a: tuple(mart_parts(c, a, y).values()), (clean.requires_grad_(), adv.requires_grad_())
    )


def fake_streams(n=5, k=4):
    """Streams with random auxiliary logits and nothing else."""
    aux = {name: torch.randn(n, k) for name in ("robust", "nonrobust", "recalibrated")}
    return Streams(None, None, None, None, None, aux)


def test_fsr_terms_equal_a_loop_over_samples_and_modules():
    logits, y, modules = torch.randn(5, 4), torch.randint(4, (5,)), [fake_streams(), fake_streams()]
    sep = rec = 0.0
    for streams in modules:
        for i, label in enumerate(y.tolist()):
            wrong = max((k for k in range(4) if k != label), key=lambda k: logits[i, k].item())
            ce = {name: [-math.log(p) for p in probabilities(v[i].tolist())] for name, v in streams.aux.items()}
            sep += (ce["robust"][label] + ce["nonrobust"][wrong]) / 10
            rec += ce["recalibrated"][label] / 10
    terms = fsr_terms(logits, modules, y)
    torch.testing.assert_close([terms["sep"].item(), terms["rec"].item()], [sep, rec], rtol=1e-5, atol=1e-5)


def test_terms_that_no_module_has_are_left_out():
    logits, y = torch.randn(5, 4), torch.randint(4, (5,))
    assert fsr_terms(logits, [], y) == {} and probe_terms([], y) == {}
    robust_only = fake_streams()._replace(aux={"robust": torch.randn(5, 4)})
    assert fsr_terms(logits, [robust_only], y).keys() == {"sep"}
    probes = [fake_streams()._replace(aux={"probe": torch.randn(5, 4)}) for _ in range(2)]
    assert fsr_terms(logits, probes, y) == {}
    expected = sum(F.cross_entropy(s.aux["probe"], y) for s in probes) / 2
    torch.testing.assert_close(probe_terms(probes, y)["probe"], expected)


X, Y = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("method", ["natural", "at", "trades", "mart"])
def test_every_method_trains_with_every_module(method, module):
    run = replace(SMALL, method=method, module=module)
    model = model_of(run)
    objective = Objective(model, run)
    with eval_mode(model):
        x_adv = crafted(model, X, Y, run)
    parts, logits = objective(X, x_adv, Y)
    total = objective.total(parts)
    total.backward()
    expected = {"cls"} | ({"robust"} if method in ("trades", "mart") else set())
    if run.fsr and run.fsr.kind != "residual":
        expected |= {"sep"} if run.fsr.kind == "separation" else {"sep", "rec"}
    if run.peer and run.peer.name != "fd":
        expected |= {"probe"}
    assert parts.keys() == expected and logits.shape == (6, 10) and torch.isfinite(total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    torch.testing.assert_close(total, sum(objective.weights[k] * v for k, v in parts.items()))


def weights_of(**changes):
    run = replace(SMALL, **changes)
    return Objective(nn.Linear(1, 1), run).weights


def test_weights_are_those_of_the_run():
    spec = FSRSpec(lambda_sep=0.5, lambda_rec=2.0)
    expected = {"cls": 1.0, "robust": 6.0, "sep": 0.5, "rec": 2.0, "probe": 0.0}
    assert weights_of(method="trades", module=spec) == expected
    assert weights_of(method="mart")["robust"] == 5.0 and weights_of(method="mart", beta=1.5)["robust"] == 1.5
    assert weights_of(module=PeerSpec(name="cas"))["probe"] == 2.0


class Counting(nn.Module):
    """Remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, x):
        self.seen.append(x)
        return self.weight * x.flatten(1)[:, :10]


@pytest.mark.parametrize(
    "method, seen",
    [
        ("natural", ["x"]),
        ("at", ["adv"]),
        ("trades", ["x", "adv"]),
        ("mart", ["x", "adv"]),
    ],
)
def test_passes_run_in_the_stated_order(method, seen):
    net, x_adv = Counting(), 1 - X
    parts, logits = Objective(Classifier(net), replace(SMALL, method=method))(X, x_adv, Y)
    assert [("x" if torch.equal(x, X) else "adv") for x in net.seen] == seen
    expected = {
        "natural": {"cls": F.cross_entropy(net(X), Y)},
        "at": {"cls": F.cross_entropy(net(x_adv), Y)},
        "trades": trades_parts(net(X), net(x_adv), Y),
        "mart": mart_parts(net(X), net(x_adv), Y),
    }
    torch.testing.assert_close(parts, expected[method])
    torch.testing.assert_close(logits, net(X if method == "natural" else x_adv))


def crafted(model, x, y, run, generator=None, noise=None):
    """Start and steps together, as the Trainer's crafter does."""
    if run.method == "natural":
        return x
    return craft(model, run, start(x, run, draw_start(x, run, generator) if noise is None else noise), x, y)


def slow_pgd(model, x, y, run, delta, loss):
    """Sign steps, one sample at a time."""
    rows = []
    for i in range(len(x)):
        x_i = x[i : i + 1]
        adv = (x_i + delta[i : i + 1]).clamp(x_i - run.eps, x_i + run.eps).clamp(0, 1)
        for _ in range(run.steps):
            adv = adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(loss(model, adv, x_i, y[i : i + 1]), adv)
            adv = (adv + run.alpha * grad.sign()).clamp(x_i - run.eps, x_i + run.eps).clamp(0, 1)
        rows.append(adv.detach())
    return torch.cat(rows)


def final_ce(model, adv, x, y):
    return F.cross_entropy(model(adv), y)


def clean_kl(model, adv, x, y):
    return kl(model(x).detach(), model(adv)).sum()


def joint(model, adv, x, y):
    logits, streams = model.trace(adv)
    return F.cross_entropy(logits, y) + 2 * sum(F.cross_entropy(s.aux["probe"], y) for s in streams) / len(streams)


@pytest.mark.parametrize(
    "method, module, loss",
    [
        ("at", None, final_ce),
        ("at", FSRSpec(at=("layer3",)), final_ce),
        ("trades", None, clean_kl),
        ("mart", None, final_ce),
        ("at", PeerSpec(name="cas"), joint),
        ("at", PeerSpec(name="cifs", at=("layer3.0", "layer4.0")), joint),
    ],
)
def test_crafted_images_equal_a_loop_over_samples(method, module, loss):
    run = replace(SMALL, method=method, module=module)
    model = model_of(run).double().eval()
    x = X.double()
    noise = torch.rand_like(x) if method == "at" else torch.randn_like(x)
    delta = run.eps * (2 * noise - 1) if method == "at" else 0.001 * noise
    torch.testing.assert_close(crafted(model, x, Y, run, noise=noise), slow_pgd(model, x, Y, run, delta, loss))


def test_crafting_stays_in_the_ball_follows_its_generator_and_touches_nothing():
    run = replace(SMALL, method="at", module=FSRSpec(at=("layer3",)))
    model = model_of(run).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    a, b, c = (crafted(model, X, Y, run, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (a - X).abs().max() <= run.eps + 1e-6 and a.min() >= 0 and a.max() <= 1 and not a.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_starts_have_their_stated_sizes():
    x = torch.full((4, 3, 50, 50), 0.5)
    for method, largest, deviation in (("at", 0.15, 0.15 / 3**0.5), ("trades", 0.01, 0.001), ("mart", 0.01, 0.001)):
        run = replace(SMALL, method=method)
        moved = start(x, run, draw_start(x, run)) - x
        assert moved.abs().max() <= largest + 1e-6 and abs(moved.mean()) < 2e-3
        assert moved.std().item() == pytest.approx(deviation, rel=0.02)


class Clips(nn.Module):
    """A network that writes into its input."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.clamp_(0.2, 0.8))


class Clipped(Clips):
    def forward(self, x):
        return self.net(x.clamp(0.2, 0.8))


@pytest.mark.parametrize("method", ["natural", "at", "trades", "mart"])
def test_networks_that_write_into_their_input_train_as_others_do(method):
    run = replace(SMALL, method=method, awp=0.01)
    net, results = model_of(run).net.eval(), []
    for kind in (Clips, Clipped):
        model, x = Classifier(kind(copy.deepcopy(net))), X.clone()
        x_adv = crafted(model, x, Y, run, torch.Generator().manual_seed(0))
        objective = Objective(model, run)
        with perturbed_weights(objective, 0.01, x, x_adv, Y):
            total = objective.total(objective(x, x_adv, Y)[0])
            gradients = torch.autograd.grad(total, list(model.parameters()))
        results.append([x_adv, total.detach(), *gradients])
        assert torch.equal(x, X)
    torch.testing.assert_close(*results)


def awp_objective():
    run = replace(SMALL, module=FSRSpec(at=("layer3",), mask="soft"))
    return Objective(build_model("resnet18", fsr=run.fsr, width=4, blocks=run.blocks), run)


def test_awp_moves_each_weight_by_gamma_of_its_norm_along_the_gradient_and_back():
    objective = awp_objective()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    total = objective.total(objective(X, X, Y)[0])
    named = dict(objective.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(total, list(named.values()))))
    objective.load_state_dict(before)
    with perturbed_weights(objective, 0.02, X, X, Y):
        for name, p in named.items():
            move = p.detach() - before[name]
            if p.ndim == 1:
                assert torch.equal(p, before[name])
                continue
            torch.testing.assert_close(move.norm(), 0.02 * before[name].norm(), rtol=1e-3, atol=1e-6)
            assert F.cosine_similarity(move.flatten(), grads[name].flatten(), dim=0) > 0.999
        worst = objective.total(objective(X, X, Y)[0])
        assert worst > total
        running = {k: v.clone() for k, v in objective.state_dict().items() if "running" in k}
    after = objective.state_dict()
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), before[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(after[k], v) for k, v in running.items())  # only the caller's own pass moved them
    assert all(p.grad is None for p in named.values())


def test_awp_leaves_running_statistics_and_takes_itself_off_after_an_error():
    objective = awp_objective()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"):
        with perturbed_weights(objective, 0.02, X, X, Y):
            raise RuntimeError("stop")
    for name, value in objective.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)
        if "running" in name or "tracked" in name:
            assert torch.equal(value, before[name])
