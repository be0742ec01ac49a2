"""Folded copies, fast crafting and updating give what the plain definitions give, and leave the live network alone."""

import copy
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from test_objectives import crafted
from tiny import Wrapped
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from fsr.config import FSRSpec, PeerSpec, Run, replace
from fsr.hardware import quick_float32
from fsr.models import FSR, intervene, model_of
from fsr.models.modes import eval_mode
from fsr.train import fast, fold
from fsr.train.fast import Crafter, FastNet
from fsr.train.fold import folded_copy, randomised_statistics
from fsr.train.objectives import PAIRS, Objective, Stepper

RESNET = {"backbone": "resnet18", "width": 8, "blocks": (1, 1, 1, 1), "eps": 0.1, "alpha": 0.03, "steps": 3, "batch": 8}
TINY = Run(**RESNET, precision="float32")
MODULES = {kind: FSRSpec(kind=kind) for kind in ("fsr", "separation", "residual", "aux")}
MODULES |= {"fsr hard": FSRSpec(mask="hard", granularity="spatial"), "fsr twice": FSRSpec(at=("layer2", "layer3"))}
MODULES |= {name: PeerSpec(name=name) for name in ("fd", "cas", "cifs")}
RUNS = {method: replace(TINY, method=method) for method in ("at", "natural", "trades", "mart")}
for name in (*(f"at+{name}" for name in MODULES), "trades+fsr", "mart+fsr", "trades+cas"):
    RUNS[name] = replace(RUNS[name.split("+")[0]], module=MODULES[name.split("+")[1]])
RUNS["vgg"] = replace(TINY, backbone="vgg16", width=4, blocks=None, module=FSRSpec())
RUNS["wrn"] = replace(TINY, backbone="wideresnet34", width=2, blocks=(1, 1, 1), module=FSRSpec())
LAYOUTS = (torch.contiguous_format, torch.channels_last)
OFF = {"compile": False, "channels_last": False, "graphs": False, "crafting": "float32"}
# Share of pixels whose sign may be a tie: near its start the KL loss is nearly flat.
TIES = {"natural": 0.0, "at": 2e-3, "mart": 2e-3, "trades": 2e-2}


