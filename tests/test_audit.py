"""The audit exposes defences that are known to be fake, leaves honest ones alone, and touches nothing."""

import copy
import json

import numpy as np
import pytest
import torch
from tiny import BRISK, Wrapped
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fsr.attacks import ATTACKS
from fsr.attacks.gradient import cross_entropy, pgd
from fsr.audit import BUDGETS, GROUPS, Context, audit, binarization_test, cheap_checks, proofs, run_group
from fsr.audit.context import differs, snapshot
from fsr.audit.proofs import NAMES
from fsr.config import FSRSpec
from fsr.files import UsageError
from fsr.models import FSR, attach_fsr, build_model
from fsr.models.fsr import switched

EPS = 0.15


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setitem(BUDGETS, "quick", BRISK)


def fit(before=lambda x: x, *, robust=False):
    """A small network after four epochs of Adam on (adversarial) cross-entropy, in eval mode, and 60 test images."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    first = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    second = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()
    net, data = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(512, 10)), load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)[order].contiguous()
    y = torch.tensor(data.target)[order]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for rows in [rows for _ in range(4) for rows in torch.randperm(1200).split(64)]:
        images = x[rows]
        if robust:
            start = EPS * (2 * torch.rand_like(images) - 1)
            images = pgd(net.eval(), images, y[rows], eps=EPS, alpha=EPS / 4, steps=5, start=start)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net.train()(before(images)), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net.eval(), x[1200:1260], y[1200:1260]


def stairs(x):
    return torch.round(24 * x) / 24


@pytest.fixture(scope="module")
def natural():
    return fit()


def accuracy(saved) -> float:
    return float(torch.as_tensor(saved).double().mean())


FAKES = {  # what is done to images and to logits, whether it was there in training, and where it has to fall
    "logits times 3000": ({"after": lambda z: 3000 * z}, False, 0.30),
    "a class in place of logits": ({"after": lambda z: F.one_hot(z.argmax(1), 10).float()}, False, 0.30),
    "staircase of 24 levels": ({"before": stairs}, False, 0.30),
    "noise left on": ({"before": lambda x: x + 0.1 * torch.randn_like(x)}, True, 0.30),
    "saturated gate on every pixel": ({"before": lambda x: x * torch.sigmoid(1e6 * (x - 0.5))}, True, 0.55),
}


@pytest.mark.parametrize("name", FAKES)
def test_a_planted_fake_defence_falls(name, monkeypatch):
    for group in ("indicators", "binarization"):  # they break no image
        monkeypatch.setitem(GROUPS, group, lambda context, details: [])
    done, trained, bound = FAKES[name]
    net, x, y = fit(**done) if trained else fit()
    result = audit(Wrapped(net, **done), x, y, EPS)
    assert accuracy(result.clean) > 0.8 and accuracy(result.worst_case) < bound
    assert result.randomised == (name == "noise left on")


def test_what_a_scaled_network_and_a_staircase_show_beside_their_accuracy(natural, brisk):
    net, x, y = natural
    results = {"honest": audit(net, x, y, EPS)}
    results["scaled"] = audit(Wrapped(net, after=lambda z: 1 / (1 + (-5000 * z).exp())), x, y, EPS)
    results["stairs"] = audit(Wrapped(net, before=stairs), x, y, EPS)
    for name, result in results.items():
        assert (result.indicators["unavailable_gradients"] > 0.5) == (name != "honest")
        assert result.checks["pgd_above_autoattack"] == (name != "honest")
        assert not result.checks["batch_dependent"] and not result.checks["changed"]
        assert (result.binarization["pgd20"] > 0.9) == (name == "honest")
        assert result.binarization["random-noise"] == 0
        left_out = {"bpda", "mask", "noise", "latent/joint", "transfer/m1", "transfer/r0", "transfer/surrogate"}
        left_out |= {"latent/output"} if name != "scaled" else set()  # nothing behind the last layer
        assert result.not_applicable.keys() == left_out and not left_out & result.groups.keys()
        assert result.indicators["transfer_failure"] is None


def test_an_honest_defence_stays_as_robust_as_it_is(brisk):
    result = audit(*fit(robust=True), EPS)
    assert accuracy(result.worst_case) > 0.4
    assert accuracy(result.authors_protocol) - accuracy(result.worst_case) < 0.1
    assert result.indicators["unavailable_gradients"] == 0 and result.indicators["unbounded_attack_fails"] == 0
    assert not result.randomised and not result.flags["zero_gradient"] and not any(result.checks.values())


@pytest.fixture
def fsr():
    """An untrained FSR network with BatchNorm statistics of its own, in training mode."""
    model = build_model("resnet18", 10, FSRSpec(at=("layer2",), hidden=8), width=4, blocks=(1, 1, 1, 1))
    for _ in range(3):
        model(torch.rand(32, 3, 8, 8))
    return model


def test_fsr_gets_every_group_and_the_worst_case_is_all_of_them(fsr, brisk):
    x = torch.rand(12, 3, 8, 8)
    with torch.no_grad():
        y = copy.deepcopy(fsr).eval()(x).argmax(1)
    y[0] = (y[0] + 1) % 10  # one that is wrong from the start
    fsr.train()
    fsr.net.layer1.eval()  # a deliberately frozen part
    before, original, places = snapshot(fsr), x.clone(), (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    precision = [place.fp32_precision for place in places]
    result = audit(fsr, x, y, 0.02, surrogate=copy.deepcopy(fsr))
    assert snapshot(fsr) == before and torch.equal(x, original)
    assert precision == [place.fp32_precision for place in places]
    assert set(result.not_applicable) == {"latent/output"} and result.seconds.keys() == GROUPS.keys()
    assert list(result.groups) == [name for name in GROUPS if name not in ("protocol", "indicators", "binarization")]
    assert set(result.indicators) == set(NAMES) and None not in result.indicators.values()
    parts = [result.clean, *result.columns.values(), *result.attacks.values()]
    assert torch.equal(result.worst_case, torch.stack(parts).all(0))
    assert torch.equal(result.authors_protocol, torch.stack(list(result.columns.values())).all(0))
    assert not result.clean[0] and result.clean[1:].all() and not result.worst_case[0]
    for name, saved in result.groups.items():
        attacks = [v for k, v in result.attacks.items() if k.startswith(f"{name}/")]
        assert saved.dtype == torch.bool and torch.equal(saved, torch.stack(attacks).all(0))
    assert {"transfer/m1", "transfer/r0", "transfer/surrogate", "noise/eot"} <= result.attacks.keys()
    assert {"pgd20", "square", "autoattack/standard", "bpda/apgd-ce", "queries/nes"} <= result.binarization.keys()


class Late(nn.Module):
    """FSR at two places that run in another order than they are registered."""

    def __init__(self):
        super().__init__()
        self.second, self.first, self.last = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.second(self.first(x)).mean((2, 3)))


def test_masks_are_frozen_at_their_own_values_in_whatever_order_modules_run(natural):
    net, x, held = attach_fsr(Late(), ("first", "second"), 10).eval(), natural[1][:4], list[list]()
    context = Context(model=net, x=x, y=natural[2][:4], eps=EPS, seed=0, budget=BRISK)
    context.climb = lambda *_, intervention=(), **__: held.append(intervention) or (lambda x, y, rows: x)
    dict(GROUPS["mask"](context, {}))["frozen"](x, context.y, torch.arange(4))
    free = net(x), net(1 - x)
    with switched(net, intervention=held[-1]):
        assert torch.equal(net(x), free[0]) and not torch.equal(net(1 - x), free[1])


def test_a_stopped_audit_goes_on_and_ends_as_if_never_stopped(natural, brisk):
    net, x, y = natural[0], natural[1][:20], natural[2][:20]
    saved: dict[str, dict] = {}

    def stop_after_four(name, record):
        saved[name] = json.loads(json.dumps(record))
        if len(saved) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(net, x, y, EPS, on_group=stop_after_four)
    later: list[str] = []
    resumed = audit(net, x, y, EPS, done=saved, on_group=lambda name, _: later.append(name))
    assert later == list(GROUPS)[4:]
    # records of other images, or of another function of the same weights, are not used: the first group is made again
    coarse = type("Coarse", (nn.Sequential,), {"forward": lambda self, x: nn.Sequential.forward(self, stairs(x / 8))})
    for other, images in ((net, x.flip(3)), (coarse(*net), x)):
        with pytest.raises(ZeroDivisionError):
            audit(other, images, y, EPS, done=saved, on_group=lambda name, _: 1 / (name != "protocol"))
    whole = audit(net, x, y, EPS)
    for part in ("columns", "groups", "attacks"):
        again, expected = getattr(resumed, part), getattr(whole, part)
        assert again.keys() == expected.keys() and all(torch.equal(again[name], expected[name]) for name in expected)
    for part in ("indicators", "flags", "checks", "binarization", "not_applicable", "details"):
        assert getattr(whole, part) == getattr(resumed, part)


# beside what tests of attacks give it
REFUSED = [{"x": torch.zeros(0, 3, 8, 8), "y": torch.zeros(0, dtype=torch.long)}, {"eps": 0.0}, {"budget": "huge"}]
REFUSED += [{"model": lambda x: x}, {"model": nn.Flatten(0)}]
REFUSED += [{"model": nn.ModuleDict({"a": type("Locked", (nn.Flatten,), {"__deepcopy__": lambda *_: 1 / 0})()})}]
KNOWN = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
KNOWN.register_forward_hook(lambda module, _, z: z if module is KNOWN else -z)
ITSELF = type("Itself", (nn.Sequential,), {"__deepcopy__": lambda self, _: self})(*KNOWN)
REFUSED += [{"seed": 0.5}, {"model": KNOWN}, {"model": ITSELF}]
REFUSED += [{"model": Wrapped(KNOWN[1:], lambda x: checkpoint(nn.Flatten(), x, use_reentrant=True))}]
REFUSED += [{"model": Wrapped(KNOWN, after=lambda z: z.exp_().div_(z.sum(1, keepdim=True)))}]  # torch cannot undo it


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_audited_is_refused(change):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    given = {"model": model, "x": torch.rand(4, 3, 8, 8), "y": torch.arange(4), "eps": 0.1, "budget": "quick"}
    with pytest.raises(UsageError):
        audit(**{**given, **change})
    assert ITSELF.training and ITSELF[1].weight.requires_grad


def hooked(net):
    net[0].register_forward_pre_hook(lambda module, given: (0.9 * given[0],))
    return net


def patched(net):  # its copies go on to call this network itself, which is in training mode
    own = net.forward
    net.forward = lambda x: own(x)
    return net.train()


SAME = {  # two networks that decide alike
    "a closure": (patched, lambda x: x),
    "eval gives nothing": (lambda net: type("Quiet", (Wrapped,), {"eval": lambda self: None})(net), lambda x: x),
    "writes into its input": (lambda net: Wrapped(net, lambda x: x.clamp_(0, 1).mul_(0.9)), lambda x: 0.9 * x),
    "minus infinity": (lambda net: Wrapped(net, after=lambda z: F.pad(z, (0, 2), value=-torch.inf)), lambda x: x),
    "double precision": (nn.Module.double, lambda x: x),
    "a hook": (hooked, lambda x: 0.9 * x),
    "a compiled part": (lambda net: Wrapped(torch.compile(net, backend="eager")), lambda x: x),
}


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_decision_changes_no_verdict(natural, brisk, name):
    net, x, y = natural[0], natural[1][:30], natural[2][:30]
    change, before = SAME[name]
    plain = audit(Wrapped(net, before), x, y, 0.05)
    torch.set_default_dtype(torch.float64)
    model = change(copy.deepcopy(net))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        other = audit(model, x.clone(), y, 0.05)
        assert binarization_test(net, ATTACKS["pgd20"], x[:4], EPS) > 0.7
    assert torch.get_default_dtype() == torch.float64
    assert torch.equal(other.clean, plain.clean) and 0.5 < accuracy(plain.worst_case) < 0.95
    for part in ("authors_protocol", "worst_case"):
        assert (getattr(other, part) != getattr(plain, part)).sum() <= 1
    assert other.indicators["unavailable_gradients"] == 0
    assert other.binarization.keys() == plain.binarization.keys() or name != "a compiled part"


def draws(margin):
    """Three classes of which 0 is ahead of 1 by `margin` of an image, in one of four draws the other way round."""

    def logits(x):
        ahead = torch.where(torch.rand(len(x)) < 0.25, -1, 1) * margin(x)
        return torch.stack([ahead, -ahead, torch.full_like(ahead, -99.0)], dim=1)

    return Wrapped(nn.Identity(), logits)


def slope(height):
    """Logits of three classes by the mean's distance d from grey in units of EPS: 0, height(d), -9; right while < 0."""

    def logits(x):
        d = (x.mean((1, 2, 3)) - 0.5) / EPS
        return torch.stack([torch.zeros_like(d), height(d), torch.full_like(d, -9.0)], dim=1)

    return Wrapped(nn.Identity(), logits)


