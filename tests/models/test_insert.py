import copy
import pickle
from functools import partial

import pytest
import torch
import torchvision
from tiny import Wrapped
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fsr.config import FSRSpec
from fsr.files import UsageError
from fsr.models import Inserted, attach_fsr, build_model
from fsr.train.objectives import fsr_terms

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


does = partial(Wrapped, nn.Identity())  # a module that is this function


def pair(x):
    return x, x


class Tiny(nn.Module):
    """Someone else's network: two convolutional stages, one that runs twice, tokens, a pair, a head.

    check: sees each batch, False raises `error`; cast: changes its type.
    """

    def __init__(self, check=lambda x: True, cast=lambda x: x, error=Exception):
        super().__init__()
        self.check, self.cast, self.error = check, cast, error
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, 2, padding=1), nn.ReLU())
        self.twice, self.never, self.tokens, self.pair = nn.ReLU(), nn.ReLU(), nn.Flatten(2), does(pair)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        if not self.check(x):
            raise self.error("not\nfor me")
        f = self.body(self.twice(self.twice(self.stem(self.cast(x)))))
        return self.head(self.pair(self.tokens(f))[0].mean(2))


def attached():
    return attach_fsr(Tiny().eval(), at="body", num_classes=5)  # new modules take its mode and draw no noise


def test_attached_model_gives_logits_and_streams():
    plain = Tiny().eval()
    expected = plain(X)
    model = attach_fsr(plain, at="body", num_classes=5).eval()
    logits, streams = model.trace(X)
    assert torch.equal(logits, model(X)) and streams[0].mask.shape == (4, 6, 4, 4)
    shapes = {name: tuple(v.shape) for name, v in streams[0].aux.items()}
    assert shapes == dict.fromkeys(["robust", "nonrobust", "recalibrated"], (4, 5))
    module = model.inserted()[0].module
    assert module.score[0].out_channels == 8  # the width rule's least
    nn.init.zeros_(module.correct[-1].weight)
    torch.testing.assert_close(model(X), expected)  # R = 0 leaves someone else's network as it was


def test_the_dry_run_changes_nothing():
    assert not any(part.training for part in attached().modules())
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    attach_fsr(model, at="1", num_classes=3)
    after = {k.replace(".submodule", ""): v for k, v in model.state_dict().items()}
    assert all(torch.equal(after[k], value) for k, value in before.items())
    assert model.training and not model[1].submodule.training and not model[1].submodule._forward_hooks


REFUSED = {"layer4": "no module", "": "no module", (): "at least one", ("body", "body"): "once", "pair": "tuple"}
REFUSED |= {"twice": "2 outputs", "never": "0 outputs", "tokens": "tokens", ("body", "head"): "not one map"}


@pytest.mark.parametrize("at, why", REFUSED.items())
def test_a_place_that_cannot_take_fsr_is_refused_and_the_network_left_alone(at, why):
    net = Tiny()
    with pytest.raises(UsageError, match=rf"^[^\n]*{why}[^\n]*$"):
        attach_fsr(net, at=at, num_classes=5)
    assert not any(isinstance(part, Inserted) for part in net.modules())


class Listed(Tiny):
    """Its parent keeps the stage in a list, or reads the stage's attributes."""

    def __init__(self, read):
        super().__init__()
        self.stages, self.read = [self.body], read

    def forward(self, x):
        f = self.body[0](self.stem(x)) if self.read else self.stages[0](self.stem(x))
        return self.head(f.mean((2, 3)))


@pytest.mark.parametrize("net", [Listed(False), Listed(True), torch.compile(Tiny(), backend="eager")])
def test_fsr_that_would_not_run_is_refused_and_the_network_left_alone(net):
    with pytest.raises(UsageError, match=r"FSR does not run at|no module|outputs"):
        attach_fsr(net, at="body", num_classes=5)
    assert not any(isinstance(part, Inserted) for part in net.modules())


def test_copies_pickles_and_state_dicts_give_the_same_and_are_independent():
    model, fresh = (build_model("resnet18", fsr=FSRSpec(), width=4, blocks=(1, 1, 1, 1)).eval() for _ in range(2))
    logits, _ = model.trace(X)
    assert not torch.equal(fresh(X), logits)
    fresh.load_state_dict(model.state_dict(), strict=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert torch.equal(other(X), logits)
        nn.init.ones_(other.net.linear.bias)
        assert torch.equal(model(X), logits) and not torch.equal(other(X), logits)


def test_only_a_trace_records_and_runs_the_auxiliary_head():
    model, calls = attached(), []
    model.inserted()[0].module.aux.register_forward_hook(lambda *args: calls.append(1))
    saved = model.trace(X)[1]
    with pytest.raises(RuntimeError):
        model.trace(torch.rand(1, 1, 8, 8))
    assert all(place.recorder is None for place in model.inserted())
    model(X)
    assert len(saved) == 1 and len(calls) == 3


def test_places_of_two_names_and_of_two_modules():
    model = attach_fsr(attached(), at="body", num_classes=5).eval()  # an Inserted is a module like any other
    assert len(model.trace(X)[1]) == 2 and isinstance(model.net, Tiny)
    for path in ("body", "net.0"):
        net = Tiny()
        net.net = nn.ModuleList([net.body])  # forward uses the other name
        assert len(attach_fsr(net, at=path, num_classes=5).eval().trace(X)[1]) == 1


def test_compiled_forward_and_trace_agree_with_eager_in_one_graph():
    model = attached()
    logits, streams = model.trace(X)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(X), logits)

    def traced(x):  # not `model.trace` itself: what torch 2.11 compiles cannot return a named tuple
        logits, streams = model.trace(x)
        return logits, streams[0].aux

    again, aux = torch.compile(traced, backend="eager", fullgraph=True)(X)
    torch.testing.assert_close((again, aux), (logits, streams[0].aux))
    assert all(place.recorder is None for place in model.inserted())
    model.net.compile(backend="eager")
    assert [len(model.trace(X, y)[1]) for y in (None, torch.zeros(len(X)).long(), None)] == [1, 1, 1]