def network(run: Run) -> nn.Module:
    """The run's network in training mode, with logits spread widely enough for a KL gradient above rounding."""
    model = randomised_statistics(model_of(run).requires_grad_(False))
    [m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight.mul_(20)
    return model.requires_grad_(True).train()


def images(n: int, size: int = 8):
    return torch.rand(n, 3, size, size), torch.arange(n) % 10


def differing(a, b) -> float:
    return float((~((a - b).abs() <= 1e-6)).float().mean())


def agree(x_adv, model, x, y, run, noise) -> bool:
    """Are these the images that plain crafting on the model makes, up to sign ties?"""
    with eval_mode(model):
        return differing(x_adv, crafted(model, x, y, run, noise=noise)) <= TIES[run.method]


@pytest.fixture
def bf16(monkeypatch):
    """bf16 on any processor: slow on some, and the same."""
    monkeypatch.setattr(fold, "BF16_UNITS", True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_folded_crafting_equals_plain_crafting_and_leaves_the_network_alone(run, channels_last):
    """On the live network, and with another number of images on its average."""
    model, average, (x, y) = network(run), network(run), images(19)
    noise = torch.rand_like(x) * (50 if run.method in PAIRS else 1)  # away from the start, where KL is flat
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    crafter = Crafter(model, run, layout=LAYOUTS[channels_last])
    x_adv = crafter.craft(x[:8], y[:8], noise=noise[:8])
    plain = replace(run, method="at") if run.method == "natural" else run
    assert agree(x_adv, model, x[:8], y[:8], plain, noise[:8])
    assert agree(crafter.craft(x, y, source=average, noise=noise), average, x, y, plain, noise)
    assert crafter.copy is not None and torch.equal(torch.random.get_rng_state(), state)
    assert differing(x_adv, x[:8]) > 0.5
    assert x_adv.dtype == torch.float32 and not x_adv.requires_grad
    assert (x_adv - x[:8]).abs().max() <= run.eps + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Compiled(nn.Module):
    """As torch.compile gives it since 2.14: a module without a truth value, as it has no length."""

    def __init__(self, graph, change=lambda out: out):
        super().__init__()
        self.graph, self.change, self.sizes = graph, change, []

    def forward(self, *tensors):
        self.sizes.append(len(tensors[0]))
        return self.change(self.graph(*tensors))

    def __len__(self):
        raise TypeError("object of type 'function' has no len()")

    __bool__ = __len__


def test_folding_is_the_closed_form():
    conv, bn = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=1.0)
    values = {conv.weight: 2, bn.running_mean: 3, bn.running_var: 3, bn.weight: 5, bn.bias: 7}
    with torch.no_grad():
        for tensor, value in values.items():
            tensor.fill_(value)
    net = folded_copy(nn.Sequential(conv, bn), torch.rand(1, 1, 1, 1)).net
    assert (float(net[0].weight), float(net[0].bias)) == (2 * 5 / 2, 7 - 3 * 5 / 2)  # (2 x - 3) / sqrt(3 + 1) * 5 + 7
    assert isinstance(net[1], nn.Identity)


@pytest.mark.parametrize("name", ["trades+fsr", "at+cifs"])
def test_traced_steps_get_whole_batches_and_follow_weights_that_change(monkeypatch, name):
    """What would be compiled is run as it was traced. An odd last batch is crafted on the plain copy."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: made.append(Compiled(graph)) or made[-1])
    run, (x, y) = RUNS[name], images(21)
    model, noise = network(run), torch.randn(21, 3, 8, 8)
    crafter = Crafter(model, run, compile=True)
    crafter.craft(*images(8))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
    x_adv = crafter.craft(x, y, noise=noise)
    assert set(made[0].sizes) == {run.batch} and x_adv.shape == x.shape and crafter.switches["compile"] is True
    assert agree(x_adv, model, x, y, run, noise)


WRONG = {
    "no compiler here": Mock(side_effect=RuntimeError("no compiler here")),
    "differ": lambda graph, **_: Compiled(graph, lambda out: out + 1),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_compile_or_disagrees_is_left_out_and_logged(monkeypatch, caplog, said):
    monkeypatch.setattr(torch, "compile", WRONG[said])
    run, (x, y) = TINY, images(8)
    model, noise = network(run), torch.rand_like(x)
    crafter = Crafter(model, run, compile=True)
    assert agree(crafter.craft(x, y, noise=noise), model, x, y, run, noise)
    assert said in caplog.text and crafter.switches["compile"] is False
    caplog.clear()
    logits = FastNet(model.eval(), x, compile=True)(x)
    assert said in caplog.text
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["at", "trades"])
def test_a_network_that_cannot_be_copied_is_crafted_on_itself(caplog, method):
    """A hook that folding would change; the running average, with its own, is attacked itself as well."""
    run, (x, y) = replace(TINY, method=method), images(19)
    model, average, noise = network(run), network(run), torch.rand_like(x)
    for net in (model, average):
        net.net.layer1[0].conv1.register_forward_hook(lambda _m, _x, out: 2 * out + 1)
    crafter = Crafter(model, run, compile=True)
    for source in (model, average):
        assert agree(crafter.craft(x, y, source=source, noise=noise), source, x, y, run, noise)
    assert all(m.training for m in model.modules())
    assert caplog.text.count("crafted on the network itself") == 1 and crafter.copy is None
    assert crafter.switches == OFF


@pytest.mark.slow
@pytest.mark.parametrize("name", ["at+fsr", "trades", "at+cas"])
def test_compiled_crafting_equals_plain_crafting(name):
    run, (x, y) = RUNS[name], images(13)
    model, noise = network(run), torch.rand_like(x)
    crafter = Crafter(model, run, compile=True)
    assert agree(crafter.craft(x, y, noise=noise), model, x, y, run, noise)
    assert crafter.switches["compile"] is True


def test_the_first_step_on_kl_is_exact_float32_and_no_other(monkeypatch, bf16):
    """bf16 rounding, and on a GPU TensorFloat-32, would drown it; a CPU only shows the latter's switch."""
    run, seen, plain, (x, y) = replace(RUNS["trades"], precision="bf16"), [], fast.craft, images(8)
    model, noise = network(run), torch.randn(8, 3, 8, 8)
    crafter = Crafter(model, run)

    def noting(net, *rest, steps, **more):
        seen.append((net is model, torch.backends.cudnn.conv.fp32_precision == "ieee", steps))
        return plain(net, *rest, steps=steps, **more)

    monkeypatch.setattr(fast, "craft", noting)
    with quick_float32():
        crafter.craft(x, y)
    assert seen == [(True, True, 1), (False, False, run.steps - 1)]
    one = replace(run, steps=1)
    assert agree(Crafter(model, one).craft(x, y, noise=noise), model, x, y, one, noise)


def test_bf16_update_keeps_weights_and_losses_in_float32(bf16):
    run, (x, y), seen = replace(RUNS["mart+fsr"], precision="bf16"), images(8), {}
    model = network(run)
    stepper = Stepper(Objective(model, run), run)
    stepper.bare.register_forward_hook(lambda _m, _i, out: seen.update(out[0]))
    model.net.conv1.register_forward_hook(lambda _m, _i, out: seen.update(conv=out))
    stepper.step(x, x, y)
    assert seen.pop("conv").dtype == torch.bfloat16
    assert {t.dtype for t in (*seen.values(), *model.parameters())} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_weight_perturbation_is_seen_by_the_gradient_and_taken_off(precision, bf16):
    run, (x, y) = replace(TINY, awp=0.5, precision=precision), images(8)
    start, moved = network(run), []
    for awp in (False, True):
        model = copy.deepcopy(start)
        Stepper(Objective(model, run), run).step(x, x, y, awp=awp)
        moved.append(torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), start.parameters())]))
    assert float(F.cosine_similarity(*moved, dim=0).detach()) < 0.99  # autocast's cache would make them equal
    assert float(moved[1].norm()) < 10 * float(moved[0].norm())  # half of each weight, were it still on


