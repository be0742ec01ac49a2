"""Backbones and peers: the three and three that there are, and any that someone adds."""

import math
import sys
import types
from pkgutil import resolve_name

import pytest
import torch
from tiny import parity
from torch import nn

from fsr import runs, store
from fsr.config import BACKBONES, PEERS, Backbone, FSRSpec, Peer, PeerSpec, Run, for_dataset, run_id
from fsr.files import UsageError
from fsr.models import CAS, CIFS, FSR, Classifier, FeatureDenoising, build_model, count_macs, count_params, model_of
from fsr.models.build import Inserted, insert_all
from fsr.models.fsr import Streams
from fsr.models.modes import copied, eval_mode, hooked

NARROW = {"resnet18": 4, "vgg16": 4, "wideresnet34": 1}
# spec section 1: added parameters and MACs at 32x32, percent to two digits, MACs to the digits printed there
TABLE = {
    "resnet18": (1_259_018, 11.27, 0.5554, 20.05, (512, 4, 4)),
    "vgg16": (1_259_018, 8.25, 0.3137, 20.05, (512, 4, 4)),
    "wideresnet34": (1_555_210, 3.37, 6.6589, 99.09, (640, 8, 8)),
}


@pytest.mark.parametrize("backbone", TABLE)
def test_parameters_macs_and_feature_shape_are_those_of_the_spec(backbone):
    added, percent, giga, added_mega, shape = TABLE[backbone]
    chosen = BACKBONES[backbone]
    with torch.device("meta"):  # full size without memory: build_model's own dry run needs real numbers
        plain, net = (resolve_name(f"fsr.models.{chosen.code}")(10, chosen.width, chosen.blocks) for _ in range(2))
        insert_all(net, {chosen.fsr_stage: FSR(chosen.reference, 10, FSRSpec(), reference=chosen.reference)})
        model, x = Classifier(net), torch.empty(1, 3, 32, 32)
    assert count_params(model) - count_params(plain) == added
    assert round(100 * added / count_params(plain), 2) == percent
    base = count_macs(plain, x)
    assert round(base / 1e9, 4) == giga and round((count_macs(model, x) - base) / 1e6, 2) == added_mega
    assert model.eval().trace(x)[1][0].mask.shape == (1, *shape)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_stage_takes_fsr_at_any_usual_image_size_and_streams_come_in_running_order(backbone, size):
    stages = BACKBONES[backbone].stages
    at = (*reversed(stages), *["layer3.0"] * (backbone == "resnet18"))  # one place lies inside another
    blocks = (1,) * len(stages) if size == 8 else None
    model = build_model(backbone, 7, FSRSpec(at=at), width=NARROW[backbone], blocks=blocks)
    x = torch.rand(3, 3, size, size, requires_grad=True)
    logits, streams = model.trace(x)
    assert len(streams) == len(at) and {v.shape for s in streams for v in (logits, *s.aux.values())} == {(3, 7)}
    channels = [s.features.shape[1] for s in streams]
    assert channels == sorted(channels)
    (logits.square().sum() + sum(v.sum() for s in streams for v in s.aux.values())).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(model.eval()(x), model.trace(x)[0])


def test_initialisation_follows_each_backbones_rule():
    def parts(kind, *arguments, **options):
        result = [part for part in build_model(*arguments, **options).modules() if isinstance(part, kind)]
        return [part for part in result if part.weight.numel() > 1000]

    for name, width, blocks in (("vgg16", 16, None), ("wideresnet34", 2, (1, 1, 1))):
        for part in parts(nn.Conv2d | nn.Linear, name, fsr=FSRSpec(), width=width, blocks=blocks):
            if isinstance(part, nn.Conv2d):
                expected = math.sqrt(2 / part.kernel_size[0] ** 2 / part.out_channels)
            else:  # VGG's own rule below the authors' 512 inputs; PyTorch's own uniform range in the wide ResNet
                expected = math.sqrt((2 if name == "vgg16" else 1 / 3) / part.in_features)
            assert part.weight.std().item() == pytest.approx(expected, rel=0.15)
            assert part.bias is None or part.bias.abs().max() == 0
    for part in parts(nn.Linear, "vgg16", width=64, blocks=(1, 1, 1, 1, 1)):
        assert part.weight.std().item() == pytest.approx(0.01, rel=0.1)
    for part in parts(nn.Conv2d, "resnet18", fsr=FSRSpec(), width=8):
        assert abs(part.weight.abs().max().item() * math.sqrt(part.weight[0].numel()) - 1) < 0.1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_twins_start_from_the_same_backbone_weights(backbone):
    weights = []
    for module in ({}, {"fsr": FSRSpec()}, {"peer": PeerSpec(name="cas")}):
        torch.manual_seed(5)
        model = build_model(backbone, width=NARROW[backbone], **module)
        weights.append({k.replace("submodule.", ""): v for k, v in model.state_dict().items()})
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


