"""The one way a module gets into a network, and the one way its streams come out.

N images, K classes.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import UsageError
from fsr.models.modes import eval_mode


class Recorder:
    """What one `trace` collects: the labels it was given and the streams of each inserted module, in running order."""

    def __init__(self, y: Tensor | None):
        self.y = y
        self.streams: list[Any] = []


class Inserted(nn.Module):
    """A submodule of a network, followed by a module that changes its features.

    module: maps features to features of the same shape; `module.streams(f, y)` gives a named tuple whose first field
    is the same features.
    """

    recorder: Recorder | None = None  # only inside `trace`: copies, pickles and compiled graphs never carry one

    def __init__(self, submodule: nn.Module, module: nn.Module):
        super().__init__()
        self.submodule = submodule
        self.module: Any = module

    def forward(self, *args, **kwargs) -> Tensor:
        f = self.submodule(*args, **kwargs)
        if self.recorder is None:
            return self.module(f)
        streams = self.module.streams(f, self.recorder.y)
        self.recorder.streams.append(streams)
        return streams.features.clone()  # a network may go on in place (DenseNet), and the recorded ones stay


class Classifier(nn.Module):
    """A network whose call gives logits (N, K) and nothing else; `trace` gives its inserted modules' streams too."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def inserted(self) -> list[Inserted]:
        """Every insertion, in the order of `modules()`."""
        return [part for part in self.modules() if isinstance(part, Inserted)]

    def trace(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Any]]:
        """Logits (N, K), and the streams that produced them, one entry per inserted module in running order.

        y: (N,) int64, read only in training mode and only by modules that need labels there (CAS, CIFS).
        """
        recorder, places = Recorder(y), self.inserted()
        for place in places:
            place.recorder = recorder
        try:
            logits = self.net(x)
        finally:
            for place in places:
                place.recorder = None
        return logits, recorder.streams


def submodule_at(net: nn.Module, path: str) -> nn.Module:
    """The submodule at a path as in `named_modules()`; an unknown path raises UsageError with the ones nearby."""
    names = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
    if path not in names:
        parent = path.rpartition(".")[0]
        near = [n for n in names if n.rpartition(".")[0] == parent] or [n for n in names if "." not in n]
        raise UsageError(f"no module {path!r} in this network; choose one of {', '.join(near[:20])}")
    return net.get_submodule(path)


def insert_all(net: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put every module after the submodule at its path, changing net, under every name that the submodule has there."""
    for path in sorted(modules, key=lambda path: -path.count(".")):  # an insertion moves what lies below it
        submodule = submodule_at(net, path)
        inserted = Inserted(submodule, modules[path])
        for parent in list(net.modules()):
            for name, child in list(parent._modules.items()):  # named_children() leaves second names out
                if child is submodule:
                    setattr(parent, name, inserted)


def first_accepted(net: nn.Module, batches: list[Tensor]) -> tuple[Tensor, Any]:
    """(The first batch that net takes, what it gives) in eval mode; UsageError with the reason when it takes none."""
    reason = ""
    for x in batches:
        try:
            with eval_mode(net), torch.no_grad():
                return x, net(x.clone())
        except Exception as error:  # a foreign network may refuse an input by any exception
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:150]
    sizes = ", ".join(str(tuple(x.shape)) for x in batches)
    raise UsageError(f"a dry run on images {sizes} failed ({reason}); give example=, a batch that the network takes")


def _outputs(net: nn.Module, path: str, x: Tensor) -> list[Any]:
    """What the submodule at path gives when net runs on x in eval mode, also where a later layer fails."""
    outputs: list[Any] = []
    handle = submodule_at(net, path).register_forward_hook(lambda module, args, output: outputs.append(output))
    with eval_mode(net), torch.no_grad(), suppress(Exception):  # a network may take one size only
        net(x)
    handle.remove()
    return outputs


def _has_channels_last(f: Tensor, net: nn.Module, path: str, x: Tensor) -> bool:
    """Are these maps (N, H, W, C)?  Their second size grows with the image; of one-size networks, H / W is x's."""
    if larger := _outputs(net, path, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)):
        return larger[0].shape[1] != f.shape[1]
    h, w = x.shape[-2:]
    first, last = (abs(a * w - b * h) for a, b in (f.shape[2:], f.shape[1:3]))  # 0 where a / b is h / w
    return last < first


def features_at(net: nn.Module, path: str, x: Tensor) -> Tensor:
    """Features (N, C, H, W) after the submodule at path, by a dry run on x that changes nothing.

    Raises UsageError when the submodule does not run exactly once, or gives anything but such a map.
    """
    outputs = _outputs(net, path, x.clone())
    if len(outputs) != 1:
        raise UsageError(f"{path!r} runs {len(outputs)} times in a forward pass; choose a module that runs once")
    f = outputs[0]
    if not isinstance(f, Tensor):
        wrong = f"a {type(f).__name__}, not one feature map"
    elif f.ndim == 3:
        wrong = f"tokens (N, T, C) = {tuple(f.shape)}, where 3x3 convolutions mean nothing, not maps (N, C, H, W)"
    elif f.ndim != 4:
        wrong = f"{tuple(f.shape)}, not a feature map (N, C, H, W)"
    elif _has_channels_last(f, net, path, x):
        wrong = f"{tuple(f.shape)}, maps (N, H, W, C), not (N, C, H, W) with their channels first"
    else:
        return f
    raise UsageError(f"{path!r} gives {wrong}; choose another module, such as a convolutional stage")
