"""Checkpoints of the authors' code (wkim97/FSR): reading them safely, and their names in ours."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fsr.config import FSRSpec
from fsr.files import UsageError
from fsr.models.build import backbone_named, build_model
from fsr.models.insert import Classifier

log = logging.getLogger("fsr")

DEAD = "sub_block1."  # built by their WideResNet, run by nothing
WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DataParallel and torch.compile
FORBIDDEN = re.compile(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)")
SEQUENTIAL_BLOCK = re.compile(r"block(\d+)\.(\d+)\.")


def _vgg_name(name: str) -> str:
    """block0.3 is conv1_2: stages count from 1 here, and from the second on a max-pool opens them."""

    if found := SEQUENTIAL_BLOCK.match(name):
        stage, layer = int(found[1]), int(found[2])
        name = f"block{stage + 1}.{layer + (stage > 0)}.{name[found.end() :]}"
    return name


def _wideresnet_name(name: str) -> str:
    if name.startswith("bn1."):
        return "block3.bn." + name.removeprefix("bn1.")
    return name.replace(".layer.", ".").replace(".convShortcut.", ".shortcut.")


NAMES: dict[str, Callable[[str], str]] = {"resnet18": str, "vgg16": _vgg_name, "wideresnet34": _wideresnet_name}
HEADS = {"resnet18": "linear.weight", "vgg16": "classifier.4.weight", "wideresnet34": "fc.weight"}
MODULE_NAMES = {"separation.sep_net.": "score.", "recalibration.rec_net.": "correct.", "aux.0.": "aux."}


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without running any code that it may hold."""
    if not path.is_file():
        raise UsageError(f"no file {path}; give the authors' checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # nothing is executed, but damaged bytes lead the reader into any exception there is
        if found := FORBIDDEN.search(str(error)):
            raise UsageError(
                f"{path} holds {found[1]}, which is more than weights; save its state_dict alone"
            ) from None
        raise UsageError(f"{path} is not a whole file of weights") from None
    for wrapper in ("state_dict", "net", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{path} holds no state_dict: a mapping of names to tensors is expected")
    return {WRAPPED.sub("", str(name)): value for name, value in state.items()}


def our_name(name: str, backbone: str, stage: str) -> str:
    """The name in our Classifier of a weight in their network; stage: where FSR sits."""
    for theirs, ours in MODULE_NAMES.items():
        if name.startswith(theirs):
            return f"net.{stage}.module.{ours}{name.removeprefix(theirs)}"
    name = NAMES[backbone](name)
    if name.startswith(stage + "."):
        name = f"{stage}.submodule.{name.removeprefix(stage + '.')}"
    return f"net.{name}"


def official_state(path, backbone: str, stage: str) -> tuple[dict[str, Tensor], int]:
    """The checkpoint under our names without dead weights, and its number of classes; UsageError for another file."""
    path = Path(path)
    state = _read(path)
    head = state.get(HEADS[backbone])
    if head is None or head.ndim != 2:
        raise UsageError(f"{path} is not the authors' {backbone}: it has no {HEADS[backbone]!r}")
    dead = [name for name in state if name.startswith(DEAD)] if backbone == "wideresnet34" else []
    if dead:
        count = sum(state[name].numel() for name in dead if "running" not in name and "num_batches" not in name)
        log.info("%s: dropped %d parameters of sub_block1, which the authors' network never runs", path.name, count)
    return {our_name(n, backbone, stage): v for n, v in state.items() if n not in set(dead)}, head.shape[0]


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
        why = f"{len(misfits)} weights are missing, unknown or of another shape, first {misfits[0]!r}"
        raise UsageError(f"{path} is not the authors' {backbone} with FSR: {why}")
    model.load_state_dict(state, strict=True)
    return model.eval()
