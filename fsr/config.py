"""What a run is: frozen, checked dataclasses, and an id made of their content."""

import hashlib
import importlib
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from dataclasses import replace as replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from fsr.files import UsageError

AUDIT_VERSION = 3  # of the attacks of the adaptive audit; raise it when they change
RECIPE = 1  # raise it when unchanged configs change meaning; old results keep their ids


def require(condition: bool, message: str) -> None:
    """Raise UsageError with this message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def _matches(value: Any, kind: Any) -> bool:
    """Is value of this annotation?  bool is no int and int no float here: 1 and 1.0 hash differently."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, part) for part in parts)
    if origin is Annotated:  # a string and its choices
        return isinstance(value, str) and value in parts[1:]
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(v, parts[0]) for v in value)
    return type(value) is kind


class Checked:
    """Base of the configs: UsageError names the first field that is not of its annotation, finite and not negative.

    positive: fields above 0; fraction: fields of at most 1. A NumPy number becomes the Python number of its value.
    """

    positive: ClassVar[tuple[str, ...]] = ()
    fraction: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for f in fields(typing.cast(Any, self)):
            value, name = getattr(self, f.name), f"{type(self).__name__}.{f.name}"
            if isinstance(value, np.generic):
                value = value.item()
                object.__setattr__(self, f.name, value)
            if not _matches(value, f.type):
                choices = [c for part in (f.type, *typing.get_args(f.type)) for c in typing.get_args(part)]
                names = [c for c in choices if isinstance(c, str)]
                require(not names, f"{name} is {value!r}; choose one of {', '.join(names)}")
                raise UsageError(f"{name} must be {getattr(f.type, '__name__', f.type)}, not {value!r}")
            if isinstance(value, int | float):
                require(math.isfinite(value), f"{name} must be finite, not {value!r}")
                require(value >= 0, f"{name} must not be negative, not {value}")
                require(value > 0 or f.name not in self.positive, f"{name} must be positive, not {value}")
                require(value <= 1 or f.name not in self.fraction, f"{name} must be at most 1, not {value}")


def _named(code: str, default: Any = None) -> Any:
    """What `file.name` in fsr/models is."""
    file, _, name = code.partition(".")
    return getattr(importlib.import_module(f"fsr.models.{file}"), name, default)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network with named stages.

    code: `file.Class` in fsr/models, called with (num_classes, width, blocks), where the file may hold `initialise`, a
    rule for the weights of any part of it; fsr_stage: where FSR sits by default; width, blocks: the usual size;
    reference: the channels at fsr_stage then; places: the paths after each block, of a stage and its number of blocks.
    """

    code: str
    stages: tuple[str, ...]
    fsr_stage: str
    blocks: tuple[int, ...]
    width: int = 64
    reference: int = 512
    places: Callable[[str, int], list[str]] = lambda stage, count: [f"{stage}.{i}" for i in range(count)]

    @property
    def network(self) -> Callable[..., Any]:
        """The class."""
        return _named(self.code)

    def initialise(self, part: Any) -> None:
        """Its own rule for the weights of any part of it; without one they stay as PyTorch made them."""
        _named(f"{self.code.partition('.')[0]}.initialise", lambda part: None)(part)


# A new backbone is one file in fsr/models and one entry here: Run, build_model and the commands then take its name.
BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(
        code="resnet.ResNet", stages=("layer1", "layer2", "layer3", "layer4"), fsr_stage="layer4", blocks=(2, 2, 2, 2)
    ),
    "vgg16": Backbone(
        code="vgg.VGG",
        stages=("block1", "block2", "block3", "block4", "block5"),
        fsr_stage="block4",
        blocks=(2, 2, 3, 3, 3),
        places=lambda stage, count: [f"{stage}.{3 * i}" for i in range(1, count + 1)],  # after each ReLU
    ),
    "wideresnet34": Backbone(
        code="wideresnet.WideResNet",
        stages=("block1", "block2", "block3"),
        fsr_stage="block3",
        blocks=(5, 5, 5),
        width=10,
        reference=640,
        places=lambda stage, count: [*(f"{stage}.{i}" for i in range(count - 1)), stage],  # after its own last ReLU
    ),
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A module that FSR is compared with.

    code: `file.name` in fsr/models, called with (channels, num_classes, is_last) for each place; the module maps
    features to the same shape and has `streams(f, y) -> (features, aux)`; every_stage: by default after every stage,
    else after the last stage's two last blocks.
    """

    code: str
    every_stage: bool = False

    @property
    def build(self) -> Callable[..., Any]:
        """Makes one module."""
        return _named(self.code)


# A new peer is one file in fsr/models and one entry here: PeerSpec and build_model then take its name.
PEERS: dict[str, Peer] = {
    "fd": Peer(code="peers.FeatureDenoising", every_stage=True),
    "cas": Peer(code="peers.CAS"),
    "cifs": Peer(code="peers.CIFS"),
}


