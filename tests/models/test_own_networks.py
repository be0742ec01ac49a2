"""Backbones and peers that someone adds: one file and one registry entry, whatever shares or derives its weights."""

import sys
import types

import pytest
import torch
from torch import nn

from fsr import runs, store
from fsr.config import BACKBONES, PEERS, Backbone, FSRSpec, Peer, PeerSpec, Run, for_dataset, run_id
from fsr.models import model_of
from fsr.models.modes import copied
from fsr.models.peers import PeerStreams


class Fourth(nn.Module):
    """A backbone of someone else's file: one image size, no rule for its weights."""

    def __init__(self, num_classes, width, blocks):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.head = nn.Linear(width * 64, num_classes)

    def forward(self, x):
        return self.head(self.b(self.a(x)).flatten(1))


def halve(channels, num_classes, is_last):
    """A peer of someone else's file."""
    return Halve()


class Halve(nn.Module):
    def forward(self, f):
        return f / 2

    def streams(self, f, y=None):
        return PeerStreams(f / 2, {})


@pytest.fixture
def mine(monkeypatch):
    """fsr/models/mine.py, as a module in memory."""
    file = types.ModuleType("fsr.models.mine")
    monkeypatch.setitem(sys.modules, "fsr.models.mine", file)
    return file


def test_a_new_backbone_and_a_new_peer_are_one_file_and_one_entry_each(mine, monkeypatch):
    mine.Fourth, mine.halve = Fourth, halve
    entry = Backbone(code="mine.Fourth", stages=("a", "b"), fsr_stage="b", blocks=(1, 1))
    monkeypatch.setitem(BACKBONES, "mine", entry)
    monkeypatch.setitem(PEERS, "halve", Peer(code="mine.halve", every_stage=True))
    x = torch.rand(2, 3, 32, 32)
    with_fsr = Run(backbone="mine", module=FSRSpec(), width=4)
    assert model_of(with_fsr).eval().trace(x)[1][0].mask.shape == (2, 4, 8, 8)
    with_peer = Run(backbone="mine", module=PeerSpec(name="halve"), width=4)
    assert "at+halve" in run_id(with_peer) and len(model_of(with_peer).trace(x)[1]) == 2


def _stage(channels_in, channels_out):
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU())


class Plain(nn.Module):
    def __init__(self, num_classes, width, blocks):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = _stage(3, width), _stage(width, width), _stage(width, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


CHANGES = {
    "one norm": lambda net: setattr(net.layer3, "1", net.layer2[1]),
    "tied": lambda net: setattr(net.layer3[0], "weight", net.layer2[0].weight),
    "old weight norm": lambda net: nn.utils.weight_norm(net.fc),
    "new weight norm": lambda net: nn.utils.parametrizations.weight_norm(net.fc),
    "spectral norm": lambda net: nn.utils.spectral_norm(net.fc),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_networks_that_share_or_derive_their_weights_train_and_are_kept(change, mine, monkeypatch, root):
    class Changed(Plain):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            change(self)

    mine.Changed = Changed
    stages = ("layer1", "layer2", "layer3")
    entry = Backbone(code="mine.Changed", stages=stages, fsr_stage="layer3", width=8, blocks=(1, 1, 1))
    monkeypatch.setitem(BACKBONES, "changed", entry)
    sizes = {"train_size": 64, "test_size": 40, "holdout": 20, "epochs": 1, "batch": 32, "precision": "float32"}
    run = for_dataset("digits", backbone="changed", steps=2, **sizes)
    options = runs.Options(device="cpu")
    runs.ensure_trained(run, options)
    x = torch.rand(2, 3, 8, 8)
    network = runs.load_model(run, "last", options)
    assert store.is_trained(run) and torch.equal(copied(network)(x), network(x))
