"""The audit exposes defences that are known to be fake, leaves honest ones alone, and touches nothing."""

import contextlib
import copy
import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import BRISK
from torch import nn
from torch.nn import functional as F

from fsr.attacks.gradient import pgd
from fsr.audit import BUDGETS, GROUPS, audit, separated, whitebox
from fsr.audit.case import prepare
from fsr.audit.indicators import NAMES, indicators
from fsr.audit.judge import Judge, is_randomised
from fsr.config import FSRSpec, PeerSpec
from fsr.files import UsageError
from fsr.models import FSR, build_model

EPS = 0.15


@pytest.fixture
def brisk(monkeypatch):
    """Far less than quick: what this little exposes, quick exposes too (the slow tests run that)."""
    monkeypatch.setitem(BUDGETS, "quick", BRISK)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


class Masked(nn.Module):
    """A classifier that sees only a mask sigmoid(score / tau), as FSR's, with or without FSR's logistic noise."""

    def __init__(self, *, noise: bool):
        super().__init__()
        self.noise, self.tau = noise, 1.0
        self.score = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.rest = nn.Sequential(
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )

    def forward(self, x):
        score = self.score(x)
        if self.noise:
            u = torch.rand_like(score).clamp(1e-6, 1 - 1e-6)
            score = score + u.log() - (1 - u).log()
        return self.rest(torch.sigmoid(score / self.tau))


class After(nn.Module):
    """A network with something done to its images before, and to its logits after."""

    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)[order].contiguous()
    return images, torch.tensor(data.target)[order]