@pytest.mark.parametrize("name, at", [("resnet18", "layer4"), ("mobilenet_v3_small", "features.8")])
def test_torchvision_networks(name, at):
    net = getattr(torchvision.models, name)(num_classes=5)
    model = attach_fsr(net, at=at, num_classes=5, spec=FSRSpec(hidden=8)).eval()
    x, y = torch.rand(2, 3, 32, 32, requires_grad=True), torch.tensor([0, 1])
    logits, streams = model.trace(x)
    terms = fsr_terms(logits, streams, y)
    (F.cross_entropy(logits, y) + terms["sep"] + terms["rec"]).backward()
    assert logits.shape == (2, 5) and torch.isfinite(x.grad).all()


def test_recorded_features_stay_what_they_were_when_a_network_goes_on_in_place():
    """As torchvision's DenseNet does."""
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    model = attach_fsr(nn.Sequential(*layers), at="0", num_classes=5).eval()
    logits, (streams,) = model.trace(X)
    torch.testing.assert_close(streams.features, streams.robust + streams.recalibrated)
    assert (streams.features < 0).any() and torch.equal(logits, model(X))


@pytest.mark.parametrize("size", [None, 32, 224, (28, 28), (28, 56), (28, 14)])
def test_maps_with_their_channels_last_are_refused_and_the_network_is_left_alone(size):
    """As in torchvision's Swin; of one image size, as timm's is."""
    example = torch.rand(2, 3, *size) if isinstance(size, tuple) else None
    width = size[1] if isinstance(size, tuple) else size

    def check(x):
        assert width in (None, x.shape[-1])
        return x

    stage = nn.Sequential(nn.Conv2d(3, 4, 2, 2), does(lambda x: x.permute(0, 2, 3, 1)))
    net = nn.Sequential(does(check), stage, does(lambda f: f.mean((1, 2))), nn.Linear(4, 5))
    with pytest.raises(UsageError, match=r"maps \(N, H, W, C\)"):
        attach_fsr(net, at="1", num_classes=5, example=example)
    assert net[1] is stage
    attach_fsr(net, at="1.0", num_classes=5, example=example)  # before it they come first


def test_maps_whose_images_are_no_first_axis_and_places_that_run_without_gradients_are_refused():
    turned = does(lambda f: f.transpose(0, 1))
    with pytest.raises(UsageError, match="not one map"):
        attach_fsr(nn.Sequential(nn.Conv2d(3, 4, 1), turned, turned, nn.Flatten()), at="1", num_classes=4096)
    saving = lambda self, x: self.head(checkpoint(self.body, self.stem(x), use_reentrant=True).mean((2, 3)))  # noqa: E731
    model = attach_fsr(type("Saving", (Tiny,), {"forward": saving})(), at="body", num_classes=5)
    with pytest.raises(UsageError, match=r"inside torch.utils.checkpoint"):
        model.trace(X)


def test_networks_that_cast_or_check_their_input_are_tried_and_refuse_in_one_line():
    assert attach_fsr(Tiny(lambda x: x.shape[-1] == 64), at="body", num_classes=5)
    cast = Tiny(cast=lambda x: x.double()).double()
    assert attach_fsr(cast, at="body", num_classes=5)(X).dtype == torch.float64  # new weights are of its type
    byte = Tiny(lambda x: x.dtype == torch.uint8, cast=lambda x: x.float() / 255)
    example = (X * 255).to(torch.uint8)
    assert attach_fsr(byte, at="body", num_classes=5, example=example)(example).shape == (4, 5)
    for error, example in ((Exception, None), (KeyError, X), (TypeError, None)):
        with pytest.raises(UsageError, match=r"^[^\n]*example=[^\n]*$"):
            attach_fsr(Tiny(lambda x: False, error=error), at="body", num_classes=5, example=example)


GOOGLENET = torchvision.models.googlenet(num_classes=5, init_weights=False)
OUTPUTS = {
    "fewer": (Tiny(), "body", 4, r"\(1, 5\) in evaluation mode, not logits \(N, 4\)"),
    "more": (Tiny(), "body", 10, r"\(1, 5\) in evaluation mode, not logits \(N, 10\)"),
    "maps": (nn.Sequential(nn.Conv2d(3, 5, 3)), "0", 5, "not logits"),
    "two outputs": (nn.Sequential(Tiny(), does(pair)), "0.body", 5, "tuple.* in evaluation mode"),
    "two in training": (GOOGLENET, "conv2", 5, "in training mode"),
}


@pytest.mark.parametrize("net, path, classes, why", OUTPUTS.values(), ids=OUTPUTS)
def test_networks_whose_output_is_not_the_logits_of_k_classes_are_refused(net, path, classes, why):
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with pytest.raises(UsageError, match=rf"^[^\n]*{why}[^\n]*$"):
        attach_fsr(net, at=path, num_classes=classes)
    assert net.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before.pop(name)) for name, value in net.state_dict().items()) and not before
