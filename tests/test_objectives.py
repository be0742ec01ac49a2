"""Losses against closed forms and loops over samples; crafting against a loop over samples; AWP by its definition."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import Wrapped, parity
from torch import nn
from torch.nn import functional as F

from fsr.config import FSRSpec, PeerSpec, Run
from fsr.models import Classifier, Streams, model_of
from fsr.models.modes import eval_mode
from fsr.train.objectives import BETAS, PAIRS, Objective, craft, draw_start, fsr_terms, perturbed_weights, start

SMALL = Run(dataset="digits", width=4, blocks=(1, 1, 1, 1), eps=0.15, alpha=0.04, steps=3)
HERE, PEERS = FSRSpec(at=("layer3",)), tuple(PeerSpec(name=name) for name in ("fd", "cas", "cifs"))
CONTROLS = tuple(FSRSpec(kind=kind) for kind in ("separation", "residual", "aux"))
MODULES = (None, HERE, FSRSpec(at=("layer2", "layer3")), *CONTROLS, *PEERS)
X, Y = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)
METHODS = ("natural", "at", "trades", "mart")


def loss(method, clean, adv, y, beta=1.0):
    parts = PAIRS[method](clean, adv, y)
    return parts["cls"] + beta * parts["robust"]


def test_parity_with_the_public_formulas():
    fixture = parity("objectives")
    clean, adv, y = fixture["natural_logits"], fixture["adversarial_logits"], fixture["y"]
    assert {method: float(fixture[f"{method}.beta"]) for method in PAIRS} == BETAS
    parts = PAIRS["trades"](clean, adv, y)
    losses = {"trades.natural": parts["cls"], "trades.robust": parts["robust"]}
    losses |= {f"{method}.total": loss(method, clean, adv, y, beta) for method, beta in BETAS.items()}
    for name, value in losses.items():
        torch.testing.assert_close(value, fixture[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", PAIRS)
def test_losses_stay_finite_for_confident_logits_and_exact_for_bf16_ones(method):
    confident = 200.0 * torch.eye(4)
    for clean, adv in ((confident, confident), (confident, -confident), (confident, confident.flip(0))):
        for y in (torch.arange(4), torch.tensor([1, 2, 3, 0])):
            c, a = clean.clone().requires_grad_(), adv.clone().requires_grad_()
            value = loss(method, c, a, y)
            assert all(torch.isfinite(t).all() for t in (value, *torch.autograd.grad(value, (c, a))))
    clean, adv, y = torch.randn(9, 5).bfloat16(), torch.randn(9, 5).bfloat16(), torch.randint(5, (9,))
    torch.testing.assert_close(loss(method, clean, adv, y), loss(method, clean.float(), adv.float(), y))


def with_heads(*names):
    """Streams with random auxiliary logits (5, 4) and nothing else."""
    return Streams(torch.zeros(5, 1, 1, 1), {name: torch.randn(5, 4) for name in names})


def test_fsr_terms_equal_a_loop_over_samples_and_modules():
    logits, y = torch.randn(5, 4), torch.randint(4, (5,))
    logits[0, y[0]] = logits[0].max()  # a tie with the label is no wrong class
    modules = [with_heads("robust", "nonrobust", "recalibrated") for _ in range(2)]
    sep = rec = 0.0
    for streams in modules:
        for i, label in enumerate(y.tolist()):
            wrong = max((k for k in range(4) if k != label), key=lambda k: logits[i, k].item())
            ce = {name: (-v[i].log_softmax(0)).tolist() for name, v in streams.aux.items()}
            sep += (ce["robust"][label] + ce["nonrobust"][wrong]) / 10
            rec += ce["recalibrated"][label] / 10
    terms = fsr_terms(logits, modules, y)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"sep": sep, "rec": rec}, rel=1e-5)
    assert fsr_terms(logits, [], y) == fsr_terms(logits, [with_heads("probe")], y) == {}
    assert fsr_terms(logits, [with_heads("robust")], y).keys() == {"sep"}


def crafted(model, x, y, run, generator=None, noise=None):
    """Start and steps together, as the Trainer's crafter does."""
    if run.method == "natural":
        return x
    return craft(model, run, start(x, run, draw_start(x, run, generator) if noise is None else noise), x, y)


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_every_module(method, module):
    run = replace(SMALL, method=method, module=module)
    model = model_of(run)
    objective = Objective(model, run)
    with eval_mode(model):
        x_adv = crafted(model, X, Y, run)
    parts, logits = objective(X, x_adv, Y)
    total = objective.total(parts)
    total.backward()
    expected = {"cls"} | ({"robust"} if method in PAIRS else set())
    if run.fsr and run.fsr.kind != "residual":
        expected |= {"sep"} if run.fsr.kind == "separation" else {"sep", "rec"}
    if run.peer and run.peer.name != "fd":
        expected |= {"probe"}
    assert parts.keys() == expected and logits.shape == (6, 10) and torch.isfinite(total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    torch.testing.assert_close(total, sum(objective.weights[k] * v for k, v in parts.items()))


def test_weights_are_those_of_the_run():
    def weights(**changes):
        return Objective(nn.Linear(1, 1), replace(SMALL, **changes)).weights

    expected = {"cls": 1.0, "robust": 6.0, "sep": 0.5, "rec": 2.0, "probe": 0.0}
    assert weights(method="trades", module=FSRSpec(lambda_sep=0.5, lambda_rec=2.0)) == expected
    assert weights(method="mart")["robust"] == 5.0 and weights(method="mart", beta=1.5)["robust"] == 1.5
    assert weights(module=PEERS[1])["probe"] == 2.0


def climbed(model, adv, x, y, run):
    """CE on the final logits, for TRADES KL from the clean ones, and with a probe its CE, averaged over modules."""
    logits, streams = model.trace(adv)
    if run.method == "trades":
        return F.kl_div(logits.log_softmax(1), model(x).detach().softmax(1), reduction="sum")
    probes = [2 * F.cross_entropy(s.aux["probe"], y) for s in streams if "probe" in s.aux]
    return F.cross_entropy(logits, y) + sum(probes) / max(len(probes), 1)


def slow_pgd(model, x, y, run, delta):
    rows = []
    for x_i, delta_i, y_i in zip(x.split(1), delta.split(1), y.split(1)):
        adv = (x_i + delta_i).clamp(x_i - run.eps, x_i + run.eps).clamp(0, 1)
        for _ in range(run.steps):
            adv = adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(climbed(model, adv, x_i, y_i, run), adv)
            adv = (adv + run.alpha * grad.sign()).clamp(x_i - run.eps, x_i + run.eps).clamp(0, 1)
        rows.append(adv.detach())
    return torch.cat(rows)


TWICE = PeerSpec(name="cifs", at=("layer3.0", "layer4.0"))
CRAFTED = [("at", None), ("at", HERE), ("trades", None), ("mart", None), ("at", PEERS[1]), ("at", TWICE)]


@pytest.mark.parametrize("method, module", CRAFTED)
def test_crafted_images_equal_a_loop_over_samples_and_touch_nothing(method, module):
    run = replace(SMALL, method=method, module=module)
    model, x = model_of(run).double().eval(), X.double()
    before = copy.deepcopy(model.state_dict())
    noise = torch.rand_like(x) if method == "at" else torch.randn_like(x)
    delta = run.eps * (2 * noise - 1) if method == "at" else 0.001 * noise
    x_adv = crafted(model, x, Y, run, noise=noise)
    torch.testing.assert_close(x_adv, slow_pgd(model, x, Y, run, delta))
    assert (x_adv - x).abs().max() <= run.eps + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert not x_adv.requires_grad and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_starts_have_their_stated_sizes_and_follow_their_generator():
    x = torch.full((4, 3, 50, 50), 0.5)
    for method, largest, deviation in (("at", 0.15, 0.15 / 3**0.5), ("trades", 0.01, 0.001), ("mart", 0.01, 0.001)):
        run = replace(SMALL, method=method)
        draws = [draw_start(x, run, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(*draws[:2]) and not torch.equal(*draws[1:])
        moved = start(x, run, draws[0]) - x
        assert moved.abs().max() <= largest + 1e-6 and abs(moved.mean()) < 2e-3
        assert moved.std().item() == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_passes_run_in_the_stated_order_on_images_that_a_network_may_write_into(method):
    run = replace(SMALL, method=method, awp=0.01)
    net, results, seen = model_of(run).net.eval(), [], []

    def clip(writes, x):
        seen.append(x.clone())
        return x.clamp_(0.2, 0.8) if writes else x.clamp(0.2, 0.8)

    for writes in (True, False):
        model, x = Classifier(Wrapped(copy.deepcopy(net), partial(clip, writes))), X.clone()
        x_adv, objective = crafted(model, x, Y, run, torch.Generator().manual_seed(0)), Objective(model, run)
        passes = {"natural": [X], "at": [x_adv]}.get(method, [X, x_adv])
        with perturbed_weights(objective, 0.01, x, x_adv, Y):
            parts, logits = objective(x, x_adv, Y)
            assert all(map(torch.equal, seen[-len(passes) :], passes))
            outputs = [model(one.clone()) for one in passes]
            gradients = torch.autograd.grad(objective.total(parts), list(model.parameters()))
        expected = PAIRS[method](*outputs, Y) if method in PAIRS else {"cls": F.cross_entropy(*outputs, Y)}
        torch.testing.assert_close((parts, logits), (expected, outputs[-1]))
        results.append([x_adv, logits.detach(), *gradients])
        assert torch.equal(x, X)
    torch.testing.assert_close(*results)


def test_awp_moves_each_weight_by_gamma_of_its_norm_along_the_gradient_and_back_after_an_error_too():
    run = replace(SMALL, module=FSRSpec(at=("layer3",), mask="soft"))
    objective = Objective(model_of(run), run)
    before = copy.deepcopy(objective.state_dict())
    total, named = objective.total(objective(X, X, Y)[0]), dict(objective.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(total, list(named.values()))))
    objective.load_state_dict(before)
    with pytest.raises(RuntimeError, match="stop"), perturbed_weights(objective, 0.02, X, X, Y):
        assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items() if "running" in k)
        for name, p in named.items():
            move = p.detach() - before[name]
            if p.ndim == 1:
                assert torch.equal(p, before[name])
            else:
                torch.testing.assert_close(move.norm(), 0.02 * before[name].norm(), rtol=1e-3, atol=1e-6)
                assert F.cosine_similarity(move.flatten(), grads[name].flatten(), dim=0) > 0.999
        assert objective.total(objective(X, X, Y)[0]) > total
        raise RuntimeError("stop")
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), before[name], rtol=1e-5, atol=1e-6)
        assert p.grad is None