def context_of(model, x, y=None, **changes):
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    return Context(**{"model": model, "x": x, "y": y, "eps": 0.02, "seed": 0, "budget": BRISK, **changes})


def grey(n, level=0.5):
    return torch.full((n, 3, 4, 4), level)


def test_one_unlucky_draw_breaks_no_image_and_ends_no_attack():
    coin = draws(lambda x: torch.full((len(x),), 5.0))
    context = context_of(coin, grey(200), budget={**BRISK, "draws": 20})
    assert context.randomised and (coin(grey(200)).argmax(1) == 0).float().mean() < 0.9
    assert accuracy(context.clean) > 0.95  # P(at most half of 20 draws right) is 0.014
    assert run_group("indicators", context)["details"]["silent_success"] == 0
    # every image can be broken for good; an attack that took one wrong draw for a success would leave a quarter
    context = context_of(draws(lambda x: 100 * (x.mean((1, 2, 3)) - 0.5)), grey(200, 0.55), eps=0.1)
    left = run_group("restarts", context)["attacks"]
    assert accuracy(np.all([*left.values()], axis=0)) < 0.15
    assert accuracy(run_group("noise", context)["attacks"]["eot"]) < 0.3  # judged by 8 draws


def test_the_noise_group_switches_the_training_noise_on(fsr, monkeypatch):
    seen, mask = [], FSR.mask
    monkeypatch.setattr(FSR, "mask", lambda self, *a: seen.append(self.noise) or mask(self, *a))
    x, model = torch.rand(4, 3, 8, 8), fsr.eval().requires_grad_(False)
    context = context_of(model, x, model(x).argmax(1))
    seen.clear()
    record = run_group("noise", context)
    assert seen.count(True) > 50 > seen.count(None) > 0 and not context.randomised  # judged without it
    assert record["attacks"].keys() == {"eot"}
    assert 0 <= record["details"]["noisy_accuracy"] <= 1


