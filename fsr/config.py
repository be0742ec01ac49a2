"""What a run is: frozen, checked dataclasses, and an id made of their content."""

from __future__ import annotations  # the checks below read an annotation as text

import json
import os
import sys
from collections import namedtuple
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from dataclasses import replace as replace
from typing import Any, ClassVar, cast

import numpy as np

from fsr.files import UsageError, sha256

PROTOCOL = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # the authors' attacks; `ensemble`: correct under all of them
AUDIT_VERSION = 4  # of the attacks of the adaptive audit; raise it when they change
RECIPE = 1  # raise it when unchanged configs change meaning; old results keep their ids


def one_of(choices: Iterable[str], default: Any = MISSING) -> Any:
    """A field that is one of these, or None where its annotation says so."""
    return field(default=default, metadata={"choices": choices})


class Checked:
    """Base of the configs: UsageError names the first field that is not of its annotation, finite and not negative.

    bool is no int and int no float here: 1 and 1.0 would hash differently.
    """

    positive: ClassVar[tuple[str, ...]] = ()  # fields above 0
    fraction: ClassVar[tuple[str, ...]] = ()  # fields of at most 1

    def __post_init__(self) -> None:
        for f in fields(cast(Any, self)):
            value, above = getattr(self, f.name), f.name in self.positive
            if isinstance(value, np.generic | list | tuple):  # NumPy's numbers, and tuples as JSON has them
                parts = [value] if isinstance(value, np.generic) else value
                plain = tuple(part.item() if isinstance(part, np.generic) else part for part in parts)
                object.__setattr__(self, f.name, value := plain[0] if parts is not value else plain)
            kind = type(value).__name__
            if isinstance(value, tuple):  # of values of one type, and not empty
                kind = f"tuple[{'/'.join({type(v).__name__ for v in value})}, ...]"
            choices, most = f.metadata.get("choices", [value]), 1 if f.name in self.fraction else sys.float_info.max
            if kind not in str(f.type).split(" | ") and value is not f.default:
                allowed = f.type
            elif value not in (None, *choices):
                allowed = f"one of {', '.join(choices)}"
            elif isinstance(value, int | float) and not (0 <= value <= most and (value or not above)):
                allowed = f"finite, {'above' if above else 'at least'} 0{' and at most 1' if most == 1 else ''}"
            else:
                continue
            raise UsageError(f"{type(self).__name__}.{f.name} must be {allowed}, not {value!r} ({kind})")


# code: `file.Class` of fsr/models, called with (num_classes, width, blocks), with its stages as attributes and maybe an
# `initialise(part)` of any network; blocks: of each stage; fsr_stage: FSR's usual place, with `reference` channels;
# place(i, n): the path, below its stage, after block i of n.
Backbone = namedtuple(
    "Backbone", "code stages fsr_stage blocks width reference place", defaults=(64, 512, lambda i, n: f".{i}")
)
# code: `file.name`, called with (channels, num_classes, is_last) for each place, every stage or the last one's last two
# blocks; has `streams(f, y) -> (features, aux)`. probe: aux has logits "probe", whose cross-entropy is added.
Peer = namedtuple("Peer", "code every_stage probe", defaults=(False, False))

# A new backbone, or peer, is one file in fsr/models and one entry here: build_model and the commands take its name.
LAYERS, BLOCKS = (tuple(f"{name}{i}" for i in range(1, 6)) for name in ("layer", "block"))
BACKBONES = {
    "resnet18": Backbone("nets.ResNet", LAYERS[:4], "layer4", (2, 2, 2, 2)),
    "vgg16": Backbone("nets.VGG", BLOCKS, "block4", (2, 2, 3, 3, 3), place=lambda i, n: f".{3 * i + 3}"),
    "wideresnet34": Backbone(  # whose last block is followed by the stage's own ReLU
        "nets.WideResNet", BLOCKS[:3], "block3", (5, 5, 5), 10, 640, lambda i, n: f".{i}" * (i < n - 1)
    ),
}
PEERS = {"fd": Peer("peers.FeatureDenoising", every_stage=True)}
PEERS |= {name: Peer(f"peers.{name.upper()}", probe=True) for name in ("cas", "cifs")}


