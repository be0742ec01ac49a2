"""What a run *is*: frozen, typed dataclasses, and an id made of their content."""

import hashlib
import importlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from fsr.files import UsageError


def _matches(value: Any, kind: Any) -> bool:
    """Is value of this annotation?  bool is not an int here, int is not a float: 1 and 1.0 hash differently."""
    if isinstance(kind, types.UnionType):
        return any(_matches(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_matches(v, inner) for v in value)
    if kind in (int, float):
        return type(value) is kind
    return isinstance(value, kind)


def require(condition: bool, message: str) -> None:
    """Raise UsageError with this message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def check_types(config: Any) -> None:
    """Every field of a dataclass is of its annotation, and finite; UsageError names the first that is not."""
    for f in fields(config):
        value = getattr(config, f.name)
        if not _matches(value, f.type):
            raise UsageError(f"{type(config).__name__}.{f.name} must be {f.type}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{type(config).__name__}.{f.name} must be finite, not {value!r}")


def one_of(config: Any, name: str, allowed: Iterable[str]) -> None:
    """A field's value is one of these; UsageError lists them."""
    value = getattr(config, name)
    require(value in allowed, f"{type(config).__name__}.{name} is {value!r}; choose one of {', '.join(allowed)}")


def positive(config: Any, *names: str) -> None:
    """These fields are above 0, or None where that stands for a default; UsageError names the first that is not."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{type(config).__name__}.{name} must be positive, not {value}")


def not_negative(config: Any, *names: str) -> None:
    """These fields are at least 0, or None; UsageError names the first that is not."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 0, f"{type(config).__name__}.{name} must not be negative, not {value}")


def every_block(stage: str, count: int) -> tuple[str, ...]:
    """The path after each block of a stage that is a list of blocks."""
    return tuple(f"{stage}.{i}" for i in range(count))


def every_relu(stage: str, count: int) -> tuple[str, ...]:
    """A VGG's stage: a max-pool, then three layers to a convolution; the ReLU ends each."""
    return tuple(f"{stage}.{3 * i}" for i in range(1, count + 1))


def activated(stage: str, count: int) -> tuple[str, ...]:
    """A pre-activation stage: the features of the last block end with the stage's own BatchNorm and ReLU."""
    return (*every_block(stage, count - 1), stage)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network with named stages.

    code: `file.Class` in fsr/models, called with (num_classes, width, blocks), where the file may hold `initialise`, a
    rule for the weights of any part of it; fsr_stage: where FSR sits by default; width, blocks: the usual size;
    reference: the channels at fsr_stage then, where S and R have 64 hidden channels; places: the paths after the blocks
    of a stage, by its name and their number.
    """

    code: str
    stages: tuple[str, ...]
    fsr_stage: str
    width: int
    blocks: tuple[int, ...]
    reference: int = 512
    places: Callable[[str, int], tuple[str, ...]] = every_block

    def _module(self) -> Any:
        return importlib.import_module(f"fsr.models.{self.code.partition('.')[0]}")

    @property
    def network(self) -> Callable[..., Any]:
        """The class."""
        return getattr(self._module(), self.code.partition(".")[2])

    def initialise(self, part: Any) -> None:
        """Its own rule for the weights of any part of it; without one they stay as PyTorch made them."""
        getattr(self._module(), "initialise", lambda part: None)(part)

    def last_two(self, blocks: tuple[int, ...]) -> tuple[str, ...]:
        """The paths after the last stage's last two blocks (of a VGG: convolutions), or after its only one."""
        return self.places(self.stages[-1], blocks[-1])[-2:]


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone(
        code="resnet.ResNet",
        stages=("layer1", "layer2", "layer3", "layer4"),
        fsr_stage="layer4",
        width=64,
        blocks=(2, 2, 2, 2),
    ),
    "vgg16": Backbone(
        code="vgg.VGG",
        stages=("block1", "block2", "block3", "block4", "block5"),
        fsr_stage="block4",
        width=64,
        blocks=(2, 2, 3, 3, 3),
        places=every_relu,
    ),
    "wideresnet34": Backbone(
        code="wideresnet.WideResNet",
        stages=("block1", "block2", "block3"),
        fsr_stage="block3",
        width=10,
        blocks=(5, 5, 5),
        reference=640,
        places=activated,
    ),
}


