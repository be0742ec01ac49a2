"""The folded copy computes the live network's function, or is not used; the live network is left alone."""

from functools import partial

import pytest
import torch
from test_fast import RUNS, network
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from fsr.models import FSR, intervene
from fsr.train.fast import FastNet
from fsr.train.fold import folded_copy, randomised_statistics


def test_folding_is_the_closed_form():
    conv, bn = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=1.0)
    values = {conv.weight: 2, bn.running_mean: 3, bn.running_var: 3, bn.weight: 5, bn.bias: 7}
    with torch.no_grad():
        for tensor, value in values.items():
            tensor.fill_(value)
    net = folded_copy(nn.Sequential(conv, bn), torch.rand(1, 1, 1, 1)).net
    assert (float(net[0].weight), float(net[0].bias)) == (2 * 5 / 2, 7 - 3 * 5 / 2)  # (2 x - 3) / sqrt(3 + 1) * 5 + 7
    assert isinstance(net[1], nn.Identity)


def test_refill_takes_over_the_weights_of_any_source_in_place():
    model, average, x = network(RUNS["wrn"]).eval(), network(RUNS["wrn"]).eval(), torch.rand(2, 3, 8, 8)
    folded = folded_copy(model, x)
    places, before = [t.data_ptr() for t in folded.net.state_dict().values()], folded.net(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.3)
    assert not torch.allclose(folded.net(x), model(x), rtol=1e-3)
    torch.testing.assert_close(folded.net(x), before)
    for source in (model, average, model):
        folded.refill(source)
        torch.testing.assert_close(folded.net(x), source(x), rtol=1e-4, atol=1e-3)
    assert places == [t.data_ptr() for t in folded.net.state_dict().values()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["at+fsr", "at+fsr hard", "at+cas", "at+cifs", "at+fd"])
def test_a_bf16_copy_is_close_and_keeps_mask_and_logits_in_float32(name, channels_last):
    model, x = network(RUNS[name]).eval(), torch.rand(4, 3, 8, 8)
    net = folded_copy(model, x, dtype=torch.bfloat16, channels_last=channels_last).net
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


# --- networks whose copy may be another function ----------------------------------------------------------------


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


def changed(change=lambda net: None, **methods):
    """A Small with other methods, after a change that is made to it."""
    net = type("Changed", (Small,), methods)()
    change(net)
    return net


def reads_statistics(self, x):
    bn = self.bn
    return F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias).relu()


def reads_twice(self, x):
    raw = self.conv(x)
    return self.bn(raw) + raw


def calls_twice(self, x):
    f = self.features(x)
    for _ in range(2):
        f = self.last_bn(self.last(f)).relu()
    return self.head(f.mean((2, 3)))


def writes(self, x):
    x -= 0.5
    return Small.forward(self, x.clamp_(-0.4, 0.4))


def ties(net):
    net.again = nn.Conv2d(6, 6, 3, padding=1)
    net.again.weight = net.last.weight


def closes_over(net):
    net.features = lambda x: net.bn(net.conv(x)).relu()  # copies of the network go on to ask the live layers


def normed(norm):
    def change(net):
        for name in ("conv", "last", "head"):
            setattr(net, name, norm(getattr(net, name)))

    return change


def hooked(name, register, hook):
    return lambda net: getattr(net.get_submodule(name), register)(hook)


PRE = "register_forward_pre_hook", lambda module, given: ((given[0] - 0.5) / 0.25,)
POST = "register_forward_hook", lambda module, given, out: 2 * out + 1
LAYERS = ("", "conv", "bn", "last", "last_bn", "head")
NORMS = {f"new {norm}": getattr(parametrizations, norm) for norm in ("weight_norm", "spectral_norm", "orthogonal")}
NORMS |= {"old weight_norm": old_weight_norm, "old spectral_norm": old_spectral_norm}
CHANGES = {
    **{
        f"{hook[0]} on {name or 'it'}": partial(changed, hooked(name, *hook)) for name in LAYERS for hook in (PRE, POST)
    },
    **{name: partial(changed, normed(norm)) for name, norm in NORMS.items()},
    "a layer under two names": partial(changed, lambda net: setattr(net, "also", net.conv)),
    "a closure over live layers": partial(changed, closes_over),
    "tied": partial(changed, ties, features=lambda self, x: self.again(Small.features(self, x))),
    "reads statistics": partial(changed, features=reads_statistics),
    "reads weights": partial(
        changed, features=lambda self, x: Small.features(self, x) + F.conv2d(x, self.conv.weight, padding=1)
    ),
    "read twice": partial(changed, features=reads_twice),
    "called twice": partial(changed, forward=calls_twice),
    "in place between": partial(changed, features=lambda self, x: self.bn(self.conv(x).relu_())),
    "writes into its input": partial(changed, forward=writes),
    "casts": partial(changed, forward=lambda self, x: Small.forward(self, x.float())),
    "fixed batch": partial(changed, forward=lambda self, x: Small.forward(self, x.view(4, 3, 8, 8))),
}
WHOLE = ("tied", "reads statistics", "a layer under", "new weight_norm", "in place between", "writes into")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_attacks_see_the_function_of_any_network(name, precision, monkeypatch, caplog):
    """Logits and input gradients are the network's own, from a copy or, with one line in the log, from itself."""
    monkeypatch.setattr("fsr.train.fold.bf16_is_fast", lambda: True)
    model, x, found = randomised_statistics(CHANGES[name]()).eval(), torch.rand(4, 3, 8, 8), []
    model(x.clone())  # old norms make their weights in a forward pass
    before, net = x.clone(), FastNet(model, precision)
    for function in (net, lambda x: model(x.clone())):
        leaf = x.clone().requires_grad_()
        logits = function(leaf)
        found.append((logits.detach(), torch.autograd.grad(F.cross_entropy(logits, torch.arange(4)), leaf)[0]))
        assert torch.equal(leaf, before)
    for ours, own in zip(*found):
        assert (ours - own).norm() <= (0.3 if net.dtype == torch.bfloat16 else 1e-4) * own.norm()
    assert (net.net is model) == ("on the network itself" in caplog.text)
    assert net.net is model or name != "a closure over live layers"  # whose mode and weights are another's
    assert net.net is not model or precision == "bf16" or not name.startswith(WHOLE)
