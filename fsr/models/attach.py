"""FSR in any network, after it has shown in a dry run that it can take it.

N images, C channels, H and W positions, K classes.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fsr.config import FSRSpec
from fsr.files import UsageError
from fsr.models.fsr import FSR
from fsr.models.insert import Classifier, features_at, first_accepted, insert_all
from fsr.models.modes import eval_mode

SIZES = (32, 64, 224)  # pixels of the black images that a network is tried on
LARGE = 299  # pixels that Inception's auxiliary outputs need


def _training_output(model: nn.Module, batches: list[Tensor]) -> Any:
    """What the network, left as it was, gives in training mode for the first batch that it takes; None without one."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    output = None
    with eval_mode(model), torch.random.fork_rng([batches[0].device] * batches[0].is_cuda), torch.no_grad():
        model.train()  # until eval_mode gives every part its own mode back
        for x in batches:
            with suppress(Exception):
                output = model(x.clone())
                break
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return output


def _check_outputs(logits: Any, in_training: Any, num_classes: int) -> None:
    """Raise UsageError unless a network gives logits (N, K) and nothing else, in both modes."""
    for output, mode in ((logits, "evaluation"), (in_training, "training")):
        if output is not None and not isinstance(output, Tensor):
            what = f"a {type(output).__name__} in {mode} mode, not logits (N, K) alone"
            raise UsageError(
                f"the network gives {what}; switch its auxiliary outputs off (aux_logits=False) or wrap it"
            )
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        what = f"{tuple(logits.shape)}, not logits (N, {num_classes})"
        raise UsageError(f"the network gives {what}: num_classes must be the number of classes of its own head")


def attach_fsr(
    model: nn.Module,
    at: str | tuple[str, ...],
    num_classes: int,
    spec: FSRSpec | None = None,
    *,
    example: Tensor | None = None,
) -> Classifier:
    """FSR in any network: changes model, which then runs FSR after each place in `at`, and returns it as a Classifier.

    at: module paths as in `named_modules()`, whose output is one map (N, C, H, W); num_classes: K of the network's own
    head; example: a batch for the dry run that finds C, else black images. UsageError leaves model as it was. Train it
    through `trace` and `fsr.train.objectives`; under DDP wrap an Objective, which runs the auxiliary head.
    """
    spec = FSRSpec() if spec is None else spec
    paths = (at,) if isinstance(at, str) else tuple(at)
    if not paths or len(set(paths)) < len(paths):
        raise UsageError(f"at must name at least one place, each once, not {at!r}")
    if isinstance(model, Classifier):
        model = model.net
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    black = [like.new_zeros(1, 3, size, size) for size in SIZES]
    x, logits = first_accepted(model, black if example is None else [example])
    features = {path: features_at(model, path, x) for path in paths}
    batches = [torch.cat([x, x]), like.new_zeros(2, 3, LARGE, LARGE)] if example is None else [x]
    _check_outputs(logits, _training_output(model, batches), num_classes)
    types = [p.dtype for p in model.parameters() if p.is_floating_point()]
    modules: dict[str, nn.Module] = {}
    for path, f in features.items():
        dtype = f.dtype if f.dtype in types or not types else types[0]  # autocast's is no weight's
        modules[path] = FSR(f.shape[1], num_classes, spec).to(f.device, dtype)
    insert_all(model, modules)
    return Classifier(model)
