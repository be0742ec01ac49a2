"""The one way a module gets into a network, and the one way its streams come out."""

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from fsr.files import UsageError
from fsr.models.modes import eval_mode, hooked


class Inserted(nn.Module):
    """A submodule, followed by a module that maps its features to the same shape; `streams(f, y)` gives them first."""

    recorder: tuple[Tensor | None, list[Any]] | None = None  # only inside `trace`: no copy or pickle carries one

    def __init__(self, submodule: nn.Module, module: nn.Module):
        super().__init__()
        self.submodule = submodule
        self.module: Any = module

    def forward(self, *args, **kwargs) -> Tensor:
        f = self.submodule(*args, **kwargs)
        if self.recorder is None:
            return self.module(f)
        streams = self.module.streams(f, self.recorder[0])
        self.recorder[1].append(streams)
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
        """Logits (N, K), and every inserted module's streams in running order; y (N,): what CAS and CIFS train on."""
        streams: list[Any] = []
        places = self.inserted()
        for place in places:
            place.recorder = y, streams
        try:
            logits = self.net(x)
        finally:
            for place in places:
                place.recorder = None
        return logits, streams


def insert_all(net: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put every module after the submodule at its path, changing net, under every name that the submodule has there."""
    for path in sorted(modules, key=lambda path: -path.count(".")):  # an insertion moves what lies below it
        submodule = net.get_submodule(path)
        names = [(part, name) for part in net.modules() for name, own in part._modules.items() if own is submodule]
        place = Inserted(submodule, modules[path])
        for parent, name in names:
            setattr(parent, name, place)


def dry_run(net: nn.Module, x: Tensor, paths=(), *, training: bool = False) -> tuple[Any, dict[str, list[Any]]]:
    """What net gives for x, or the exception that it raises, and all outputs at each path; net is left as it was."""
    parts, outputs = {net.get_submodule(path): path for path in paths}, {path: list[Any]() for path in paths}
    buffers = {name: value.clone() for name, value in net.named_buffers()} if training else {}
    with eval_mode(net), hooked(parts, lambda part, _, y: outputs[parts[part]].append(y)), torch.no_grad():
        net.train(training)
        with torch.random.fork_rng([x.device] * x.is_cuda):
            try:
                given = net(x.clone())
            except Exception as error:  # a foreign network may refuse an input by any exception
                given = error
        for name, value in buffers.items():
            net.get_buffer(name).copy_(value)
    return given, outputs


def _wrong(f: Any, larger: list[Any], x: Tensor) -> str:
    """Why an output is no map (N, C, H, W), or ''; larger: the outputs on twice the image, where net takes it."""
    if len(shape := tuple(getattr(f, "shape", ()))) != 4:
        return f"a {type(f).__name__} {shape}" + ", tokens (N, T, C)" * (len(shape) == 3)
    if larger:  # of maps with their channels last the second size grows with the image
        last = larger[0].shape[1] != f.shape[1]
    else:  # H / W is that of the image
        first, last = (abs(h * x.shape[3] - w * x.shape[2]) for h, w in (f.shape[2:], f.shape[1:3]))
        last = last < first
    return f"{tuple(f.shape)}, maps (N, H, W, C)" if last else ""


def features_at(net: nn.Module, paths: tuple[str, ...], batches: list[Tensor]) -> tuple[Tensor, Any, dict[str, Tensor]]:
    """(The first batch that net takes in eval mode, what it gives, the map (N, C, H, W) at each path) or UsageError."""
    names = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
    for path in (path for path in paths if path not in names):
        near = get_close_matches(path, names, n=12, cutoff=0)
        raise UsageError(f"no module {path!r} in this network; choose one of {', '.join(near)}")
    for x in batches:
        logits, outputs = dry_run(net, x, paths)
        if not isinstance(logits, Exception):
            break
    else:
        why = " ".join(str(logits).split())[:150] or type(logits).__name__
        raise UsageError(f"a dry run on images {tuple(x.shape)} failed ({why}); give example=, a batch that it takes")
    larger = dry_run(net, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), paths)[1]
    for path, seen in outputs.items():
        wrong = f"{len(seen)} outputs" if len(seen) != 1 else _wrong(seen[0], larger[path], x)
        if wrong:
            raise UsageError(f"{path!r} gives {wrong} in a pass, not one map (N, C, H, W); choose another module")
    return x, logits, {path: seen[0] for path, seen in outputs.items()}