@dataclass(frozen=True, kw_only=True)
class FSRSpec(Checked):
    """The FSR module and its controls (Kim et al. 2023, after their code)."""

    at: tuple[str, ...] = ()  # module paths; () for the backbone's own place
    tau: float = 0.1
    lambda_sep: float = 1.0
    lambda_rec: float = 1.0
    hidden: int | None = None  # channels inside S and R; None for the width rule
    kind: str = one_of(("fsr", "separation", "residual", "aux"), "fsr")  # f+ alone; S and R without mask; head alone
    mask: str = one_of(("gumbel", "soft", "hard"), "gumbel")  # noise in training, none, straight-through
    granularity: str = one_of(("element", "channel", "spatial"), "element")
    positive = ("tau", "hidden")


@dataclass(frozen=True, kw_only=True)
class PeerSpec(Checked):
    """A deactivation peer: fd (Xie 2019), cas (Bai 2021) or cifs (Yan 2021), with its joint-loss weight."""

    name: str = one_of(PEERS)
    at: tuple[str, ...] = ()  # () for the peer's own places
    weight: float = 2.0  # of the mean probe cross-entropy, in training and crafting; fd has no probe


# What every run on a data set shares; eps and alpha (the training step) in pixels of [0, 1]; pad 0: no crops.
DataInfo = namedtuple("DataInfo", "classes size test eps alpha lr pad flip", defaults=(8 / 255, 2 / 255, 0.1, 0, False))
DATASETS = {
    # eps 8/255 is meaningless on 8x8 digits: natural training survives it. 0.15 was chosen because it does not.
    "digits": DataInfo(classes=10, size=8, test=500, eps=0.15, alpha=0.15 / 4),
    "cifar10": DataInfo(classes=10, size=32, test=10_000, pad=4, flip=True),
    "svhn": DataInfo(classes=10, size=32, test=26_032, alpha=1 / 255, lr=0.01),
    "tinyimagenet": DataInfo(classes=200, size=64, test=10_000, pad=8, flip=True),
}


@dataclass(frozen=True, kw_only=True)
class Run(Checked):
    """One training: only what changes its result.  Device, threads, paths and compile are arguments elsewhere."""

    dataset: str = "cifar10"  # a key of DATASETS, or folder:PATH (ImageFolder layout; the path is made absolute)
    train_size: int | None = None  # images used for training, stratified and seeded; None: all
    test_size: int | None = None  # images of the test set that this run knows; None: all
    holdout: int = 1000  # training images kept back to select `best`; 0: the authors' exact training set
    image_size: int | None = None  # only for folder: data
    backbone: str = one_of(BACKBONES, "resnet18")
    width: int | None = None  # None: the backbone's own (64, 64, 10)
    blocks: tuple[int, ...] | None = None  # blocks per stage; None: the backbone's own
    method: str = one_of(("natural", "at", "trades", "mart"), "at")
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
    precision: str = one_of(("float32", "bf16"), "bf16")  # of crafting and products; weights, losses are float32
    sync_bn: bool = False  # several devices: share BatchNorm statistics; default is per replica
    seed: int = 0
    imported: str | None = None  # digest of the authors' file whose weights these are; None: trained here
    positive = ("epochs", "batch", "lr", "ema_decay", "train_size", "test_size", "image_size", "width")
    fraction = ("eps", "alpha", "momentum", "ema_decay")  # eps is a fraction of the pixel range, never 8

    def __post_init__(self):
        super().__post_init__()
        kind, _, path = self.dataset.partition(":")
        if kind == "folder" and path:  # one folder of images gives one run id, however it is named
            object.__setattr__(self, "dataset", f"folder:{os.path.realpath(os.path.expanduser(path))}")
        elif self.dataset not in DATASETS:
            raise UsageError(f"unknown data set {self.dataset!r}; choose one of {', '.join(DATASETS)} or folder:PATH")

    @property
    def fsr(self) -> FSRSpec | None:
        return self.module if isinstance(self.module, FSRSpec) else None

    @property
    def peer(self) -> PeerSpec | None:
        return self.module if isinstance(self.module, PeerSpec) else None

    @property
    def label(self) -> str:
        """The method as tables print it: at, at+fsr, trades, at+cas, at+awp+fsr."""
        module = self.fsr.kind if self.fsr else self.peer.name if self.peer else ""
        return "+".join(filter(None, (self.method, "awp" if self.awp else "", module)))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Checked):
    """One attack on one checkpoint of a run."""

    attack: str  # of fsr.attacks.ATTACKS, or `clean`
    checkpoint: str = one_of(("last", "best", "ema"), "last")
    images: int | None = None  # that many in the fixed stratified order; None: all that the run knows
    eps: float | None = None  # None: the run's own
    steps: int | None = None  # None: the attack's own
    surrogate: str | None = None  # the run id whose `last` weights craft a transfer attack
    intervention: str | None = None  # of fsr.models.INTERVENTIONS, applied at test time
    positive = ("images", "steps")
    fraction = ("eps",)

    @property
    def attack_id(self) -> str:
        """File-name safe: the attack's name, and after it only what differs from its default."""
        eps = None if self.eps is None else f"{self.eps:.5f}"
        source = None if self.surrogate is None else self.surrogate.rsplit("-", 1)[-1]
        parts = {"n": self.images, "eps": eps, "steps": self.steps, "from-": source, "": self.intervention}
        return "-".join([self.attack, *(f"{name}{value}" for name, value in parts.items() if value is not None)])