def fit(model, x, y, *, epochs: int, robust: bool = False):
    """Adam on (adversarial) cross-entropy; the model in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            images = x[rows]
            if robust:
                images = pgd(model.eval(), images, y[rows], eps=EPS, alpha=EPS / 4, steps=5)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model.train()(images), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def annealed(model, x, y):
    """Trained while the mask sharpens, then made so sharp that its slope underflows."""
    for tau in (1.0, 0.5, 0.25, 0.1):
        model.tau = tau
        fit(model, x, y, epochs=2)
    model.tau = 1e-6
    return model


@pytest.fixture(scope="module")
def networks():
    """Name to network: a naturally trained one, an adversarially trained one, and the fakes; and 100 test images."""
    torch.manual_seed(0)
    x, y = digits()
    train, part = (x[:1200], y[:1200]), (x[1200:1300], y[1200:1300])
    natural = fit(Small(), *train, epochs=4)
    made = {
        "natural": natural,
        "robust": fit(copy.deepcopy(natural), *train, epochs=4, robust=True),
        "saturating mask": annealed(Masked(noise=False), *train),
        "noise left on": annealed(Masked(noise=True), *train),
        "logits times 1000": After(natural, after=lambda z: 1000 * z),
        "softmax of logits times 1000": After(natural, after=lambda z: (1000 * z).softmax(1)),
        "quantised inputs": After(natural, before=lambda x: torch.round(8 * x) / 8),
        "bytes": After(natural, before=lambda x: torch.from_numpy((15 * x.numpy()).round() / 15)),
    }
    return made, part


def accuracy(kept) -> float:
    return float(kept.double().mean())


FAKES = ["saturating mask", "noise left on", "softmax of logits times 1000", "quantised inputs"]


@pytest.mark.parametrize("name", FAKES)
def test_a_fake_looks_robust_to_the_authors_protocol_and_not_to_the_audit(networks, brisk, name):
    made, (x, y) = networks
    result = audit(made[name], x[:40], y[:40], EPS)
    assert accuracy(result.authors_protocol) > 0.75
    assert accuracy(result.worst_case) < accuracy(result.authors_protocol) - 0.5
    assert result.indicators["unavailable_gradients"] > 0.5
    assert result.randomised == (name == "noise left on")


def test_large_logits_fool_cross_entropy_and_neither_the_margin_nor_the_audit(networks, brisk):
    made, (x, y) = networks
    result = audit(made["logits times 1000"], x[:50], y[:50], EPS)
    honest = audit(made["natural"], x[:50], y[:50], EPS)
    assert accuracy(result.columns["fgsm"]) > accuracy(honest.columns["fgsm"]) + 0.3
    for name in ("pgd20", "pgd100"):
        assert accuracy(result.columns[name]) > 0.75 > 0.3 > accuracy(honest.columns[name])
    torch.testing.assert_close(result.columns["cw"], honest.columns["cw"])  # a margin's sign has no scale
    assert accuracy(result.worst_case) < accuracy(honest.worst_case) + 0.05
    assert result.indicators["unavailable_gradients"] > 0.5 > 0.1 > honest.indicators["unavailable_gradients"]


def test_an_honest_defence_stays_as_robust_as_it_is(networks, brisk):
    made, (x, y) = networks
    result = audit(made["robust"], x[:50], y[:50], EPS)
    assert accuracy(result.worst_case) > 0.4
    assert accuracy(result.authors_protocol) - accuracy(result.worst_case) < 0.1
    assert result.indicators["unavailable_gradients"] == 0 and result.indicators["unbounded_attack_fails"] == 0
    assert not result.randomised and not result.flags["zero_gradient"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAKES, "bytes", "logits times 1000"])
def test_quick_brings_every_fake_near_the_truth(networks, name):
    made, (x, y) = networks
    result = audit(made[name], x, y, EPS)
    assert accuracy(result.worst_case) < 0.25
    if name != "logits times 1000":
        assert accuracy(result.authors_protocol) > 0.75


@pytest.fixture
def fsr():
    """An untrained FSR network with BatchNorm statistics of its own, in training mode."""
    model = build_model("resnet18", 10, FSRSpec(at=("layer2",), hidden=8), width=4, blocks=(1, 1, 1, 1))
    for _ in range(3):
        model(torch.rand(32, 3, 8, 8))
    return model


def test_fsr_gets_all_nine_groups_and_the_worst_case_is_all_of_them(fsr, brisk):
    x = torch.rand(12, 3, 8, 8)
    with torch.no_grad():
        y = copy.deepcopy(fsr).eval()(x).argmax(1)
    y[0] = (y[0] + 1) % 10  # one that is wrong from the start
    fsr.train()
    fsr.net.layer1.eval()  # a deliberately frozen part
    with untouched(fsr, x):
        result = audit(fsr, x, y, 0.02, surrogate=copy.deepcopy(fsr))
    assert not result.not_applicable
    assert list(result.groups) == [
        "autoattack",
        "bpda",
        "mask",
        "latent",
        "transfer",
        "restarts",
        "noise",
        "queries",
        "unmasked",
    ]
    assert set(result.indicators) == set(NAMES) and result.seconds.keys() == GROUPS.keys()
    parts = [result.clean, *result.columns.values(), *result.attacks.values()]
    assert torch.equal(result.worst_case, torch.stack(parts).all(0))
    assert torch.equal(result.authors_protocol, torch.stack(list(result.columns.values())).all(0))
    assert not result.clean[0] and result.clean[1:].all() and not result.worst_case[0]
    for name, kept in result.groups.items():
        mine = [v for k, v in result.attacks.items() if k.startswith(f"{name}/")]
        assert kept.dtype == torch.bool and torch.equal(kept, torch.stack(mine).all(0))
    assert {
        "mask/frozen",
        "mask/towards-0",
        "mask/towards-1",
        "latent/joint",
        "transfer/m1-ce",
        "transfer/r0-ce",
        "transfer/surrogate-ce",
        "queries/random-noise",
        "noise/rand",
    } <= result.attacks.keys()


def test_groups_that_need_fsr_are_named_as_not_applicable(networks, brisk):
    made, (x, y) = networks
    result = audit(made["natural"], x[:10], y[:10], EPS)
    assert {"bpda", "mask", "noise", "latent/joint", "transfer/m1", "transfer/r0", "transfer/surrogate"} == set(
        result.not_applicable
    )
    assert all(result.not_applicable.values())
    assert not {"bpda", "mask", "noise"} & result.groups.keys()


@contextlib.contextmanager
def untouched(fsr, images):
    """The model, its modes, the images and every random state are afterwards what they were."""
    modes, x = [m.training for m in fsr.modules()], images
    weights, images = copy.deepcopy(fsr.state_dict()), x.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    precision = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    assert [m.training for m in fsr.modules()] == modes
    assert all(torch.equal(weights[k], v) for k, v in fsr.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in fsr.parameters())
    assert not any(m._forward_hooks for m in fsr.modules()) and torch.equal(x, images)
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert precision == (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)


def as_json(record: dict) -> dict:
    record = {**record, "attacks": {name: kept.tolist() for name, kept in record["attacks"].items()}}
    return json.loads(json.dumps(record))


def test_a_stopped_audit_goes_on_and_ends_as_if_never_stopped(networks, brisk):
    made, (x, y) = networks
    kept: dict[str, dict] = {}

    def stop_after_four(name, record):
        kept[name] = as_json(record)
        if len(kept) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(made["natural"], x[:20], y[:20], EPS, on_group=stop_after_four)
    later: list[str] = []
    resumed = audit(made["natural"], x[:20], y[:20], EPS, done=kept, on_group=lambda name, _: later.append(name))
    assert later == list(GROUPS)[4:]
    whole = audit(made["natural"], x[:20], y[:20], EPS)
    assert whole.summary() == resumed.summary() and whole.indicators == resumed.indicators
    assert all(torch.equal(whole.attacks[name], resumed.attacks[name]) for name in whole.attacks)
    assert whole.flags == resumed.flags and whole.not_applicable == resumed.not_applicable


@pytest.mark.parametrize("change", [
    {"x": torch.rand(4, 3, 8, 8) + 1}, {"x": torch.rand(4, 8, 8)}, {"x": torch.full((4, 3, 8, 8), torch.nan)},
    {"x": torch.zeros(0, 3, 8, 8), "y": torch.zeros(0, dtype=torch.long)}, {"y": torch.tensor([0, 1, 2, 10])},
    {"y": torch.tensor([0, 1, 2, -1])}, {"y": torch.zeros(3, dtype=torch.long)}, {"eps": 0.0}, {"eps": 8},
    {"eps": None}, {"budget": "huge"}, {"model": lambda x: x}, {"model": nn.Flatten(0)}, {"done": "three"},
])  # fmt: skip
def test_what_cannot_be_audited_is_refused(change):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    given = {"model": model, "x": torch.rand(4, 3, 8, 8), "y": torch.arange(4), "eps": 0.1, "budget": "quick", **change}
    if "done" in change:
        record = {"attacks": {"standard": [True] * 3}, "details": {}, "not_applicable": {}, "seconds": 1.0}
        given["done"] = {"autoattack": record}
    with pytest.raises(UsageError):
        audit(**given)


class Coin(nn.Module):
    """Right (class 0) in 3 of 4 draws."""

    def forward(self, x):
        right = torch.rand(len(x)) < 0.75
        return torch.stack([right.float(), 1 - right.float(), torch.full((len(x),), -9.0)], dim=1) * 10


def test_one_unlucky_draw_breaks_nothing():
    x, y = torch.full((200, 3, 2, 2), 0.5), torch.zeros(200, dtype=torch.long)
    assert is_randomised(Coin(), x)
    verdict = Judge(Coin(), x, y, eps=EPS, draws=20, seed=0).correct(x, torch.arange(200))
    assert (Coin()(x).argmax(1) == y).float().mean() < 0.9
    assert verdict.float().mean() > 0.95  # P(at most half of 20 draws right) is 0.014


class Moody(nn.Module):
    """Class 0 while the mean pixel is above a half; in one of four draws the opposite of what it thinks."""

    def forward(self, x):
        lead = 100 * (x.mean((1, 2, 3)) - 0.5)
        lead = torch.where(torch.rand(len(x)) < 0.25, -lead, lead)
        return torch.stack([lead, -lead, torch.full_like(lead, -99.0)], dim=1)


def test_one_unlucky_draw_ends_no_attack(brisk):
    """Every image can be broken for good; an attack that took one wrong draw for a success would leave a quarter."""
    x, y = torch.full((200, 3, 2, 2), 0.55), torch.zeros(200, dtype=torch.long)
    case = prepare(Moody(), x, y, eps=0.1, seed=0, budget=BRISK, batch=250, surrogate=None, train=None)
    assert case.randomised
    left = whitebox.restarts(case).attacks["pgd-0.25"].float().mean()
    assert left < 0.15  # P(at most half of 10 draws right) is 0.08


def test_the_noise_group_switches_the_training_noise_on(fsr, monkeypatch):
    seen, mask = [], FSR.mask
    monkeypatch.setattr(FSR, "mask", lambda self, *a: seen.append(self.noise) or mask(self, *a))
    x = torch.rand(4, 3, 8, 8)
    model = fsr.eval().requires_grad_(False)
    y = model(x).argmax(1)
    case = prepare(model, x, y, eps=0.02, seed=0, budget=BRISK, batch=250, surrogate=None, train=None)
    seen.clear()
    found = separated.noise(case)
    assert seen.count(True) > 100 > seen.count(None) > 0 and not case.randomised  # judged without it
    assert {"eot-ce", "eot-margin", "rand"} == found.attacks.keys() and 0 <= found.details["noisy_accuracy"] <= 1


def test_the_probes_of_cas_are_attacked_too(brisk):
    model = build_model(
        "resnet18", 10, peer=PeerSpec(name="cas", at=("layer2.0",)), width=4, blocks=(1, 1, 1, 1)
    ).eval()
    model.requires_grad_(False)
    x = torch.rand(6, 3, 8, 8)
    case = prepare(model, x, model(x).argmax(1), eps=0.02, seed=0, budget=BRISK, batch=250, surrogate=None, train=None)
    found = separated.latent(case)
    assert "joint" in found.attacks and not found.not_applicable


@pytest.mark.parametrize("random", [False, True])
def test_fsr_behind_numpy_is_attacked_without_an_exception(fsr, brisk, random):
    def before(x):
        noise = 0.2 * torch.rand_like(x).numpy() if random else 0.0
        return torch.from_numpy(np.clip(x.numpy() + noise, 0, 1))

    model, x = After(fsr.eval().requires_grad_(False), before=before), torch.rand(6, 3, 8, 8)
    y = model(x).argmax(1)
    case = prepare(model, x, y, eps=0.02, seed=0, budget=BRISK, batch=250, surrogate=None, train=None)
    groups = (whitebox.autoattack, separated.bpda, separated.mask, separated.latent, whitebox.restarts)
    found = {name for group in groups for name in group(case).attacks}
    assert case.randomised == random
    assert {"standard", "apgd-ce", "frozen", "towards-1", "joint", "multi-targeted"} <= found


def test_a_deterministic_model_is_not_called_randomised(fsr):
    x = torch.rand(8, 3, 8, 8)
    assert not is_randomised(fsr.eval(), x) and is_randomised(fsr.train(), x)


def test_the_judge_sees_only_images_inside_the_ball():
    class Bright(nn.Module):
        def forward(self, x):
            gap = x.mean((1, 2, 3)) - 0.6
            return torch.stack([-gap, gap], dim=1)

    x, y = torch.full((3, 3, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    judge = Judge(Bright(), x, y, eps=0.05, draws=1, seed=0)
    outside = torch.stack([torch.full((3, 2, 2), v) for v in (1.0, torch.nan, 7.0)])
    assert judge.correct(outside, torch.arange(3)).all()
    assert not Judge(Bright(), x, y, eps=0.2, draws=1, seed=0).correct(outside, torch.arange(3))[[0, 2]].any()


class Slope(nn.Module):
    """Logits of three classes by the mean's distance d from grey in units of EPS: 0, height(d), -9; right while < 0."""

    def __init__(self, height):
        super().__init__()
        self.height = height

    def forward(self, x):
        d = (x.mean((1, 2, 3)) - 0.5) / EPS
        return torch.stack([torch.zeros_like(d), self.height(d), torch.full_like(d, -9.0)], dim=1)