@pytest.mark.parametrize("random", [False, True])
def test_fsr_behind_numpy_is_attacked_without_an_exception(fsr, brisk, random):
    def before(x):
        noise = 0.2 * torch.rand_like(x).numpy() if random else 0.0
        return torch.from_numpy(np.clip(x.numpy() + noise, 0, 1))

    model, x = Wrapped(fsr.eval().requires_grad_(False), before=before), torch.rand(6, 3, 8, 8)
    result = audit(model, x, model(x).argmax(1), 0.02)
    assert result.randomised == random and len(result.groups) == 8 and not result.checks["changed"]


HEIGHTS = [
    (lambda d: d - 0.5, {}),  # honest and breakable
    (lambda d: 0 * d - 1, {"unavailable_gradients": 1, "unbounded_attack_fails": 1}),  # flat
    (lambda d: 0 * d + 1, dict.fromkeys(NAMES)),  # never right
    (lambda d: d / 2 - 1, {}),  # honest and robust: only more than EPS breaks it
    # rises to the ball's end without an error there, and has a narrow peak where the fourth step lands
    (lambda d: d - 1.5 + 3 * torch.exp(-(((d - 0.4) / 0.02) ** 2)), {"silent_success": 1}),
]


@pytest.mark.parametrize("height, expected", HEIGHTS)
def test_indicators_of_functions_with_known_failures(height, expected):
    outcome = run_group("indicators", context_of(slope(height), grey(4), eps=EPS))["details"]
    assert outcome == {name: expected.get(name, 0) for name in NAMES} | {"transfer_failure": None}


