"""The folded twin computes the live network's function, from the live weights, and leaves the live network alone."""

import copy
import logging

import pytest
import torch
from torch import nn

from fsr.config import FSRSpec, PeerSpec
from fsr.models import FSR, build_model, intervene
from fsr.train.fold import FoldedConv, FoldedLinear, ScaleShift, Twin, feeding_convolutions, randomised_statistics

MODULES = {
    "plain": {},
    **{kind: {"fsr": FSRSpec(kind=kind)} for kind in ("fsr", "separation", "residual", "aux")},
    "hard channel": {"fsr": FSRSpec(mask="hard", granularity="channel")},
    **{name: {"peer": PeerSpec(name=name)} for name in ("fd", "cas", "cifs")},
}
NETS = {
    "resnet18": {"width": 8, "blocks": (1, 1, 1, 1)},
    "vgg16": {"width": 4},
    "wideresnet34": {"width": 2, "blocks": (1, 1, 1)},
}


def network(backbone="resnet18", module="plain", **sizes) -> nn.Module:
    """A small network whose BatchNorms have statistics and weights of their own, in eval mode."""
    model = build_model(backbone, 10, **MODULES[module], **(sizes or NETS[backbone]))
    return randomised_statistics(model.requires_grad_(False)).eval().requires_grad_(True)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("backbone", NETS)
def test_twin_equals_the_live_network_in_eval_mode(backbone, module):
    model = network(backbone, module).double()
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    twin = Twin(model, x, dtype=torch.float64)
    assert twin.pairs
    torch.testing.assert_close(twin.net(x), model(x), rtol=1e-9, atol=1e-12)


def test_folding_is_the_closed_form():
    conv, bn = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=1.0)
    values = {conv.weight: 2, bn.running_mean: 3, bn.running_var: 3, bn.weight: 5, bn.bias: 7}
    with torch.no_grad():
        for tensor, value in values.items():
            tensor.fill_(value)
    twin = Twin(nn.Sequential(conv, bn), torch.rand(1, 1, 1, 1))
    assert float(twin.net[0].weight) == 2 * 5 / 2  # (2 x - 3) / sqrt(3 + 1) * 5 + 7
    assert float(twin.net[0].bias) == 7 - 3 * 5 / 2
    assert isinstance(twin.net[1], nn.Identity)


def test_every_batchnorm_of_a_resnet_folds_and_few_of_a_pre_activation_network():
    x = torch.rand(2, 3, 8, 8)
    resnet, wide = Twin(network("resnet18", "fsr"), x), Twin(network("wideresnet34", "fsr"), x)
    assert not [m for m in resnet.net.modules() if isinstance(m, ScaleShift | nn.BatchNorm2d)]
    kept = [name for name, m in wide.net.named_modules() if isinstance(m, ScaleShift)]
    assert kept == [f"net.{n}" for n in ("block2.0.bn1", "block3.submodule.0.bn1", "block3.submodule.bn")]


def test_refill_takes_over_live_weights_in_place():
    model = network("wideresnet34", "fsr")
    x = torch.rand(2, 3, 8, 8)
    twin = Twin(model, x)
    places = [t.data_ptr() for t in twin.net.state_dict().values()]
    before = twin.net(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.3)
    assert not torch.allclose(twin.net(x), model(x), rtol=1e-3)
    torch.testing.assert_close(twin.net(x), before)
    twin.refill(model)
    torch.testing.assert_close(twin.net(x), model(x))
    assert places == [t.data_ptr() for t in twin.net.state_dict().values()]


def test_refill_from_another_model_and_back():
    model, average = network(), network()
    x = torch.rand(2, 3, 8, 8)
    twin = Twin(model, x)
    for source in (average, model, average):
        twin.refill(source)
        torch.testing.assert_close(twin.net(x), source(x))


def test_live_network_and_random_state_are_left_alone():
    model = network("resnet18", "fsr").train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    Twin(model, torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


class ReadTwice(nn.Module):
    """Adds a convolution's raw output to its normalised one: folding that pair would be wrong."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.last, self.last_bn = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        raw = self.conv(x)
        return self.last_bn(self.last(self.bn(raw) + raw)).mean((2, 3))


class CalledTwice(nn.Module):
    """One convolution under two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x):
        for bn in self.bn:
            x = bn(self.conv(x))
        return x.mean((2, 3))


@pytest.mark.parametrize(("kind", "pairs"), [(ReadTwice, {"last_bn": "last"}), (CalledTwice, {})])
def test_only_pairs_without_other_readers_fold(kind, pairs):
    model, x = randomised_statistics(kind().requires_grad_(False)).eval(), torch.rand(3, 3, 4, 4)
    twin = Twin(model, x)
    assert twin.pairs == pairs
    torch.testing.assert_close(twin.net(x), model(x))


def test_found_pairs_of_a_convolution_read_twice_would_change_the_result():
    model = ReadTwice().eval()
    assert feeding_convolutions(model, torch.rand(1, 3, 4, 4)) == {"bn": "conv", "last_bn": "last"}


def test_batchnorm_without_stored_statistics_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
    twin = Twin(model, torch.rand(4, 3, 2, 2))
    assert isinstance(twin.net[1], nn.BatchNorm2d)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("module", ["fsr", "hard channel", "cas", "cifs", "fd"])
def test_bf16_twin_is_close_and_keeps_mask_and_logits_in_float32(module, channels_last):
    model = network("resnet18", module)
    x = torch.rand(4, 3, 8, 8)
    twin = Twin(model, x, dtype=torch.bfloat16, channels_last=channels_last)
    logits = twin.net(x)
    assert logits.dtype == torch.float32
    assert {m.weight.dtype for m in twin.net.modules() if isinstance(m, FoldedConv)} == {torch.bfloat16}
    assert {m.weight.dtype for m in twin.net.modules() if isinstance(m, FoldedLinear)} == {torch.float32}
    if module != "hard channel":  # a mask of 0 and 1 flips with its score's sign
        torch.testing.assert_close(logits, model(x), rtol=0.1, atol=0.1 * model(x).abs().max().item())
    for part in (m for m in twin.net.modules() if isinstance(m, FSR)):
        assert part.mask(torch.rand(2, part.aux.in_features, 1, 1).bfloat16()).dtype == torch.float32


def test_unknown_parameters_keep_everything_in_float32(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2))
    with caplog.at_level(logging.WARNING, "fsr"):
        twin = Twin(model, torch.rand(2, 3, 2, 2), dtype=torch.bfloat16)
    assert twin.dtype == torch.float32
    assert "LayerNorm" in caplog.text


@pytest.mark.parametrize("name", ["mask_one", "no_recalibration", "mask_random", "mask_constant", "mask_shuffled"])
def test_twin_acts_under_the_intervention_it_was_copied_with(name):
    model = network("resnet18", "fsr", width=8, blocks=(1, 1, 1, 1))
    x = torch.rand(3, 3, 16, 16)
    plain = model(x)
    with intervene(model, name, seed=3):
        twin, expected = Twin(model, x), model(x)
    torch.testing.assert_close(twin.net(x), expected)
    assert not torch.allclose(plain, expected)