@pytest.mark.parametrize("height, expected", [
    (lambda d: d - 0.5, {}),  # honest and breakable
    (lambda d: 0 * d - 1, {"unavailable_gradients": 1, "unbounded_attack_fails": 1}),  # flat
    (lambda d: d / 2 - 1, {}),  # honest and robust: only more than EPS breaks it
    # rises to the ball's end without an error there, and has a narrow peak where the fourth step lands
    (lambda d: d - 1.5 + 3 * torch.exp(-(((d - 0.4) / 0.02) ** 2)), {"silent_success": 1}),
])  # fmt: skip
def test_indicators_of_functions_with_known_failures(height, expected):
    x, y = torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    budget = replace(BRISK, student={"rounds": 1, "samples": 50, "steps": 2})
    case = prepare(Slope(height), x, y, eps=EPS, seed=0, budget=budget, batch=10, surrogate=None, train=None)
    found = indicators(case).details
    watched = [name for name in NAMES if name != "transfer_failure"]  # which depends on the student
    assert {name: found[name] for name in watched} == {name: expected.get(name, 0) for name in watched}


@pytest.mark.parametrize("share, expected", [(-0.01, 1.0), (0.0, 0.0)])
def test_optimisation_is_incomplete_where_the_last_tenth_of_the_steps_brings_more(share, expected, monkeypatch):
    """Ten steps reach the ball's end, the last tenth brings nothing: no share of the gain, which is more than -1 %."""
    monkeypatch.setattr(sys.modules["fsr.audit.indicators"], "INCOMPLETE", share)  # not the function of that name
    x, y = torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    budget = replace(BRISK, student={"rounds": 1, "samples": 50, "steps": 2})
    model = Slope(lambda d: 0.9 * d - 1)
    case = prepare(model, x, y, eps=EPS, seed=0, budget=budget, batch=10, surrogate=None, train=None)
    assert indicators(case).details["incomplete_optimisation"] == expected