def test_model_of_a_run_is_what_the_run_says():
    run = Run(dataset="tinyimagenet", backbone="resnet18", width=4, blocks=(1, 1, 1, 1), module=FSRSpec(at=("layer2",)))
    model = model_of(run)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 200) and model.inserted()[0].module.score[0].in_channels == 8
    wide = build_model("wideresnet34", fsr=FSRSpec(), width=4, blocks=(1, 1, 1))
    assert wide.inserted()[0].module.score[0].out_channels == round(64 * 256 / 640)
    folder = Run(dataset="folder:x", width=4, blocks=(1, 1, 1, 1))
    assert model_of(folder, num_classes=3)(torch.rand(2, 3, 8, 8)).shape == (2, 3)


WRONG = [{"backbone": "resnet50"}, {"blocks": (1, 1)}, {"width": 0}, {"fsr": FSRSpec(), "peer": PeerSpec(name="fd")}]
WRONG += [{"fsr": FSRSpec(at=(place,)), "width": 4} for place in ("layer9", "linear")]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_use_is_one_clear_line(arguments):
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        build_model(**{"backbone": "resnet18", **arguments})


NAMES = {"Probe.0.fc.": "bottleneck.", "Probe.1.": "probe.", "cas_fc_": "probe."}


def load(kind):
    tensors = parity("peers")
    module = CAS(8, 10, False) if kind == "cas" else CIFS(8, 10, is_last=kind == "cifs_linear")
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
def test_closed_form_relevance_is_the_gradient_and_differentiates_the_probe_alone(kind):
    module, fixture = load(kind)
    f = fixture["feat"].clone().requires_grad_()
    gate, logits = module.gate(f, None)
    (grad,) = torch.autograd.grad(logits.topk(2, dim=1).values.sum(), f, create_graph=True)
    slow, weight = grad.sum((2, 3)).softmax(1), torch.randn_like(gate)
    torch.testing.assert_close(gate, slow)
    options = {"allow_unused": True, "retain_graph": True, "materialize_grads": True}
    ours, theirs = (torch.autograd.grad((g * weight).sum(), module.parameters(), **options) for g in (gate, slow))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.grad(gate[:, 0].sum(), f, allow_unused=True) == (None,)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 20, 3, 2)])
def test_feature_denoising_is_the_weighted_mean_of_its_definition(shape):
    """Both orders of the product against Xie et al.'s double loop over positions."""
    module, f = FeatureDenoising(shape[1], 10, False).eval(), torch.randn(shape)
    torch.testing.assert_close(module(f), f)  # starts as the identity
    nn.init.constant_(module.bn.weight, 0.7)
    flat, mean = f.flatten(2), torch.zeros(shape).flatten(2)
    for i in range(flat.shape[2]):
        for j in range(flat.shape[2]):
            mean[:, :, i] += (flat[:, :, i] * flat[:, :, j]).sum(1, keepdim=True) * flat[:, :, j] / flat.shape[2]
    branch = 0.7 * module.conv(mean.view(shape)) / (1 + module.bn.eps) ** 0.5
    torch.testing.assert_close(module(f), f + branch, rtol=1e-4, atol=1e-4)


PLACES = {"resnet18": ["layer4.0", "layer4.1"], "vgg16": ["block5.6", "block5.9"]}
PLACES["wideresnet34"] = ["block3.3", "block3"]