def test_tally_is_the_mean_over_images_of_ragged_batches():
    run, batches, expected = replace(RUNS["at+fsr"], lr=1e-9), [images(8), images(3)], {}
    model = network(run)
    stepper = Stepper(Objective(model, run), run)
    for x, y in batches:
        torch.manual_seed(0)
        parts, logits = stepper.bare(x, x, y)
        values = {**parts, "total": stepper.bare.total(parts), "adv_acc": (logits.argmax(1) == y).double().mean()}
        for name, value in values.items():
            expected[name] = expected.get(name, 0) + value.item() * len(y) / 11
        torch.manual_seed(0)
        stepper.step(x, x, y)
    assert stepper.tally() == pytest.approx(expected, rel=1e-4) and stepper.sums == {}


INDUCTOR = pytest.param("at+fsr", "inductor", marks=pytest.mark.slow)  # needs a C++ compiler
NETS = [("at+fsr", ""), ("at+cifs", ""), ("wrn", ""), ("at+fsr", "aot_eager"), INDUCTOR]


@pytest.mark.parametrize("name, backend", NETS)
def test_fast_net_has_the_models_logits_and_input_gradients_for_any_batch_size(monkeypatch, name, backend):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = network(RUNS[name]).eval()
    net = FastNet(model, images(8)[0], compile=bool(backend))
    for n in (8, 5, 1, 3):
        (x, y), gradients = images(n), []
        for function in (model, net):
            leaf = x.clone().requires_grad_()
            gradients.append(torch.autograd.grad(F.cross_entropy(function(leaf), y), leaf)[0])
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(net.trace(x)[0], model.trace(x)[0], rtol=1e-4, atol=1e-4)
    assert net.net is not model and (net._fast not in (net.net, net.net.__call__)) == bool(backend)