@pytest.mark.parametrize("share, expected", [(-0.01, 1.0), (0.0, 0.0)])
def test_optimisation_is_incomplete_where_the_last_tenth_of_the_steps_brings_more(share, expected, monkeypatch):
    """Ten steps reach the ball's end, the last tenth brings nothing: no share of the gain, which is more than -1 %."""
    monkeypatch.setattr(proofs, "INCOMPLETE", share)
    record = run_group("indicators", context_of(slope(lambda d: 0.9 * d - 1), grey(4), eps=EPS))
    assert record["details"]["incomplete_optimisation"] == expected


def test_two_classes_and_grey_images_are_audited_too(brisk):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    x = 0.4 + 0.2 * torch.rand(8, 1, 4, 4)  # no pixel reaches 0 or 1 within 0.3
    with torch.no_grad():
        z, w = model(x), model[1].weight
    result = audit(model, x, z.argmax(1), 0.3)
    assert torch.equal(result.worst_case, (z[:, 1] - z[:, 0]).abs() > 0.3 * (w[1] - w[0]).abs().sum())


def test_an_attack_that_stopped_at_the_coarse_network_goes_on_at_the_exact_one(fsr):
    """As on a GPU, where crafting may be coarser than judging: what only the coarse network errs on is attacked on."""
    context, given = context_of(fsr.eval(), torch.rand(8, 3, 8, 8)), []

    def craft(images, labels, rows):
        given.append(rows.tolist())
        return images

    context.clean = torch.ones(8, dtype=torch.bool)
    context.correct = lambda x_adv, rows: torch.full((len(rows),), len(given) < 2)  # the second attack breaks all
    context.reference = lambda x: F.one_hot((torch.arange(8) == 2).long(), 10).float()  # coarsely wrong on one
    saved = context.run([("any", craft)])["any"]
    assert given == [list(range(8)), [2]] and saved.tolist() == [i != 2 for i in range(8)]