@dataclass(frozen=True, kw_only=True)
class FSRSpec:
    """The FSR module and its controls (Kim et al. 2023, after their code).

    at: module paths, () for the backbone's own place; hidden: channels inside S and R, None for the
    width rule; kind: fsr, separation (f+ alone is passed on), residual (S and R as plain residual
    branches, no mask, no auxiliary loss), aux (auxiliary head only, features untouched).
    """

    at: tuple[str, ...] = ()
    tau: float = 0.1
    lambda_sep: float = 1.0
    lambda_rec: float = 1.0
    hidden: int | None = None
    kind: str = "fsr"
    mask: str = "gumbel"  # gumbel: soft with noise in training; soft: no noise; hard: straight-through with noise
    granularity: str = "element"  # element, channel (one value per channel), spatial (one per position)

    def __post_init__(self):
        check_types(self)
        one_of(self, "kind", ("fsr", "separation", "residual", "aux"))
        one_of(self, "mask", ("gumbel", "soft", "hard"))
        one_of(self, "granularity", ("element", "channel", "spatial"))
        positive(self, "tau", "hidden")
        not_negative(self, "lambda_sep", "lambda_rec")

    @property
    def label(self) -> str:
        """How it shows in a run id: fsr, separation, residual, aux."""
        return self.kind


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """A deactivation peer: fd (Xie 2019), cas (Bai 2021) or cifs (Yan 2021), with its joint-loss weight."""

    name: str
    at: tuple[str, ...] = ()  # () for the peer's own places: fd every stage; cas, cifs the last stage's two blocks
    weight: float = 2.0  # of the mean probe cross-entropy, in training and crafting; fd has no probe

    def __post_init__(self):
        check_types(self)
        one_of(self, "name", ("fd", "cas", "cifs"))
        not_negative(self, "weight")

    @property
    def label(self) -> str:
        """How it shows in a run id."""
        return self.name


__all__ = [
    "AUDIT_VERSION",
    "DATASETS",
    "RECIPE",
    "Analysis",
    "DatasetInfo",
    "Evaluation",
    "FSRSpec",
    "PeerSpec",
    "Run",
    "analysis_id",
    "content",
    "content_id",
    "for_dataset",
    "replace",
    "run_from_dict",
    "run_id",
    "to_dict",
]