@dataclass(frozen=True, kw_only=True)
class FSRSpec(Checked):
    """The FSR module and its controls (Kim et al. 2023, after their code).

    at: module paths, () for the backbone's own place; hidden: channels inside S and R, None for the width rule;
    kind: fsr, separation (f+ alone is passed on), residual (S and R as plain residual branches, no mask, no auxiliary
    loss), aux (auxiliary head only, features untouched); mask: gumbel (with noise in training), soft (no noise), hard
    (straight-through); granularity: one mask value per activation, channel or position.
    """

    at: tuple[str, ...] = ()
    tau: float = 0.1
    lambda_sep: float = 1.0
    lambda_rec: float = 1.0
    hidden: int | None = None
    kind: Annotated[str, "fsr", "separation", "residual", "aux"] = "fsr"
    mask: Annotated[str, "gumbel", "soft", "hard"] = "gumbel"
    granularity: Annotated[str, "element", "channel", "spatial"] = "element"
    positive = ("tau", "hidden")


@dataclass(frozen=True, kw_only=True)
class PeerSpec(Checked):
    """A deactivation peer: fd (Xie 2019), cas (Bai 2021) or cifs (Yan 2021), with its joint-loss weight."""

    name: str
    at: tuple[str, ...] = ()  # () for the peer's own places
    weight: float = 2.0  # of the mean probe cross-entropy, in training and crafting; fd has no probe

    def __post_init__(self):
        super().__post_init__()
        require(self.name in PEERS, f"PeerSpec.name is {self.name!r}; choose one of {', '.join(PEERS)}")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What every run on a data set shares; eps and alpha (the training step) in pixels of [0, 1], pad 0: no crops."""

    classes: int
    size: int
    test: int
    eps: float
    alpha: float
    lr: float
    pad: int
    flip: bool


# eps 8/255 is meaningless on 8x8 digits: natural training survives it. 0.15 was chosen because it does not.
DATASETS = {
    "digits": DatasetInfo(classes=10, size=8, test=500, eps=0.15, alpha=0.15 / 4, lr=0.1, pad=0, flip=False),
    "cifar10": DatasetInfo(classes=10, size=32, test=10_000, eps=8 / 255, alpha=2 / 255, lr=0.1, pad=4, flip=True),
    "svhn": DatasetInfo(classes=10, size=32, test=26_032, eps=8 / 255, alpha=1 / 255, lr=0.01, pad=0, flip=False),
    "tinyimagenet": DatasetInfo(
        classes=200, size=64, test=10_000, eps=8 / 255, alpha=2 / 255, lr=0.1, pad=8, flip=True
    ),
}


def _resolved(dataset: str) -> str:
    """folder:PATH with its absolute path, so that one folder gives one run id; other names as they are."""
    try:
        kind, colon, path = dataset.partition("folder:")
        return dataset if kind or not colon else colon + str(Path(path).expanduser().resolve())
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(f"{dataset[:80]!r} is not a path ({str(error)[:80]}); give folder:PATH") from None


@dataclass(frozen=True, kw_only=True)
class Run(Checked):
    """One training: only what changes its result.  Device, threads, paths and compile are arguments elsewhere."""

    dataset: str = "cifar10"  # a key of DATASETS, or folder:PATH (ImageFolder layout; the path is made absolute)
    train_size: int | None = None  # images used for training, stratified and seeded; None: all
    test_size: int | None = None  # images of the test set that this run knows; None: all
    holdout: int = 1000  # training images kept back to select `best`; 0: the authors' exact training set
    image_size: int | None = None  # only for folder: data
    backbone: str = "resnet18"  # a key of BACKBONES
    width: int | None = None  # None: the backbone's own (64, 64, 10)
    blocks: tuple[int, ...] | None = None  # blocks per stage; None: the backbone's own
    method: Annotated[str, "natural", "at", "trades", "mart"] = "at"
    module: FSRSpec | PeerSpec | None = None
    beta: float | None = None  # TRADES, MART; None: 6, 5
    awp: float = 0.0  # gamma of adversarial weight perturbation; 0: off
    eps: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    epochs: int = 100
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema_decay: float = 0.9995
    precision: Annotated[str, "float32", "bf16"] = "bf16"  # of crafting and products; weights, losses are float32
    sync_bn: bool = False  # several devices: share BatchNorm statistics; default is per replica
    seed: int = 0
    imported: str | None = None  # digest of the authors' file whose weights these are; None: trained here
    positive = ("epochs", "batch", "lr", "ema_decay", "train_size", "test_size", "image_size", "width")
    fraction = ("eps", "alpha", "momentum", "ema_decay")  # eps is a fraction of the pixel range, never 8

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "dataset", _resolved(self.dataset))
        known = self.dataset in DATASETS or self.dataset.startswith("folder:")
        require(known, f"unknown data set {self.dataset!r}; choose one of {', '.join(DATASETS)} or folder:PATH")
        require(self.backbone in BACKBONES, f"Run.backbone is {self.backbone!r}; choose one of {', '.join(BACKBONES)}")
        require(self.blocks is None or min(self.blocks, default=0) > 0, f"Run.blocks are counts, not {self.blocks}")

    @property
    def fsr(self) -> FSRSpec | None:
        """The FSR spec, or None for a baseline or a peer."""
        return self.module if isinstance(self.module, FSRSpec) else None

    @property
    def peer(self) -> PeerSpec | None:
        """The peer spec, or None."""
        return self.module if isinstance(self.module, PeerSpec) else None

    @property
    def label(self) -> str:
        """The method as tables print it: at, at+fsr, trades, at+cas, at+awp+fsr."""
        module = self.fsr.kind if self.fsr else self.peer.name if self.peer else ""
        return "+".join(filter(None, (self.method, "awp" if self.awp else "", module)))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Checked):
    """One attack on one checkpoint of a run.

    attack: a key of fsr.attacks.ATTACKS or `clean`; images: None for all the test images the run knows, else that many
    in the fixed stratified order; eps, steps: None for the run's and attack's own; surrogate: the run id whose `last`
    weights craft a transfer attack; intervention: a key of fsr.models.INTERVENTIONS, applied at test time.
    """

    attack: str
    checkpoint: Annotated[str, "last", "best", "ema"] = "last"
    images: int | None = None
    eps: float | None = None
    steps: int | None = None
    surrogate: str | None = None
    intervention: str | None = None
    positive = ("images", "steps")
    fraction = ("eps",)

    @property
    def attack_id(self) -> str:
        """File-name safe: the attack's name, and after it only what differs from its default."""
        parts = {
            "n": self.images,
            "eps": None if self.eps is None else f"{self.eps:.5f}",
            "steps": self.steps,
            "from-": None if self.surrogate is None else self.surrogate.rsplit("-", 1)[-1],
            "": self.intervention,
        }
        return "-".join([self.attack, *(f"{name}{value}" for name, value in parts.items() if value is not None)])