@pytest.mark.parametrize("backbone", PLACES)
def test_peers_sit_where_the_spec_says(backbone):
    for name in ("fd", "cas", "cifs"):
        model = build_model(backbone, peer=PeerSpec(name=name), width=NARROW[backbone]).eval()
        expected = BACKBONES[backbone].stages if name == "fd" else PLACES[backbone]
        inputs, before = [], [place.submodule for place in model.inserted()]
        with hooked(before, lambda part, _, f, inputs=inputs: inputs.append(f)):
            assert len(model.trace(torch.rand(2, 3, 8, 8))[1]) == len(model.inserted()) == len(expected)
        parts = [(path, part) for path, part in model.named_modules() if isinstance(part, Inserted)]
        places = {path.removeprefix("net.").replace(".submodule", ""): part for path, part in parts}
        assert set(places) == set(expected)
        assert name == "fd" or len({f.shape[1] for f in inputs}) == 1
    last = [places[path].module.bottleneck is None for path in expected]
    assert last == [False, True]  # CIFS's last probe is linear
    assert backbone != "vgg16" or inputs[0].min() >= 0  # after the ReLU


class Mine(nn.Module):
    def __init__(self, num_classes, width, blocks):
        super().__init__()
        for i in (1, 2, 3):
            layers = [nn.Conv2d(width if i > 1 else 3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            self.add_module(f"layer{i}", nn.Sequential(*layers))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Halve(nn.Module):
    def __init__(self, channels, num_classes, is_last):
        super().__init__()

    def forward(self, f):
        return f / 2

    def streams(self, f, y=None):
        return Streams(f / 2, {})


@pytest.fixture
def own_file(monkeypatch):
    """A backbone and a peer in a new file of fsr/models, which has no rule for its weights, and their entries."""
    file = types.ModuleType("fsr.models.mine")
    file.Mine, file.Halve = Mine, Halve
    monkeypatch.setitem(sys.modules, "fsr.models.mine", file)
    stages = ("layer1", "layer2", "layer3")
    entry = Backbone(code="mine.Mine", stages=stages, fsr_stage="layer3", width=8, blocks=(1, 1, 1))
    monkeypatch.setitem(BACKBONES, "mine", entry)
    monkeypatch.setitem(PEERS, "halve", Peer(code="mine.Halve", every_stage=True))
    return file


def test_a_new_backbone_and_a_new_peer_are_one_file_and_one_entry_each(own_file):
    x = torch.rand(2, 3, 32, 32)
    assert model_of(Run(backbone="mine", module=FSRSpec())).eval().trace(x)[1][0].mask.shape == (2, 8, 32, 32)
    with_peer = Run(backbone="mine", module=PeerSpec(name="halve"))
    assert "at+halve" in run_id(with_peer) and len(model_of(with_peer).trace(x)[1]) == 3


CHANGES = {
    "tied": lambda net: setattr(net.layer3[0], "weight", net.layer2[0].weight),
    "old weight norm": lambda net: nn.utils.weight_norm(net.fc),
    "spectral norm": lambda net: nn.utils.spectral_norm(net.fc),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_networks_that_share_or_derive_their_weights_train_and_are_kept(change, own_file, root):
    class Changed(Mine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            change(self)

    own_file.Mine = Changed
    sizes = {"train_size": 64, "test_size": 40, "holdout": 20, "epochs": 1, "batch": 32, "precision": "float32"}
    run, options = for_dataset("digits", backbone="mine", steps=2, **sizes), runs.Options(device="cpu")
    runs.ensure_trained(run, options)
    network, x = runs.load_model(run, "last", options), torch.rand(2, 3, 8, 8)
    assert store.is_trained(run) and torch.equal(copied(network)(x), network(x))


class Merging(nn.Linear):  # as LoRA's
    def train(self, mode=True):
        self.weight.data += int(self.training) - int(mode)
        return super().train(mode)


def test_eval_mode_ends_by_train_and_leaves_frozen_parts_frozen():
    net = nn.Sequential(Merging(3, 2), nn.BatchNorm1d(2).eval())
    net[0].weight.data.fill_(0.5)
    with eval_mode(net):
        assert net[0].weight.mean() == 1.5 and not net.training
    assert net[0].weight.mean() == 0.5 and [part.training for part in net.modules()] == [True, True, False]
