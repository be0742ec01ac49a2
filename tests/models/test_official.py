import argparse
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from official_net import NETWORKS, randomised

from fsr.files import UsageError
from fsr.models import BACKBONES, FSRSpec, attach_fsr, build_model, load_official
from fsr.models.official import official_state

PARITY = Path(__file__).parent.parent / "parity"
STAGE = {"resnet18": "layer4", "vgg16": "block4", "wideresnet34": "block3"}
NARROW = {"resnet18": 4, "vgg16": 4, "wideresnet34": 1}


def assert_same_function(theirs, ours, x):
    """Logits, auxiliary logits and input gradients of logits and of auxiliary logits, to float32 rounding."""

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * float(b.detach().abs().max()))

    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    logits, aux = theirs(x1)
    own, streams = ours.trace(x2)
    close(own, logits)
    for name, value in zip(("robust", "nonrobust", "recalibrated"), aux):
        close(streams[0].aux[name], value)
    weight = torch.randn_like(logits)
    for mine, other in ((own, logits), *zip(streams[0].aux.values(), aux)):
        (ours_grad,) = torch.autograd.grad((mine * weight).sum(), x2, retain_graph=True)
        (theirs_grad,) = torch.autograd.grad((other * weight).sum(), x1, retain_graph=True)
        close(ours_grad, theirs_grad)


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_narrow_network_of_theirs_computes_the_same_under_our_names(backbone, tmp_path):
    theirs = randomised(NETWORKS[backbone](classes=7, width=NARROW[backbone], hidden=8))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    state, classes = official_state(tmp_path / "net.pth", backbone)
    ours = build_model(backbone, classes, fsr=FSRSpec(hidden=8), width=NARROW[backbone]).eval()
    ours.load_state_dict(state, strict=True)
    assert_same_function(theirs, ours, torch.rand(3, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_checkpoint_of_their_size_computes_the_same(backbone, tmp_path):
    theirs = randomised(NETWORKS[backbone](classes=10, tau=0.1))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = load_official(tmp_path / "net.pth", backbone)
    assert not ours.training
    assert_same_function(theirs, ours, torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("backbone", NETWORKS)
def test_every_name_and_shape_of_their_checkpoints_finds_its_place(backbone, tmp_path):
    shapes = dict(json.loads((PARITY / "official_state_dict_keys.json").read_text())[backbone])
    with torch.device("meta"):
        theirs = {k: tuple(v.shape) for k, v in NETWORKS[backbone]().state_dict().items()}
        net = BACKBONES[backbone].network(10, BACKBONES[backbone].width, BACKBONES[backbone].blocks)
        ours = attach_fsr(net, STAGE[backbone], 10, FSRSpec(hidden=64), example=torch.zeros(1, 3, 8, 8))
        own = {k: tuple(v.shape) for k, v in ours.state_dict().items()}
    assert {k: tuple(v) for k, v in shapes.items()} == theirs
    weights = {k: torch.empty(0) if v == [] else torch.zeros(1).expand(v) for k, v in shapes.items()}
    torch.save(weights, tmp_path / "net.pth")
    state, classes = official_state(tmp_path / "net.pth", backbone)
    assert classes == 10
    assert {k: tuple(v.shape) for k, v in state.items() if v.numel()} == {k: v for k, v in own.items() if v}
    assert state.keys() == own.keys()


def refused(path, backbone="resnet18"):
    """The message of the refusal, which must be one line and name the file."""
    with pytest.raises(UsageError, match=rf"^(no file )?{re.escape(str(path))}[^\n]*$") as caught:
        load_official(path, backbone)
    return str(caught.value)


def test_wrappers_and_prefixes_are_seen_through(tmp_path):
    plain = NETWORKS["resnet18"](width=4, hidden=8).state_dict()
    contents = [plain, {"state_dict": plain, "epoch": 100}, {"net": plain}]
    contents.append({"module." + k: v for k, v in plain.items()})
    contents.append({"model": {"_orig_mod.module." + k: v for k, v in plain.items()}})
    names = []
    for i, content in enumerate(contents):
        torch.save(content, tmp_path / f"{i}.pth")
        names.append(official_state(tmp_path / f"{i}.pth", "resnet18")[0].keys())
    assert all(other == names[0] for other in names)


def test_files_that_are_not_their_checkpoint_are_refused_in_one_line(tmp_path):
    narrow_file = tmp_path / "narrow.pth"  # its names are right and its shapes are not
    torch.save(NETWORKS["resnet18"](width=4, hidden=8).state_dict(), narrow_file)
    assert "no file" in refused(tmp_path / "absent.pth")
    assert "size mismatch" in refused(narrow_file)
    assert "fc.weight" in refused(narrow_file, "wideresnet34")
    whole = narrow_file.read_bytes()
    broken = (("cut.pth", whole[: len(whole) // 2]), ("empty.pth", b""), ("text.pth", b"not weights\n" * 9))
    for name, content in broken:
        (tmp_path / name).write_bytes(content)
        assert "not a whole file" in refused(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "state_dict" in refused(tmp_path / "list.pth")
    with pytest.raises(UsageError, match="unknown backbone"):
        load_official(narrow_file, "resnet19")


@pytest.mark.parametrize(
    "extra, name", [(np.float64(81.2), r"numpy\S*\.scalar"), (argparse.Namespace(lr=0.1), r"argparse\.Namespace")]
)
def test_what_is_more_than_weights_is_named_and_no_unsafe_way_is_advised(extra, name, tmp_path):
    torch.save({"state_dict": {"linear.weight": torch.zeros(10, 512)}, "extra": extra}, tmp_path / "net.pth")
    message = refused(tmp_path / "net.pth")
    assert re.search(name, message) and "weights_only" not in message and len(message) < 300


class Bomb:
    """Runs code when a plain unpickler reads it."""

    def __reduce__(self):
        return (Path.touch, (Path("bomb-went-off"),))


def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"linear.weight": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"linear.weight": Bomb()}))
    refused(tmp_path / "bomb.pth")
    refused(tmp_path / "raw.pth")
    assert not (tmp_path / "bomb-went-off").exists()