def test_an_attack_that_leaves_the_network_changed_is_named(natural, brisk, monkeypatch):
    net, x, y = natural

    def careless(context, details):
        context.model.train()
        next(context.model.buffers()).add_(1)
        context.model[0].register_forward_hook(lambda *_: None)
        np.random.random()
        return []

    monkeypatch.setitem(GROUPS, "restarts", careless)
    checks = audit(net, x[:6], y[:6], EPS).checks
    what = ("train mode", "weights and buffers", "hooks", "random state")
    assert checks["changed"][:4] == [f"restarts: {name}" for name in what] and checks["answers_change"]


def test_networks_that_look_at_the_whole_batch_or_differ_when_compiled_are_named():
    x, eager = torch.rand(8, 3, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    centred = Wrapped(eager, before=lambda x: x - x.mean(0))
    assert cheap_checks(centred, context_of(centred, x))["batch_dependent"]
    noisy = Wrapped(centred, before=lambda x: x + 0.1 * torch.randn_like(x))
    assert cheap_checks(noisy, context_of(noisy, x))["batch_dependent"] is None  # not measured
    for factor in (1.0, 1.1):
        compiled = Wrapped(eager, before=lambda x, factor=factor: factor * x)
        compiled._orig_mod = eager
        outcome = cheap_checks(compiled, context_of(eager, x))
        assert outcome == {"batch_dependent": False, "compiled_differs": factor != 1, "gradients_change_it": False}
    other = Wrapped(eager, before=lambda x: (1 + torch.is_grad_enabled()) * x)
    assert cheap_checks(other, context_of(other, x))["gradients_change_it"]


@pytest.mark.parametrize("far", [lambda z: z, lambda z: z + 1e5, lambda z: F.pad(z, (0, 1), value=-1e5)])
def test_answers_that_differ_are_told_whatever_else_is_far_away(far):
    z = torch.tensor([[1.0, 0.0, 0.5, 0.2]])
    assert differs(far(z), far(z[:, [1, 0, 2, 3]])) and not differs(far(z), far(z + 1e-6))


def walk(steps=20, sign=1, before=lambda net: net):
    """PGD of steps of 0.1 eps, as it is or deliberately weakened."""
    how = {"steps": steps, "loss": lambda *given: sign * cross_entropy(*given)}
    return lambda net, x, y, eps: pgd(before(net), x, y, eps=eps, **how)


WEAK = {
    "one step": walk(steps=1),
    "wrong sign": walk(sign=-1),
    "detached gradient": walk(before=lambda net: lambda x: net(x.detach())),
    "random noise": ATTACKS["random-noise"],
    "a tenth of the ball": lambda net, x, y, eps: walk()(net, x, y, eps / 10),
    "the image itself": lambda net, x, y, eps: x,
    "wrong labels": lambda net, x, y, eps: walk()(net, x, 1 - y, eps),
}


def test_the_binarization_test_passes_attacks_and_fails_weakened_ones(natural):
    net, x, _ = natural
    for name in ("pgd20", "cw", "apgd-ce"):
        assert binarization_test(net, ATTACKS[name], x[:10], EPS) > 0.9, name
    assert binarization_test(net, ATTACKS["square"], x[:10], EPS, closeness=0.5) > 0.9
    for name, attack in WEAK.items():
        assert binarization_test(net, attack, x[:10], EPS) < 0.2, name
    assert binarization_test(Wrapped(net, before=stairs), walk(), x[:10], EPS) < 0.2  # the network hides its slopes
    other = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    for model, images, eps in ((net, x[:0], EPS), (other, x[:2], EPS), (net, x[:2], 8)):
        with pytest.raises(UsageError):  # no image, no last linear layer, not a fraction
            binarization_test(model, walk(), images, eps)
