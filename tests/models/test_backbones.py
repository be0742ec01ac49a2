import math

import pytest
import torch
from torch import nn

from fsr.analyse import module_inputs
from fsr.config import BACKBONES, FSRSpec, PeerSpec, Run
from fsr.files import UsageError
from fsr.models import FSR, Classifier, build_model, count_macs, count_params, model_of
from fsr.models.insert import insert_all

NARROW = {name: 1 if name == "wideresnet34" else 4 for name in BACKBONES}
# spec section 1: added parameters and MACs at 32x32, percent to two digits, MACs to the digits printed there
TABLE = {
    "resnet18": (1_259_018, 11.27, 0.5554e9, 20.05e6, (512, 4, 4)),
    "vgg16": (1_259_018, 8.25, 0.3137e9, 20.05e6, (512, 4, 4)),
    "wideresnet34": (1_555_210, 3.37, 6.6589e9, 99.09e6, (640, 8, 8)),
}


@pytest.mark.parametrize("backbone", TABLE)
def test_parameters_macs_and_feature_shape_are_those_of_the_spec(backbone):
    added, percent, macs, added_macs, shape = TABLE[backbone]
    chosen = BACKBONES[backbone]
    plain = chosen.network(10, chosen.width, chosen.blocks)  # the rule's draws are not needed here
    with torch.device("meta"):  # full size without memory: build_model's own dry run needs real numbers
        net = chosen.network(10, chosen.width, chosen.blocks)
        insert_all(net, {chosen.fsr_stage: FSR(chosen.reference, 10, FSRSpec(), reference=chosen.reference)})
        model = Classifier(net)
    assert count_params(model) - count_params(plain) == added
    assert round(100 * added / count_params(plain), 2) == percent
    x = torch.empty(1, 3, 32, 32, device="meta")
    base = count_macs(plain.to("meta"), x)
    assert round(base / 1e9, 4) == macs / 1e9
    assert round((count_macs(model, x) - base) / 1e6, 2) == added_macs / 1e6
    assert model.eval().trace(x)[1][0].mask.shape == (1, *shape)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_usual_image_size_gives_logits_and_finite_gradients(backbone, size):
    model = build_model(backbone, num_classes=7, fsr=FSRSpec(), width=NARROW[backbone])
    x = torch.rand(3, 3, size, size, requires_grad=True)
    logits, streams = model.trace(x)
    assert logits.shape == (3, 7) and all(v.shape == (3, 7) for v in streams[0].aux.values())
    (logits.square().sum() + sum(v.sum() for v in streams[0].aux.values())).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_stage_takes_fsr_and_streams_come_in_running_order(backbone):
    stages = BACKBONES[backbone].stages
    model = build_model(backbone, fsr=FSRSpec(at=tuple(reversed(stages))), width=NARROW[backbone]).eval()
    x = torch.rand(2, 3, 16, 16)
    logits, streams = model.trace(x)
    channels = [s.features.shape[1] for s in streams]
    assert len(streams) == len(stages) and channels == sorted(channels)
    assert torch.equal(logits, model(x))
    if backbone == "resnet18":  # a place inside another place
        model = build_model(backbone, fsr=FSRSpec(at=("layer4", "layer4.0", "layer3.1")), width=4).eval()
        assert len(model.trace(x)[1]) == 3


def test_blocks_set_the_depth():
    counts = {"resnet18": (1, 1, 1, 1), "vgg16": (1, 1, 1, 1, 1), "wideresnet34": (1, 1, 1)}
    convolutions = {"resnet18": 9 + 3, "vgg16": 5, "wideresnet34": 7 + 2}  # with 1x1 shortcuts where the width changes
    for backbone, blocks in counts.items():
        model = build_model(backbone, width=NARROW[backbone], blocks=blocks)
        assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions[backbone]
        assert model(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_vgg_places_the_pool_after_block4():
    """The module sees conv4_3 + BN + ReLU before that stage's max-pool: 4x4 at 32 pixels."""
    model = build_model("vgg16", fsr=FSRSpec(), width=4).eval()
    with module_inputs(model) as inputs:
        model.trace(torch.rand(1, 3, 32, 32))
    assert inputs[0].shape[2:] == (4, 4) and inputs[0].min() >= 0
    assert isinstance(model.net.block5[0], nn.MaxPool2d)


def test_initialisation_follows_each_backbones_rule():
    def parts(kind, *arguments, **options):
        found = [part for part in build_model(*arguments, **options).modules() if isinstance(part, kind)]
        return [part for part in found if part.weight.numel() > 1000]

    for name, width, blocks in (("vgg16", 16, None), ("wideresnet34", 2, (1, 1, 1))):
        for part in parts(nn.Conv2d, name, fsr=FSRSpec(), width=width, blocks=blocks):
            fan_out = part.kernel_size[0] ** 2 * part.out_channels
            assert part.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)
        for part in parts(nn.Linear, name, fsr=FSRSpec(), width=width, blocks=blocks):
            # VGG's own rule below the authors' 512 inputs; PyTorch's own uniform range in the wide ResNet
            expected = math.sqrt((2 if name == "vgg16" else 1 / 3) / part.in_features)
            assert part.weight.std().item() == pytest.approx(expected, rel=0.15) and part.bias.abs().max() == 0
    for part in parts(nn.Linear, "vgg16", width=64, blocks=(1, 1, 1, 1, 1)):
        assert part.weight.std().item() == pytest.approx(0.01, rel=0.1)
    for part in parts(nn.Conv2d, "resnet18", fsr=FSRSpec(), width=8):
        assert abs(part.weight.abs().max().item() * math.sqrt(part.weight[0].numel()) - 1) < 0.1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_twins_start_from_the_same_backbone_weights(backbone):
    weights = []
    for module in (None, FSRSpec(), PeerSpec(name="cas")):
        torch.manual_seed(5)
        fsr, peer = (module, None) if isinstance(module, FSRSpec) else (None, module)
        model = build_model(backbone, fsr=fsr, peer=peer, width=NARROW[backbone])
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
    with pytest.raises(UsageError, match="num_classes"):
        model_of(folder)


def test_wrong_use_is_one_clear_line():
    for arguments in (
        {"backbone": "resnet50"},
        {"backbone": "resnet18", "blocks": (1, 1)},
        {"backbone": "resnet18", "width": 0},
        {"backbone": "resnet18", "fsr": FSRSpec(at=("layer9",)), "width": 4},
        {"backbone": "resnet18", "fsr": FSRSpec(at=("linear",)), "width": 4},
        {"backbone": "resnet18", "fsr": FSRSpec(), "peer": PeerSpec(name="fd")},
    ):
        with pytest.raises(UsageError, match=r"^[^\n]+$"):
            build_model(**arguments)


def test_odd_last_batch_of_a_narrow_network_trains():
    """A backward pass of 1x1 stride-2 convolutions with 8 input channels, an odd batch."""
    model = build_model("resnet18", fsr=FSRSpec(), width=8)
    model(torch.rand(5, 3, 16, 16)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_multiply_accumulates_and_parameters_of_a_network_counted_by_hand():
    layers = [nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5)]
    net = nn.Sequential(*layers)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for batch in (1, 3):  # outputs times products per output, of the convolution and of the linear layer
        assert count_macs(net, torch.rand(batch, 4, 8, 8)) == 6 * 4 * 4 * (2 * 9) + 96 * 5
    assert net.training and not net[0]._forward_hooks
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert count_params(net) == 6 * 2 * 9 + 6 + 2 * 6 + 96 * 5 + 5
    net[0].requires_grad_(False)
    assert count_params(net) == 2 * 6 + 96 * 5 + 5