AUDIT_VERSION = 2  # of the attacks of the adaptive audit; raise when they change: tables name records of earlier ones
RECIPE = 1  # raise when unchanged configs change meaning; old results keep their ids


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What every run on a data set shares: shape, classes, test images and the field's threat model for it.

    eps, alpha in pixels of [0, 1]; pad 0 means no augmentation; alpha is the training step.
    """

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


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: only what changes its result.  Device, threads, paths and compile are arguments elsewhere."""

    dataset: str = "cifar10"  # a key of DATASETS, or folder:PATH (ImageFolder layout)
    train_size: int | None = None  # images used for training, stratified and seeded; None: all
    test_size: int | None = None  # images of the test set that this run knows; None: all
    holdout: int = 1000  # training images kept back to select `best`; 0: the authors' exact training set
    image_size: int | None = None  # only for folder: data
    backbone: str = "resnet18"  # a key of fsr.config.BACKBONES
    width: int | None = None  # None: the backbone's own (64, 64, 10)
    blocks: tuple[int, ...] | None = None  # blocks per stage; None: the backbone's own
    method: str = "at"  # natural, at, trades, mart
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
    precision: str = "bf16"  # of crafting and of the update's matrix products; weights and losses are float32
    sync_bn: bool = False  # several devices: share BatchNorm statistics; default is per replica
    seed: int = 0
    imported: str | None = None  # digest of the authors' file whose weights these are; None: trained here

    def __post_init__(self):
        check_types(self)
        require(
            self.dataset in DATASETS or self.dataset.startswith("folder:"),
            f"unknown data set {self.dataset!r}; choose one of {', '.join(DATASETS)} or folder:PATH",
        )
        one_of(self, "backbone", BACKBONES)
        one_of(self, "method", ("natural", "at", "trades", "mart"))
        one_of(self, "precision", ("float32", "bf16"))
        sizes = ("train_size", "test_size", "image_size", "width")
        positive(self, "epochs", "batch", "lr", "ema_decay", *sizes)
        not_negative(self, "eps", "alpha", "steps", "holdout", "awp", "momentum", "weight_decay", "seed", "beta")
        require(self.blocks is None or min(self.blocks, default=0) > 0, f"Run.blocks are counts, not {self.blocks}")
        for name in ("eps", "alpha", "momentum", "ema_decay"):  # eps is a fraction of the pixel range, never 8
            require(getattr(self, name) <= 1, f"Run.{name} must be at most 1, not {getattr(self, name)}")

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
        parts = [self.method] + (["awp"] if self.awp else []) + ([self.module.label] if self.module else [])
        return "+".join(parts)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One attack on one checkpoint of a run.

    attack: a key of fsr.attacks.ATTACKS or `clean`; images: None for all the test images the run knows,
    else that many in the fixed stratified order; eps, steps: None for the data set's and attack's own;
    surrogate: the run id whose `last` weights craft a transfer attack.
    """

    attack: str
    checkpoint: str = "last"
    images: int | None = None
    eps: float | None = None
    steps: int | None = None
    surrogate: str | None = None
    intervention: str | None = None  # a key of fsr.models.INTERVENTIONS, applied at test time

    def __post_init__(self):
        check_types(self)
        one_of(self, "checkpoint", ("last", "best", "ema"))
        positive(self, "images", "steps")
        not_negative(self, "eps")
        require(self.eps is None or self.eps <= 1, f"Evaluation.eps must be at most 1, not {self.eps}")

    @property
    def attack_id(self) -> str:
        """File-name safe: the attack's name, and after it only what differs from its default."""
        parts = [self.attack]
        if self.images is not None:
            parts.append(f"n{self.images}")
        if self.eps is not None:
            parts.append(f"eps{self.eps:.5f}")
        if self.steps is not None:
            parts.append(f"steps{self.steps}")
        if self.surrogate is not None:
            parts.append(f"from-{self.surrogate.rsplit('-', 1)[-1]}")
        if self.intervention is not None:
            parts.append(self.intervention)
        return "-".join(parts)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One look inside a checkpoint of a run: streams, masks, maps, features, cost, audit."""

    kind: str
    checkpoint: str = "last"
    images: int | None = None
    budget: str | None = None  # audit: quick or full

    def __post_init__(self):
        check_types(self)
        one_of(self, "kind", ("streams", "masks", "maps", "features", "cost", "audit"))
        one_of(self, "checkpoint", ("last", "best", "ema"))
        positive(self, "images")
        if self.budget is not None:
            one_of(self, "budget", ("quick", "full"))


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
    out = asdict(config)
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            out[f.name] = {"type": type(value).__name__, **asdict(typing.cast(Any, value))}
    return out


def run_from_dict(data: dict) -> Run:
    """The Run that `to_dict` wrote; unknown fields, kinds or types raise UsageError."""
    if not isinstance(data, dict):
        raise UsageError(f"not the config of a run: {str(data)[:60]!r}")
    data = dict(data)
    module = data.get("module")
    try:
        if isinstance(module, dict):
            kind = {"FSRSpec": FSRSpec, "PeerSpec": PeerSpec}[module["type"]]
            rest = {k: tuple(v) if isinstance(v, list) else v for k, v in module.items() if k != "type"}
            data["module"] = kind(**rest)
        named: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return Run(**named)
    except (KeyError, TypeError) as error:
        raise UsageError(f"not the config of a run: {error}") from None


def for_dataset(dataset: str, **changes) -> Run:
    """A Run with the data set's own eps, alpha and lr, and any changes."""
    if dataset not in DATASETS:
        raise UsageError(f"unknown data set {dataset!r}; choose one of {', '.join(DATASETS)}")
    info = DATASETS[dataset]
    return Run(**{"dataset": dataset, "eps": info.eps, "alpha": info.alpha, "lr": info.lr, **changes})
