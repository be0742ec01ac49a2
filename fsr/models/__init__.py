"""Networks by name: backbones, FSR or a peer at named places, the authors' checkpoints, and any other network."""

import torch
from torch import Tensor, nn

from fsr.config import BACKBONES, DATASETS, PEERS, Backbone, FSRSpec, PeerSpec, Run
from fsr.files import UsageError
from fsr.models.cost import count_macs, count_params
from fsr.models.fsr import FSR, Streams, gumbel_mask, hidden_channels
from fsr.models.insert import Classifier, Inserted, channels_at, insert
from fsr.models.interventions import INTERVENTIONS, Intervention, intervene
from fsr.models.official import official_state
from fsr.models.peers import CAS, CIFS, FeatureDenoising, PeerStreams

__all__ = [
    "BACKBONES",
    "CAS",
    "CIFS",
    "FSR",
    "INTERVENTIONS",
    "Backbone",
    "Classifier",
    "FSRSpec",
    "FeatureDenoising",
    "Inserted",
    "Intervention",
    "PeerSpec",
    "PeerStreams",
    "Streams",
    "attach_fsr",
    "build_model",
    "count_macs",
    "count_params",
    "gumbel_mask",
    "intervene",
    "load_official",
    "model_of",
]


def backbone_named(name: str) -> Backbone:
    """The backbone of that name; UsageError lists the names."""
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def _insert_all(net: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Insert every module at its path; the deepest paths first, because an insertion moves what lies below it."""
    for path in sorted(modules, key=lambda path: -path.count(".")):
        insert(net, path, modules[path])


def _peers(spec: PeerSpec, backbone: Backbone, blocks: tuple[int, ...], channels, num_classes: int) -> dict:
    """The peer's modules by path; channels: path to channels."""
    peer = PEERS[spec.name]
    paths = spec.at or (backbone.stages if peer.every_stage else backbone.last_two(blocks))
    return {path: peer.build(channels(path), num_classes, path == paths[-1]) for path in paths}


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
        return channels_at(net, path, torch.zeros(1, 3, 8, 8))

    modules: dict[str, nn.Module] = {}
    if fsr is not None:
        for path in fsr.at or (chosen.fsr_stage,):
            hidden = fsr.hidden or hidden_channels(channels(path), chosen.reference)
            modules[path] = FSR(channels(path), num_classes, fsr, hidden=hidden)
    elif peer is not None:
        modules = _peers(peer, chosen, blocks, channels, num_classes)
    for module in modules.values():
        chosen.initialise(module)
    _insert_all(net, modules)
    return Classifier(net)


def model_of(run: Run, num_classes: int | None = None) -> Classifier:
    """The network that a run trains, freshly initialised from the global random state.

    num_classes: needed for `folder:` data, whose classes the run does not know.
    """
    if num_classes is None:
        if run.dataset not in DATASETS:
            raise UsageError(f"how many classes {run.dataset!r} has is known once it is read: give num_classes")
        num_classes = DATASETS[run.dataset].classes
    return build_model(run.backbone, num_classes, run.fsr, run.peer, run.width, run.blocks)


def _dry_run_channels(model: nn.Module, path: str, like: Tensor) -> int:
    """Channels after path, on black images of the usual sizes, in like's type and place."""
    reason = ""
    for size in (32, 64, 224):
        try:
            return channels_at(model, path, like.new_zeros(1, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:  # the network refuses this size
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise UsageError(f"a dry run on images of 32, 64 and 224 pixels failed ({reason}); give example=, a batch it takes")


def attach_fsr(
    model: nn.Module,
    at: str | tuple[str, ...],
    num_classes: int,
    spec: FSRSpec | None = None,
    *,
    example: Tensor | None = None,
) -> Classifier:
    """FSR in any network: changes model, which then runs FSR after each place in `at`, and returns it as a Classifier.

    at: module paths as in `named_modules()`, whose output is one map (N, C, H, W); example: a batch for the dry run
    that finds C, else black images. New weights keep PyTorch's defaults. UsageError leaves model as it was.
    Train it through `trace` and `fsr.train.objectives`; under DDP wrap an Objective, which runs the auxiliary head.
    """
    spec = FSRSpec() if spec is None else spec
    paths = (at,) if isinstance(at, str) else tuple(at)
    if not paths or len(set(paths)) < len(paths):
        raise UsageError(f"at must name at least one place, each once, not {at!r}")
    if isinstance(model, Classifier):
        model = model.net
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    modules: dict[str, nn.Module] = {}
    for path in paths:
        channels = _dry_run_channels(model, path, like) if example is None else channels_at(model, path, example)
        modules[path] = FSR(channels, num_classes, spec).to(like.device, like.dtype)
    _insert_all(model, modules)
    return Classifier(model)


def load_official(path, backbone: str, tau: float = 0.1) -> Classifier:
    """A checkpoint of the authors' code (wkim97/FSR) as a Classifier in eval mode.

    path: a file written by `torch.save`; backbone: a key of BACKBONES at full size; tau: what it was trained with
    (the file does not say). Read with weights_only; every shape must fit. Raises UsageError in one line otherwise.
    """
    chosen = backbone_named(backbone)
    state, num_classes = official_state(path, backbone, chosen.fsr_stage)
    model = build_model(backbone, num_classes, fsr=FSRSpec(tau=tau))
    own = model.state_dict()
    misfits = sorted(own.keys() ^ state.keys()) + [k for k in own if k in state and own[k].shape != state[k].shape]
    if misfits:
        raise UsageError(
            f"{path} is not the authors' {backbone} with FSR: {len(misfits)} weights are missing, unknown "
            f"or of another shape, first {misfits[0]!r}"
        )
    model.load_state_dict(state, strict=True)
    return model.eval()