@dataclass(frozen=True, kw_only=True)
class Analysis(Checked):
    """One analysis of a checkpoint of a run; budget: of an audit; images: None for all that the run knows."""

    kind: str = one_of(("streams", "masks", "maps", "features", "cost", "audit"))
    checkpoint: str = one_of(("last", "best", "ema"), "last")
    images: int | None = None
    budget: str | None = one_of(("quick", "full"), None)
    positive = ("images",)


def content_id(config) -> str:
    """Ten hex digits that depend on every field's value and on nothing else; a field added later changes no old id."""

    def content(one) -> list:
        return [type(one).__name__, {f.name: v for f in fields(one) if (v := getattr(one, f.name)) != f.default}]

    text = json.dumps([RECIPE, *content(config)], sort_keys=True, default=content)
    return sha256(text.encode())[:10]


def run_id(run: Run) -> str:
    """Readable prefix for people, content hash for machines: cifar10-resnet18-at+fsr-s0-c195b1c1cb."""
    dataset = run.dataset if run.dataset in DATASETS else "folder"
    return f"{dataset}-{run.backbone}-{run.label}-s{run.seed}-{content_id(run)}"


def to_dict(config) -> dict:
    """Every field, as plain JSON types, with the class of a nested spec beside its fields."""
    module = getattr(config, "module", None)
    return asdict(config) | ({"module": {"type": type(module).__name__, **asdict(module)}} if module else {})


def run_from_dict(data: dict) -> Run:
    """The Run that `to_dict` wrote; unknown fields, kinds or types raise UsageError."""
    try:
        module = dict(data.get("module") or {})
        kind: Any = {"FSRSpec": FSRSpec, "PeerSpec": PeerSpec}[module.pop("type")] if module else None
        run = Run(**data | {"module": kind and kind(**module)})
        object.__setattr__(run, "dataset", data.get("dataset", run.dataset))  # its folder may have become a link since
        return run
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not the config of a run: {error}") from None


def for_dataset(dataset: str, **changes) -> Run:
    """A Run with the data set's own eps, alpha and lr, and any changes."""
    own = DATASETS[dataset]._asdict() if dataset in DATASETS else {}  # of other names Run says what is wrong
    return Run(**{"dataset": dataset} | {k: v for k, v in own.items() if k in ("eps", "alpha", "lr")} | changes)


def diff(a, b) -> dict[str, tuple[Any, Any]]:
    """Field to (value in a, value in b) where two configs of one class differ."""
    return {name: (value, vars(b)[name]) for name, value in vars(a).items() if value != vars(b)[name]}
