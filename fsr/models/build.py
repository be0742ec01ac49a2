"""FSR or a peer in the networks that runs train, and FSR in any other network that can take it."""

from typing import Any

import torch
from torch import Tensor, nn

from fsr.config import BACKBONES, DATASETS, PEERS, FSRSpec, PeerSpec, Run, named
from fsr.files import UsageError
from fsr.models.fsr import FSR
from fsr.models.insert import Classifier, dry_run, features_at, insert_all


def build_model(
    backbone: str, num_classes=10, fsr: FSRSpec | None = None, peer: PeerSpec | None = None, width=None, blocks=None
) -> Classifier:
    """A backbone with or without FSR or a peer, initialised by its own rule; width, blocks: None for its own.

    With the same random state, networks that differ in what is inserted start from the same backbone weights.
    """
    if backbone not in BACKBONES:
        raise UsageError(f"unknown backbone {backbone!r}; choose one of {', '.join(BACKBONES)}")
    if fsr is not None and peer is not None:
        raise UsageError("a network takes an FSRSpec or a PeerSpec, not both")
    chosen = BACKBONES[backbone]
    blocks, width = chosen.blocks if blocks is None else tuple(blocks), chosen.width if width is None else width
    if len(blocks) != len(chosen.stages) or min(*blocks, width) < 1:
        raise UsageError(f"{backbone} needs {len(chosen.stages)} numbers of blocks, all above 0, not {width}, {blocks}")
    net = named(chosen.code)(num_classes, width, blocks)
    initialise = getattr(net, "initialise", lambda part: None)
    initialise(net)
    usual: tuple[str, ...] = (chosen.fsr_stage,) if fsr else ()
    if peer is not None:
        last_two = chosen.places(chosen.stages[-1], blocks[-1])[-2:]
        usual = chosen.stages if PEERS[peer.name].every_stage else tuple(last_two)
    paths = getattr(fsr or peer, "at", ()) or usual
    images, modules = [torch.zeros(1, 3, size, size) for size in (8, 32, 64)], dict[str, nn.Module]()
    for path, f in features_at(net, paths, images)[2].items() if paths else ():
        if peer is None:
            modules[path] = FSR(f.shape[1], num_classes, fsr, reference=chosen.reference)
        else:
            modules[path] = named(PEERS[peer.name].code)(f.shape[1], num_classes, path == paths[-1])
    for module in modules.values():
        initialise(module)
    insert_all(net, modules)
    return Classifier(net)


def model_of(run: Run, num_classes: int | None = None) -> Classifier:
    """The network that a run trains, freshly initialised; num_classes: of `folder:` data, which no run knows."""
    if num_classes is None:
        if run.dataset not in DATASETS:
            raise UsageError(f"how many classes {run.dataset!r} has is known once it is read: give num_classes")
        num_classes = DATASETS[run.dataset].classes
    return build_model(run.backbone, num_classes, run.fsr, run.peer, run.width, run.blocks)


def _check_outputs(model: nn.Module, x: Tensor, logits: Any, num_classes: int) -> None:
    """UsageError unless a network gives logits (N, K) and nothing else, in both modes."""
    batches = (torch.cat([x, x]), x, x.new_zeros(2, 3, 299, 299))  # Inception's auxiliary outputs need 299 pixels
    given = (dry_run(model, batch, training=True)[0] for batch in batches)
    trained = next((output for output in given if not isinstance(output, Exception)), logits)
    for output, mode in ((logits, "evaluation"), (trained, "training")):
        if not isinstance(output, Tensor) or tuple(output.shape[1:]) != (num_classes,):
            what = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            should = f"not logits (N, {num_classes}) alone; num_classes must be that of its own head"
            raise UsageError(f"the network gives {what} in {mode} mode, {should}, auxiliary outputs off or wrapped")


def attach_fsr(
    model: nn.Module, at: str | tuple[str, ...], num_classes: int, spec: FSRSpec | None = None, *, example=None
) -> Classifier:
    """FSR in any network: changes model, which then runs FSR after each place in `at`, and returns it as a Classifier.

    at: paths of `named_modules()`, each with one map (N, C, H, W) as output; num_classes: K of the network's own head;
    example: a batch for the dry run, else black images. UsageError leaves model as it was. Train it through `trace` and
    `fsr.train.objectives`; under DDP wrap an Objective, which runs the auxiliary head.
    """
    paths = (at,) if isinstance(at, str) else tuple(at)
    if not paths or len(set(paths)) < len(paths):
        raise UsageError(f"at must name at least one place, each once, not {at!r}")
    net = model.net if isinstance(model, Classifier) else model
    weights: list[Tensor] = [p for p in net.parameters() if p.is_floating_point()] or [torch.zeros(())]
    black = [weights[0].new_zeros(1, 3, size, size) for size in (32, 64, 224)]
    x, logits, features = features_at(net, paths, black if example is None else [example])
    _check_outputs(net, x, logits, num_classes)
    modules = dict[str, nn.Module]()
    for path, f in features.items():
        like = next((p for p in weights if p.dtype == f.dtype), weights[0])  # autocast's type is no weight's
        modules[path] = FSR(f.shape[1], num_classes, spec).to(f.device, like.dtype)
    insert_all(net, modules)
    return Classifier(net)
