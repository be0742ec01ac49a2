"""Checkpoints of the authors' code (wkim97/FSR): reading them safely, and their names in ours."""

import re
from pathlib import Path

import torch
from torch import Tensor

from fsr.config import BACKBONES, FSRSpec
from fsr.files import UsageError
from fsr.models.build import Classifier, build_model

# Pattern to replacement, one after the other. VGG's block0.3 is conv1_2: stages count from 1 here, and from the second
# on a max-pool opens them. WideResNet's sub_block1, which nothing runs, stays behind.
NAMES: dict[str, dict] = {
    "resnet18": {},
    "vgg16": {r"^block(\d+)\.(\d+)": lambda found: f"block{int(found[1]) + 1}.{int(found[2]) + (found[1] != '0')}"},
    "wideresnet34": {r"^bn1\.": "block3.bn.", r"\.layer\.": ".", r"\.convShortcut\.": ".shortcut."},
}
MODULE = {r"^separation\.sep_net": "score", r"^recalibration\.rec_net": "correct", r"^aux\.0": "aux"}


def our_name(name: str, backbone: str, stage: str) -> str:
    """The name in our Classifier of a weight in their network; stage: where FSR sits."""
    inside = {pattern: f"{stage}.module.{ours}" for pattern, ours in MODULE.items()}
    for pattern, ours in (NAMES[backbone] | {rf"^{stage}\.": f"{stage}.submodule."} | inside).items():
        name = re.sub(pattern, ours, name)
    return f"net.{name}"


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names, without running any code that it may hold."""
    if not path.is_file():
        raise UsageError(f"no file {path}; give the authors' checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # nothing is executed, but damaged bytes lead the reader into any exception there is
        found = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", str(error))
        why = f"holds {found[1]}, which is more than weights" if found else "is not a whole file of weights"
        raise UsageError(f"{path} {why}; save its state_dict alone") from None
    for wrapper in ("state_dict", "net", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no state_dict: a mapping of names to tensors is expected")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): value for name, value in state.items()}


def official_state(path, backbone: str) -> tuple[dict[str, Tensor], int]:
    """The checkpoint under our names without dead weights, and its number of classes; UsageError for another file."""
    if backbone not in NAMES:
        raise UsageError(f"unknown backbone {backbone!r}; choose one of {', '.join(NAMES)}")
    state, stage = _read(Path(path)), BACKBONES[backbone].fsr_stage
    kept = {our_name(k, backbone, stage): v for k, v in state.items() if not k.startswith("sub_block1.")}
    return kept, state["aux.0.bias"].numel() if "aux.0.bias" in state else 10


def load_official(path, backbone: str, tau: float = 0.1) -> Classifier:
    """A checkpoint of the authors' code (wkim97/FSR) as a Classifier in eval mode; no code in it is run.

    backbone: of full size; tau: what it was trained with. UsageError where a weight is missing or does not fit.
    """
    state, num_classes = official_state(path, backbone)
    model = build_model(backbone, num_classes, fsr=FSRSpec(tau=tau))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:250]
        raise UsageError(f"{path} is not the authors' {backbone} with FSR: {why}") from None
    return model.eval()
