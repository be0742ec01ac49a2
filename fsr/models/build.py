"""Networks with FSR or a peer: those that runs train, any other, and the authors' checkpoints (wkim97/FSR)."""

import copy
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from fsr.config import BACKBONES, DATASETS, PEERS, FSRSpec, PeerSpec, Run
from fsr.files import UsageError, choose
from fsr.models.fsr import FSR
from fsr.models.modes import copied, hooked


class Inserted(nn.Module):
    """A submodule, followed by a module that maps its features to the same shape; `streams(f, y)` gives them first."""

    recorder: list[Any] | None = None  # only inside `trace`: no copy or pickle carries one

    def __init__(self, submodule: nn.Module, module: nn.Module):
        super().__init__()
        self.submodule, self.training = submodule, submodule.training
        self.module: Any = module.train(submodule.training)

    def forward(self, *args, **kwargs) -> Tensor:
        f = self.submodule(*args, **kwargs)
        if self.recorder is None:
            return self.module(f)
        if self.recorder[2] != torch.is_grad_enabled():
            raise UsageError("FSR cannot be trained inside torch.utils.checkpoint: leave its place out of it")
        streams = self.module.streams(f, self.recorder[0])
        self.recorder[1].append(streams)
        return streams.features.clone()  # a network may go on in place (DenseNet), and the recorded ones stay


class Classifier(nn.Module):
    """A network whose call gives logits (N, K) and nothing else; `trace` gives its inserted modules' streams too."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.training = net, net.training

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
            place.recorder = [y, streams, torch.is_grad_enabled()]  # a list: torch.compile would copy a tuple
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
    """What a copy of net gives for x, or the exception that it raises, and all outputs at each path."""
    outputs = {path: list[Any]() for path in paths}
    try:
        net = copied(net).train(training)
        parts = {net.get_submodule(path): path for path in paths}
        noting = hooked(parts, lambda part, _, y: outputs[parts[part]].append(y))
        with noting, torch.no_grad(), torch.random.fork_rng([x.device] * x.is_cuda):
            return net(x.clone()), outputs
    except Exception as error:  # a foreign network may refuse an input, or a copy, by any exception
        return error, outputs


def _wrong(outputs: list[Any], x: Tensor) -> str:
    """Why the outputs at a place are not one map (N, C, H, W), or ''; maps have the image's ratio of H to W."""
    if len(outputs) != 1:
        return f"{len(outputs)} outputs"
    shape = tuple(getattr(outputs[0], "shape", ()))
    if len(shape) != 4 or shape[0] != len(x):
        return f"a {type(outputs[0]).__name__} {shape}"
    first, last = (abs(h * x.shape[3] - w * x.shape[2]) for h, w in (shape[2:], shape[1:3]))
    return f"{shape}, maps (N, H, W, C)" if last < first and shape[2:] != (1, 1) else ""


def features_at(net: nn.Module, paths, batches: Iterable[Tensor]) -> tuple[Tensor, Any, dict[str, Tensor]]:
    """(The first batch that net takes in eval mode, what it gives, the map (N, C, H, W) at each path) or UsageError."""
    names = [name for name, _ in net.named_modules(remove_duplicate=False) if name]
    if missing := [path for path in paths if path not in names]:
        raise UsageError(f"no module {missing[0]!r} in this network; choose one of {', '.join(names)[:500]}")
    high = [x.repeat_interleave(3, dim=2) for x in batches]  # of square images H, W and C can be alike
    for x in (*high, *batches):
        logits, outputs = dry_run(net, x, paths)
        if not isinstance(logits, Exception):
            break
    else:
        why = " ".join(f"{type(logits).__name__} {logits}".split())[:150]
        raise UsageError(f"a dry run on images {tuple(x.shape)} failed ({why}); give example=, a batch that it takes")
    for path, seen in outputs.items():
        if wrong := _wrong(seen, x):
            raise UsageError(f"{path!r} gives {wrong} in a pass, not one map (N, C, H, W); choose another module")
    return x, logits, {path: seen[0] for path, seen in outputs.items()}


