"""How tables write data sets, networks, attacks and numbers."""

import math

from pandas import isna

from fsr import experiments
from fsr.config import PEERS, Run

DATASETS = {"digits": "digits", "cifar10": "CIFAR-10", "svhn": "SVHN", "tinyimagenet": "Tiny ImageNet"}
METRICS = {"clean": "no attack", "fgsm": "FGSM", "pgd20": "PGD-20", "pgd100": "PGD-100", "cw": "C&W"}
METRICS |= {"ensemble": "Ensemble", "autoattack": "AutoAttack", "autoattack-ci": "AutoAttack (capped)"}
METRICS |= {"transfer-twin": "transfer (AT)", "transfer-natural": "transfer (natural)", "nattack": "N-Attack"}
METRICS |= {"pgd20-joint": "PGD-20, joint loss", "di-fgsm": "DI-FGSM", "ti-fgsm": "TI-FGSM", "square": "Square"}
WEIGHTS = {"last": "last weights", "best": "best weights", "ema": "EMA weights", "unknown": "weights not stated"}
NOT_RUN, MINUS, UNDECIDED = "not run", "\N{MINUS SIGN}", " (undecided)"
COUNTS = ("no", "one", "two", "three", "four", "five")


def network(run: Run) -> str:
    """The network as it was really built: ResNet-18, ResNet-10 (width 8), WRN-10-1."""
    blocks, width = sum(run.blocks or ()), run.width
    if run.backbone == "wideresnet34":
        return f"WRN-{4 + 2 * (blocks or 15)}-{10 if width is None else width}"
    names = {"vgg16": f"VGG-{(blocks or 13) + 3}-BN", "resnet18": f"ResNet-{2 + 2 * blocks if blocks else 18}"}
    name = names.get(run.backbone, run.backbone)  # or one that somebody added
    return name if width is None else f"{name} (width {width})"


def setting(profile: str) -> str:
    """`CIFAR-10, ResNet-18, 40 epochs`; `CIFAR-10 (1,000 training images), ...` where not all are used."""
    base = experiments.profile_of(profile).base
    return f"{data(base)}, {network(base)}, {base.epochs} epochs"


def data(run: Run) -> str:
    """The data set that a run is trained on, and how much of it where not all is used."""
    return dataset(run.dataset) + (f" ({run.train_size:,} training images)" if run.train_size else "")


def dataset(name: str) -> str:
    """`cifar10` as it is written: CIFAR-10; a folder by its last part."""
    return DATASETS.get(name, name.rstrip("/").rsplit("/", 1)[-1])


def method(label: str) -> str:
    """`at+fsr` as rows are named: AT + FSR."""
    usual = ("at", "trades", "mart", "fsr", "awp", *PEERS)
    return " + ".join(part.upper() if part in usual else part for part in label.split("+"))


def metric(name: str) -> str:
    """`pgd20` as it is written: PGD-20."""
    return METRICS.get(name, name)


def run(profile: str, run: Run) -> str:
    """A run in the words of the first row that it is in: `AT + FSR, seed 1`, `T5 tau = 0.05, seed 0`."""
    base, prefix = experiments.profile_of(profile).base, {"settings": "T5 ", "placement": "T6 "}
    rows = [(prefix.get(kind, ""), row) for kind, own in experiments.ROWS[profile].items() for row in own]
    names = [first + row.name for first, row in rows if run in row.runs]
    names += [f"{first}{row.name}, baseline" for first, row in rows if run in row.baseline]
    place = [dataset(run.dataset)] * (run.dataset != base.dataset) + [network(run)] * (run.backbone != base.backbone)
    return ", ".join([*names, method(run.label)][:1] + place + [f"seed {run.seed}"])


def number(value: float, *, digits: int = 1, sign: bool = False) -> str:
    """Fixed digits, half away from zero, a true minus, never -0.0: 1.5, −0.3, with sign also +0.2."""
    value = round(value + math.copysign(1e-9, value), digits) + 0.0  # a tie, 5.45, is stored a little below or above
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def span(low: float, high: float, *, digits: int = 1, sign: bool = False) -> str:
    """An interval in brackets."""
    return f"[{number(low, digits=digits, sign=sign)}, {number(high, digits=digits, sign=sign)}]"


def measured(value, low=None, high=None, sd=None, *, mark: str = "", digits: int = 1, sign: bool = False) -> str:
    """Fractions in percent: `74.2 ± 0.8 [70.2, 77.9]`, with what is there of it; `not run` without a value."""
    if isna(value):
        return NOT_RUN
    text = number(100 * value, digits=digits, sign=sign) + mark
    text += "" if isna(sd) else f" ± {100 * sd:.{digits}f}"
    return text if isna(low) else f"{text} {span(100 * low, 100 * high, digits=digits, sign=sign)}"


def side(cell: dict) -> str:
    """`a gain` or `a loss` for an interval above or below zero, nothing for one that includes it (undecided)."""
    return "a gain" if cell["low"] > 0 else "a loss" if cell["high"] < 0 else ""


def change(cell: dict) -> str:
    """A difference with its interval: −2.9 points [−3.4, −2.3], or +0.1 points [−0.4, +0.6] (undecided)."""
    interval = span(100 * cell["low"], 100 * cell["high"], sign=True)
    return f"{measured(cell['value'], sign=True)} points {interval}{'' if side(cell) else UNDECIDED}"


def seeds(counts) -> str:
    """`one seed`, or `one to three seeds`."""
    ends = [COUNTS[int(end)] if end < len(COUNTS) else f"{end:.0f}" for end in (min(counts), max(counts))]
    return " to ".join(dict.fromkeys(ends)) + (" seed" if max(counts) == 1 else " seeds")
