import argparse
import json
import re
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from official_net import NETWORKS, randomised

from fsr.files import UsageError
from fsr.models import BACKBONES, FSRSpec, attach_fsr, build_model, load_official
from fsr.models.build import official_state

NARROW = {"vgg16": 4, "wideresnet34": 1}


def assert_same_function(theirs, ours):
    """Logits, auxiliary logits and input gradients of logits and of auxiliary logits, to float32 rounding."""

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * float(b.detach().abs().max()))

    x = torch.rand(3, 3, 32, 32, requires_grad=True)
    (logits, aux), (own, streams) = theirs(x), ours.trace(x)
    named = [streams[0].aux[name] for name in ("robust", "nonrobust", "recalibrated")]
    weight = torch.randn_like(logits)
    for first, other in zip((own, *named), (logits, *aux), strict=True):
        close(first, other)
        close(*(torch.autograd.grad((z * weight).sum(), x, retain_graph=True)[0] for z in (first, other)))


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_narrow_network_of_theirs_computes_the_same_under_our_names(backbone, tmp_path):
    theirs = randomised(NETWORKS[backbone](classes=7, width=NARROW[backbone], hidden=8))
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    state, classes = official_state(tmp_path / "net.pth", backbone)
    ours = build_model(backbone, classes, fsr=FSRSpec(hidden=8), width=NARROW[backbone]).eval()
    ours.load_state_dict(state, strict=True)
    assert_same_function(theirs, ours)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_name_and_shape_of_their_checkpoints_finds_its_place(backbone, tmp_path):
    keys = Path(__file__).parent.parent / "parity" / "official_state_dict_keys.json"
    shapes = {k: tuple(v) for k, v in json.loads(keys.read_text())[backbone]}
    chosen = BACKBONES[backbone]
    with torch.device("meta"):
        net = resolve_name(f"fsr.models.{chosen.code}")(10, chosen.width, chosen.blocks)
        ours = attach_fsr(net, chosen.fsr_stage, 10, FSRSpec(hidden=64), example=torch.zeros(1, 3, 8, 8))
    torch.save({k: torch.zeros(()).expand(v) for k, v in shapes.items()}, tmp_path / "net.pth")
    state, classes = official_state(tmp_path / "net.pth", backbone)
    assert classes == 10
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.state_dict().items()}


def refused(path, backbone="vgg16"):
    with pytest.raises(UsageError, match=rf"^(no file )?{re.escape(str(path))}[^\n]*$") as caught:
        load_official(path, backbone)
    return str(caught.value)


def test_wrappers_and_prefixes_are_seen_through(tmp_path):
    plain = NETWORKS["vgg16"](width=4, hidden=8).state_dict()
    nested = {"_orig_mod.module." + k: v for k, v in plain.items()}
    names = []
    for content in (plain, {"state_dict": plain, "epoch": 100}, {"net": plain}, {"model": nested}):
        torch.save(content, tmp_path / "net.pth")
        names.append(official_state(tmp_path / "net.pth", "vgg16")[0].keys())
    assert all(other == names[0] for other in names)


def test_files_that_are_not_their_checkpoint_are_refused_in_one_line(tmp_path):
    narrow_file = tmp_path / "narrow.pth"  # its names are right and its shapes are not
    torch.save(NETWORKS["vgg16"](width=4, hidden=8).state_dict(), narrow_file)
    assert "no file" in refused(tmp_path / "absent.pth")
    assert "size mismatch" in refused(narrow_file) and "Missing key" in refused(narrow_file, "wideresnet34")
    whole, other = narrow_file.read_bytes(), tmp_path / "other.pth"
    for content in (whole[: len(whole) // 2], b"", b"not weights\n" * 9):
        other.write_bytes(content)
        assert "not a whole file" in refused(other)
    for content, why in (([1, 2], "state_dict"), ({"linear.weight": torch.zeros(10, 512)}, "Missing key")):
        torch.save(content, other)
        assert why in refused(other)
    for extra, name in ((np.float64(81.2), r"numpy\S*\.scalar"), (argparse.Namespace(lr=0.1), r"argparse\.Namespace")):
        torch.save({"state_dict": {"linear.weight": torch.zeros(10, 512)}, "extra": extra}, other)
        message = refused(other)
        assert re.search(name, message) and "weights_only" not in message and len(message) < 300