def build_model(
    backbone: str, num_classes=10, fsr: FSRSpec | None = None, peer: PeerSpec | None = None, width=None, blocks=None
) -> Classifier:
    """A backbone with or without FSR or a peer, initialised by its own rule; width, blocks: None for its own.

    With the same random state, networks that differ in what is inserted start from the same backbone weights.
    """
    if fsr is not None and peer is not None:
        raise UsageError("a network takes an FSRSpec or a PeerSpec, not both")
    chosen = choose("backbone", backbone, BACKBONES)
    blocks, width = tuple(blocks or chosen.blocks), chosen.width if width is None else width
    if len(blocks) != len(chosen.stages) or min(*blocks, width) < 1:
        raise UsageError(f"{backbone} needs {len(chosen.stages)} numbers of blocks, all above 0, not {width}, {blocks}")
    net = resolve_name(f"fsr.models.{chosen.code}")(num_classes, width, blocks)
    initialise = getattr(net, "initialise", lambda part: None)
    initialise(net)
    usual: tuple[str, ...] = (chosen.fsr_stage,) if fsr else ()
    if peer is not None:
        last_two = [chosen.stages[-1] + chosen.place(i, blocks[-1]) for i in range(blocks[-1])][-2:]
        usual = chosen.stages if PEERS[peer.name].every_stage else tuple(last_two)
    paths = getattr(fsr or peer, "at", ()) or usual
    images, modules = [torch.zeros(1, 3, size, size) for size in (8, 32, 64)], dict[str, nn.Module]()
    for path, f in features_at(net, paths, images)[2].items():
        if peer is None:
            modules[path] = FSR(f.shape[1], num_classes, fsr, reference=chosen.reference)
        else:
            kind = resolve_name(f"fsr.models.{PEERS[peer.name].code}")
            modules[path] = kind(f.shape[1], num_classes, path == paths[-1])
    initialise(nn.ModuleList(modules.values()))
    insert_all(net, modules)
    return Classifier(net)


def model_of(run: Run, num_classes: int | None = None) -> Classifier:
    """The network that a run trains, freshly initialised; num_classes: of `folder:` data, which no run knows."""
    classes = DATASETS[run.dataset].classes if num_classes is None else num_classes
    return build_model(run.backbone, classes, run.fsr, run.peer, run.width, run.blocks)


def _check_outputs(model: nn.Module, x: Tensor, logits: Any, num_classes: int) -> None:
    """UsageError unless a network gives logits (N, K) and nothing else, in both modes."""
    batches = (torch.cat([x, x]), x, x.new_zeros(2, 3, 299, 299))  # Inception's auxiliary outputs need 299 pixels
    outputs = (dry_run(model, batch, training=True)[0] for batch in batches)
    trained = next((output for output in outputs if not isinstance(output, Exception)), logits)
    for output, mode in ((logits, "evaluation"), (trained, "training")):
        given = tuple(output.shape) if isinstance(output, Tensor) else (type(output).__name__,)
        if given[1:] != (num_classes,):
            raise UsageError(f"the network gives {given} in {mode} mode, not logits (N, {num_classes}) alone")