def test_a_network_that_views_its_maps_gets_them_contiguous():
    model, x = Wrapped(nn.Conv2d(3, 16, 3), after=lambda f: f.view(len(f), -1)[:, :10]).eval(), torch.rand(4, 3, 8, 8)
    net = FastNet(model, x, compile=False)
    torch.testing.assert_close(net(x), model(x))
    assert net.layout == LAYOUTS[0] and fold.layout_of(model, x.device) == LAYOUTS[1]
    strides = Wrapped(nn.Conv2d(3, 16, 3), lambda x: torch.as_strided(x, x.shape, (192, 64, 8, 1)))
    assert fold.layout_of(strides, x.device, x) == LAYOUTS[0]


def test_nothing_is_folded_where_other_images_may_take_another_way():
    conv, norms = nn.Conv2d(3, 4, 1), nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
    net = Wrapped(nn.Sequential(conv, norms, nn.Flatten()))
    net.forward = lambda x: norms[int(x.mean() > 0.5)](conv(x)).flatten(1)
    assert fold.feeding_convolutions(net.eval(), torch.zeros(2, 3, 2, 2)) == {}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["at+fsr", "at+fsr hard", "at+cas", "at+cifs", "at+fd"])
def test_a_bf16_copy_is_close_and_keeps_mask_and_logits_in_float32(name, channels_last):
    model, x = network(RUNS[name]).eval(), torch.rand(4, 3, 8, 8)
    net = folded_copy(model, x, torch.bfloat16, LAYOUTS[channels_last]).net
    logits = net(x)
    assert logits.dtype == torch.float32
    assert {m.weight.dtype for m in net.modules() if isinstance(m, nn.Conv2d)} == {torch.bfloat16}
    assert {m.weight.dtype for m in net.modules() if isinstance(m, nn.Linear)} == {torch.float32}
    if name != "at+fsr hard":  # a mask of 0 and 1 flips with its score's sign
        torch.testing.assert_close(logits, model(x), rtol=0.1, atol=0.1 * model(x).abs().max().item())
    for part in (m for m in net.modules() if isinstance(m, FSR)):
        assert part.mask(torch.rand(2, part.aux.in_features, 1, 1).bfloat16()).dtype == torch.float32