def test_a_model_that_is_never_right_has_no_indicators(brisk):
    x, y = torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, dtype=torch.long)
    result = audit(Slope(lambda d: 0 * d + 1), x, y, EPS)
    assert accuracy(result.worst_case) == 0 and set(result.indicators.values()) == {None}


def test_two_classes_and_grey_images_are_audited_too(brisk):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 2)

        def forward(self, x):
            return self.linear(x.flatten(1))

    model, x = Two(), torch.rand(8, 1, 4, 4)
    with torch.no_grad():
        y = model(x).argmax(1)
        w = model.linear.weight
        gap = (model(x)[:, 1] - model(x)[:, 0]).abs()
        reach = 0.3 * (w[1] - w[0]).abs().sum()  # a bound on what eps = 0.3 can do, [0, 1] left aside
    result = audit(model, x, y, 0.3)
    assert result.worst_case[gap > reach].all()
    middle = audit(model, 0.4 + 0.2 * x, model(0.4 + 0.2 * x).argmax(1), 0.3)  # no pixel reaches 0 or 1
    with torch.no_grad():
        z = model(0.4 + 0.2 * x)
    assert torch.equal(middle.worst_case, (z[:, 1] - z[:, 0]).abs() > reach)


def test_an_attack_that_stopped_at_the_quick_network_goes_on_at_the_exact_one(fsr):
    """As on a GPU, where crafting may be coarser than judging: what only the quick network got wrong is attacked on."""
    x, y = torch.rand(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)
    own = {"budget": BRISK, "batch": 8, "surrogate": None, "train": None}
    case, given = prepare(fsr.eval(), x, y, eps=0.02, seed=0, **own), []

    def craft(images, labels, rows):
        given.append(rows.tolist())
        return images

    def correct(x_adv, rows, exact=True):
        if len(given) == 2:  # the second attack breaks what it gets
            return torch.zeros(len(rows), dtype=torch.bool)
        return torch.ones(len(rows), dtype=torch.bool) if exact else rows != 2

    case.quick, case.judge.correct = True, correct
    kept = case._kept(craft, torch.arange(8))
    assert given == [list(range(8)), [2]] and kept.tolist() == [i != 2 for i in range(8)]
    given.clear()
    case.quick = False  # one float32 only, as on a CPU
    assert bool(case._kept(craft, torch.arange(8)).all()) and len(given) == 1


def test_one_unlucky_draw_is_no_silent_success():
    """Three draws of four say 0 whatever the image: the mean decides, and it is never wrong."""

    class Moody(nn.Module):
        def forward(self, x):
            zero = (torch.rand(len(x)) < 0.75).float()
            return torch.stack([4 * zero, 4 * (1 - zero)], dim=1) + 0 * x.mean((1, 2, 3))[:, None]

    x, y = torch.full((6, 3, 4, 4), 0.5), torch.zeros(6, dtype=torch.long)
    budget = replace(BRISK, student={"rounds": 1, "samples": 50, "steps": 2})
    case = prepare(Moody(), x, y, eps=EPS, seed=0, budget=budget, batch=10, surrogate=None, train=None)
    assert case.randomised
    assert indicators(case).details["silent_success"] == 0