def attach_fsr(model: nn.Module, at, num_classes: int, spec: FSRSpec | None = None, *, example=None) -> Classifier:
    """FSR in any network: changes model, which then runs FSR after each place in `at`, and returns it as a Classifier.

    at: path or paths of `named_modules()`, each with one map (N, C, H, W) as output; num_classes: K of its own head;
    example: a batch for the dry run, else black images. UsageError leaves model as it was. Train it through `trace` and
    `fsr.train.objectives`; under DDP wrap an Objective, which runs the auxiliary head.
    """
    paths = (at,) if isinstance(at, str) else tuple(at) if isinstance(at, list | tuple) else ()
    if not paths or len(set(paths)) < len(paths) or (spec and spec.at not in ((), paths)):
        raise UsageError(f"at must name at least one place, each once, as in spec.at if that is given, not {at!r}")
    if not isinstance(example, Tensor | None):
        raise UsageError(f"example must be a batch of images, a tensor, not a {type(example).__name__}")
    net = model.net if isinstance(model, Classifier) else model
    like: Any = next(((p.device, p.dtype) for p in net.parameters() if p.is_floating_point()), ("cpu", torch.float32))
    black = [torch.zeros(1, 3, size, size).to(*like) for size in (32, 64, 224)]
    x, logits, features = features_at(net, paths, black if example is None else [example])
    _check_outputs(net, x, logits, num_classes)
    modules: dict = {path: FSR(f.shape[1], num_classes, spec).to(*like) for path, f in features.items()}
    trial, streams = Classifier(copied(net).eval()), list[Any]()
    insert_all(trial.net, copy.deepcopy(modules))
    with suppress(Exception), torch.no_grad(), torch.random.fork_rng([x.device] * x.is_cuda):
        streams = [trial.trace(x.clone())[1] for _ in range(2)][-1]
    if len(streams) != len(trial.inserted()):
        raise UsageError(f"FSR does not run at {at!r}: its parent must call it by name; use torch.compile afterwards")
    insert_all(net, modules)
    return Classifier(net)


# Pattern to replacement, one after the other. VGG's block0.3 is conv1_2: stages count from 1 here, and from the second
# on a max-pool opens them. WideResNet's sub_block1, which nothing runs, stays behind.
NAMES: dict[str, dict] = {
    "vgg16": {r"^block(\d+)\.(\d+)": lambda match: f"block{int(match[1]) + 1}.{int(match[2]) + (match[1] != '0')}"},
    "wideresnet34": {r"^bn1\.": "block3.bn.", r"\.layer\.": ".", r"\.convShortcut\.": ".shortcut."},
}
MODULE = {r"^separation\.sep_net": "score", r"^recalibration\.rec_net": "correct", r"^aux\.0": "aux"}


def our_name(name: str, backbone: str, stage: str) -> str:
    """The name in our Classifier of a weight in their network; stage: where FSR sits."""
    inside = {pattern: f"{stage}.module.{ours}" for pattern, ours in MODULE.items()}
    for pattern, ours in (NAMES.get(backbone, {}) | {rf"^{stage}\.": f"{stage}.submodule."} | inside).items():
        name = re.sub(pattern, ours, name)
    return f"net.{name}"


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names, without running any code that it may hold."""
    if not path.is_file():
        raise UsageError(f"no file {path}; give the authors' checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # nothing is executed, but damaged bytes lead the reader into any exception there is
        match = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", str(error))
        why = f"holds {match[1]}, which is more than weights" if match else "is not a whole file of weights"
        raise UsageError(f"{path} {why}; save its state_dict alone") from None
    for wrapper in ("state_dict", "net", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no state_dict: a mapping of names to tensors is expected")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): value for name, value in state.items()}


def official_state(path, backbone: str) -> tuple[dict[str, Tensor], int]:
    """The checkpoint under our names without dead weights, and its number of classes; UsageError for another file."""
    stage, state = choose("backbone", backbone, BACKBONES).fsr_stage, _read(Path(path))
    renamed = {our_name(k, backbone, stage): v for k, v in state.items() if not k.startswith("sub_block1.")}
    return renamed, state["aux.0.bias"].numel() if "aux.0.bias" in state else 10


def load_official(path, backbone: str, tau: float = 0.1) -> Classifier:
    """A checkpoint of the authors' code (wkim97/FSR) as a Classifier in eval mode; no code in it is run.

    backbone: of full size; tau: what it was trained with. UsageError where a weight is missing or does not fit.
    """
    state, num_classes = official_state(path, backbone)
    model = build_model(backbone, num_classes, fsr=FSRSpec(tau=tau))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"{path} is not the authors' {backbone}: {' '.join(str(error).split())[:250]}") from None
    return model.eval()