@dataclass(frozen=True, kw_only=True)
class Analysis(Checked):
    """One analysis of a checkpoint of a run; budget: of an audit; images: None for the kind's own number."""

    kind: Annotated[str, "streams", "masks", "maps", "features", "cost", "audit"]
    checkpoint: Annotated[str, "last", "best", "ema"] = "last"
    images: int | None = None
    budget: Annotated[str, "quick", "full"] | None = None
    positive = ("images",)


def content(config) -> dict:
    """The fields that differ from their defaults: a field added later leaves old ids as they are."""
    out = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if value != f.default or type(value) is not type(f.default):
            out[f.name] = [type(value).__name__, content(value)] if is_dataclass(value) else value
    return out


def content_id(config) -> str:
    """Ten hex digits that depend on every field's value and on nothing else."""
    text = json.dumps([RECIPE, type(config).__name__, content(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_id(run: Run) -> str:
    """Readable prefix for people, content hash for machines: cifar10-resnet18-at+fsr-s0-c195b1c1cb."""
    dataset = run.dataset if run.dataset in DATASETS else "folder"
    return f"{dataset}-{run.backbone}-{run.label}-s{run.seed}-{content_id(run)}"


def analysis_id(analysis: Analysis) -> str:
    """`kind` and a short content hash, file-name safe."""
    return f"{analysis.kind}-{content_id(analysis)[:6]}"


def to_dict(config) -> dict:
    """Every field, as plain JSON types, with the class of a nested spec beside its fields."""
    module = getattr(config, "module", None)
    return asdict(config) | ({"module": {"type": type(module).__name__, **asdict(module)}} if module else {})


def _tuples(data: dict) -> dict[str, Any]:
    return {str(k): tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def run_from_dict(data: dict) -> Run:
    """The Run that `to_dict` wrote; unknown fields, kinds or types raise UsageError."""
    require(isinstance(data, dict), f"not the config of a run: {str(data)[:60]!r}")
    try:
        named = _tuples(data)
        if isinstance(module := named.get("module"), dict):
            kind = {"FSRSpec": FSRSpec, "PeerSpec": PeerSpec}[module["type"]]
            named["module"] = kind(**_tuples({k: v for k, v in module.items() if k != "type"}))
        return Run(**named)
    except (KeyError, TypeError) as error:
        raise UsageError(f"not the config of a run: {error}") from None


def for_dataset(dataset: str, **changes) -> Run:
    """A Run with the data set's own eps, alpha and lr, and any changes."""
    require(dataset in DATASETS, f"unknown data set {dataset!r}; choose one of {', '.join(DATASETS)}")
    info = DATASETS[dataset]
    return Run(**{"dataset": dataset, "eps": info.eps, "alpha": info.alpha, "lr": info.lr, **changes})


def diff(a, b) -> dict[str, tuple[Any, Any]]:
    """Field to (value in a, value in b) where two configs of one class differ; a spec's own fields as `module.tau`."""
    out: dict[str, tuple[Any, Any]] = {}
    for f in fields(a):
        left, right = getattr(a, f.name), getattr(b, f.name)
        if is_dataclass(left) and type(left) is type(right):
            out |= {f"{f.name}.{name}": pair for name, pair in diff(left, right).items()}
        elif left != right:
            out[f.name] = (left, right)
    return out
