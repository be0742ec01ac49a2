"""The networks that runs train: a backbone, with or without FSR or a peer."""

import torch
from torch import nn

from fsr.config import BACKBONES, DATASETS, PEERS, Backbone, FSRSpec, PeerSpec, Run
from fsr.files import UsageError
from fsr.models.fsr import FSR, hidden_channels
from fsr.models.insert import Classifier, features_at, first_accepted, insert_all


def backbone_named(name: str) -> Backbone:
    """The backbone of that name; UsageError lists the names."""
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build_model(
    backbone: str,
    num_classes: int = 10,
    fsr: FSRSpec | None = None,
    peer: PeerSpec | None = None,
    width: int | None = None,
    blocks: tuple[int, ...] | None = None,
) -> Classifier:
    """A backbone with or without FSR or a peer, initialised by the backbone's rule, in training mode.

    width: channels of the first stage (WRN: the widening factor); blocks: per stage; None: the backbone's own. With
    the same random state, networks that differ in what is inserted start from the same backbone weights.
    """
    chosen = backbone_named(backbone)
    if fsr is not None and peer is not None:
        raise UsageError("a network takes an FSRSpec or a PeerSpec, not both")
    blocks = chosen.blocks if blocks is None else tuple(blocks)
    if len(blocks) != len(chosen.stages) or min(blocks) < 1:
        raise UsageError(f"{backbone} needs {len(chosen.stages)} positive numbers of blocks, not {blocks}")
    if width is not None and width < 1:
        raise UsageError(f"width must be positive, not {width}")
    net = chosen.network(num_classes, chosen.width if width is None else width, blocks)
    chosen.initialise(net)

    def channels(path: str) -> int:
        x = first_accepted(net, [torch.zeros(1, 3, size, size) for size in (8, 32, 64)])[0]
        return features_at(net, path, x).shape[1]

    modules: dict[str, nn.Module] = {}
    if fsr is not None:
        for path in fsr.at or (chosen.fsr_stage,):
            count = channels(path)
            hidden = fsr.hidden or hidden_channels(count, chosen.reference)
            modules[path] = FSR(count, num_classes, fsr, hidden=hidden)
    elif peer is not None:
        kind = PEERS[peer.name]
        paths = peer.at or (chosen.stages if kind.every_stage else chosen.places(chosen.stages[-1], blocks[-1])[-2:])
        modules = {path: kind.build(channels(path), num_classes, path == paths[-1]) for path in paths}
    for module in modules.values():
        chosen.initialise(module)
    insert_all(net, modules)
    return Classifier(net)


def model_of(run: Run, num_classes: int | None = None) -> Classifier:
    """The network that a run trains, freshly initialised; num_classes: of `folder:` data, which no run knows."""
    if num_classes is None:
        if run.dataset not in DATASETS:
            raise UsageError(f"how many classes {run.dataset!r} has is known once it is read: give num_classes")
        num_classes = DATASETS[run.dataset].classes
    return build_model(run.backbone, num_classes, run.fsr, run.peer, run.width, run.blocks)