def test_unknown_parameters_keep_everything_in_float32():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2))
    assert folded_copy(model, torch.rand(2, 3, 2, 2), dtype=torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("name", ["mask_one", "no_recalibration", "mask_random", "mask_constant", "mask_shuffled"])
def test_the_copy_acts_under_the_intervention_it_was_made_with(name):
    model, x = network(RUNS["at+fsr"]).eval(), torch.rand(3, 3, 16, 16)
    plain = model(x)
    with intervene(model, name, seed=3):
        net, expected = folded_copy(model, x).net, model(x)
    torch.testing.assert_close(net(x), expected)
    assert not torch.allclose(plain, expected)


class Small(nn.Module):
    """Two convolutions with BatchNorm and a linear layer, to be changed in every way a copy may not notice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last, self.last_bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def features(self, x):
        return self.bn(self.conv(x)).relu()

    def forward(self, x):
        return self.head(self.last_bn(self.last(self.features(x))).relu().mean((2, 3)))


def reads_statistics(self, x):
    bn = self.bn
    return F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias).relu()


def calls_twice(self, x):
    f = self.features(x)
    for _ in range(2):
        f = self.last_bn(self.last(f)).relu()
    return self.head(f.mean((2, 3)))


def writes(self, x):
    x -= 0.5
    return Small.forward(self, x.clamp_(-0.4, 0.4))


def tie(net):
    net.again = nn.Conv2d(6, 6, 3, padding=1)
    net.again.weight = net.last.weight


def normed(norm, net):
    for name in ("conv", "last", "head"):
        setattr(net, name, norm(getattr(net, name)))


def hooked(layer, register, hook, net):
    getattr(net.get_submodule(layer), register)(hook)


HOOKS = {"pre": ("register_forward_pre_hook", lambda module, given: ((given[0] - 0.5) / 0.25,))}
HOOKS |= {"post": ("register_forward_hook", lambda module, given, out: 2 * out + 1)}
NORMS = {f"new {norm}": getattr(parametrizations, norm) for norm in ("weight_norm", "spectral_norm", "orthogonal")}
NORMS |= {"old weight_norm": old_weight_norm, "old spectral_norm": old_spectral_norm}
LAYERS = ("", "conv", "bn", "last", "last_bn", "head")
CHANGES = {
    "tied": tie,
    **{f"{name} {layer}": partial(hooked, layer, *hook) for name, hook in HOOKS.items() for layer in LAYERS},
    **{name: partial(normed, norm) for name, norm in NORMS.items()},
    "a layer under two names": lambda net: setattr(net, "also", net.conv),
    "a closure over live layers": lambda net: setattr(net, "features", lambda x: net.bn(net.conv(x)).relu()),
}
METHODS = {
    "tied": {"features": lambda self, x: self.again(Small.features(self, x))},
    "reads statistics": {"features": reads_statistics},
    "reads weights": {"features": lambda self, x: Small.features(self, x) + F.conv2d(x, self.conv.weight, padding=1)},
    "read twice": {"features": lambda self, x: self.bn(raw := self.conv(x)) + raw},
    "called twice": {"forward": calls_twice},
    "in place between": {"features": lambda self, x: self.bn(self.conv(x).relu_())},
    "writes into its input": {"forward": writes},
    "casts": {"forward": lambda self, x: Small.forward(self, x.float())},
    "a gate": {"features": lambda self, x: torch.where(x.mean((1, 2, 3), True) > 0.3, self.bn(f := self.conv(x)), f)},
    "fixed batch": {"forward": lambda self, x: Small.forward(self, x.view(4, 3, 8, 8))},
}
WHOLE = ("tied", "reads statistics", "a layer under", "new weight_norm", "in place between", "writes into")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", CHANGES | METHODS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_attacks_see_the_function_of_any_network(name, precision, monkeypatch, caplog):
    """Logits and input gradients are the network's own, from a copy or, with one line in the log, from itself."""
    monkeypatch.setattr("fsr.train.fold.BF16_UNITS", True)
    model, result = type("Changed", (Small,), METHODS.get(name, {}))(), []
    x = torch.rand(4, 3, 8, 8) * torch.tensor([1, 1, 0.2, 0.2]).view(4, 1, 1, 1)  # what only dark images do counts too
    if name in CHANGES:
        CHANGES[name](model)
    model = randomised_statistics(model).eval()
    model(x.clone())  # old norms make their weights in a forward pass
    before, net = x.clone(), FastNet(model, x, precision)
    for function in (net, lambda x: model(x.clone())):
        leaf = x.clone().requires_grad_()
        logits = function(leaf)
        result.append((logits.detach(), torch.autograd.grad(F.cross_entropy(logits, torch.arange(4)), leaf)[0]))
        assert torch.equal(leaf, before)
    for ours, own in zip(*result):
        assert (ours - own).norm() <= (0.3 if net.dtype == torch.bfloat16 else 1e-4) * own.norm()
    assert (net.net is model) == ("on the network itself" in caplog.text)
    assert net.net is model or name != "a closure over live layers"  # whose mode and weights are another's
    assert net.net is not model or precision == "bf16" or not name.startswith(WHOLE)
