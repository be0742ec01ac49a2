from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsr.analyse import module_inputs
from fsr.config import PeerSpec
from fsr.files import UsageError
from fsr.models import BACKBONES, CAS, CIFS, FeatureDenoising, Inserted, build_model

PARITY = Path(__file__).parent.parent / "parity"
NAMES = {"Probe.0.fc.": "bottleneck.", "Probe.1.": "probe.", "cas_fc_": "probe."}


def load(kind):
    """The peer with the fixture's weights, and the fixture's tensors."""
    with np.load(PARITY / "peers.npz") as stored:
        tensors = {name: torch.from_numpy(stored[name]) for name in stored.files}
    module = CAS(8, 10) if kind == "cas" else CIFS(8, 10, is_last=kind == "cifs_linear")
    weights = {}
    for name, value in tensors.items():
        short = name.removeprefix(kind + ".")
        for theirs, ours in NAMES.items():
            if short.startswith(theirs) and (name != short or kind == "cas"):
                weights[ours + short.removeprefix(theirs)] = value
    module.double().load_state_dict(weights, strict=True)
    return module, tensors


@pytest.mark.parametrize("kind", ["cas", "cifs_linear", "cifs_nonlinear"])
def test_features_and_probe_match_the_authors_code(kind):
    module, fixture = load(kind)
    for mode in ("train", "eval"):
        streams = module.train(mode == "train").streams(fixture["feat"], fixture["y"])
        torch.testing.assert_close(streams.features, fixture[f"{kind}.{mode}_feat"], rtol=0, atol=1e-12)
        torch.testing.assert_close(streams.aux["probe"], fixture[f"{kind}.logits"], rtol=0, atol=1e-12)
    assert torch.equal(module(fixture["feat"]), streams.features)  # eval mode reads no labels


@pytest.mark.parametrize("kind", ["cifs_linear", "cifs_nonlinear"])
def test_closed_form_relevance_is_the_gradient(kind):
    module, fixture = load(kind)
    f = fixture["feat"].clone().requires_grad_()
    gate, logits = module.gate(f, None)
    two = logits.topk(2, dim=1).values.sum()
    (grad,) = torch.autograd.grad(two, f, create_graph=True)
    torch.testing.assert_close(gate, grad.sum((2, 3)).softmax(1))
    weight = torch.randn_like(gate)
    ours = torch.autograd.grad((gate * weight).sum(), module.parameters(), allow_unused=True, retain_graph=True)
    loss = (grad.sum((2, 3)).softmax(1) * weight).sum()
    theirs = torch.autograd.grad(loss, module.parameters(), allow_unused=True, retain_graph=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(torch.zeros(1) if a is None else a, torch.zeros(1) if b is None else b)
    # features are not differentiated through the relevance, the probe is
    grad, probe = torch.autograd.grad(gate[:, 0].sum(), (f, module.probe.weight), allow_unused=True, retain_graph=True)
    assert grad is None and probe.abs().sum() > 0
    assert torch.autograd.grad(logits.sum(), f)[0].abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 20, 3, 2)])
def test_feature_denoising_is_the_weighted_mean_of_its_definition(shape):
    """Both orders of the product against Xie et al.'s double loop over positions."""
    module = FeatureDenoising(shape[1]).eval()
    f = torch.randn(shape)
    torch.testing.assert_close(module(f), f)  # starts as the identity
    nn.init.constant_(module.bn.weight, 0.7)
    flat, mean = f.flatten(2), torch.zeros(shape).flatten(2)
    positions = flat.shape[2]
    for i in range(positions):
        for j in range(positions):
            mean[:, :, i] += (flat[:, :, i] * flat[:, :, j]).sum(1, keepdim=True) * flat[:, :, j] / positions
    branch = 0.7 * module.conv(mean.view(shape)) / (1 + module.bn.eps) ** 0.5
    torch.testing.assert_close(module(f), f + branch, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cas", "cifs"])
def test_training_without_labels_is_refused_and_with_them_works(name):
    model = build_model("resnet18", peer=PeerSpec(name=name), width=4, blocks=(1, 1, 1, 1))
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    for call in (model, model.trace):
        with pytest.raises(UsageError, match="labels"):
            call(x)
    assert all(place.recorder is None for place in model.inserted())
    assert model.trace(x, y)[1][0].aux["probe"].shape == (4, 10)
    model.eval()
    assert torch.equal(model(x), model.trace(x)[0])


PLACES = {
    "resnet18": (4, ["layer4.0", "layer4.1"]),
    "vgg16": (4, ["block5.6", "block5.9"]),
    "wideresnet34": (1, ["block3.3", "block3"]),
}


@pytest.mark.parametrize("backbone", PLACES)
def test_peers_sit_where_the_spec_says(backbone):
    width, places = PLACES[backbone]
    for name in ("fd", "cas", "cifs"):
        model = build_model(backbone, peer=PeerSpec(name=name), width=width).eval()
        expected = BACKBONES[backbone].stages if name == "fd" else places
        with module_inputs(model) as inputs:
            assert len(model.trace(torch.rand(2, 3, 8, 8))[1]) == len(model.inserted()) == len(expected)
        named = {n.removeprefix("net."): part for n, part in model.named_modules() if isinstance(part, Inserted)}
        named = {n.replace(".submodule", ""): part.module for n, part in named.items()}
        assert named.keys() == set(expected)
        assert name == "fd" or len({f.shape[1] for f in inputs}) == 1
    assert [n for n, module in named.items() if module.bottleneck is None] == places[1:]  # CIFS's last probe is linear
    assert backbone != "vgg16" or inputs[0].min() >= 0  # after the ReLU
