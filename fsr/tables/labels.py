"""How tables write data sets, networks and attacks."""

from fsr import experiments
from fsr.config import Run

DATASETS = {"digits": "digits", "cifar10": "CIFAR-10", "svhn": "SVHN", "tinyimagenet": "Tiny ImageNet"}
METRICS = {
    "clean": "no attack",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd100": "PGD-100",
    "cw": "C&W",
    "ensemble": "Ensemble",
    "autoattack": "AutoAttack",
    "autoattack-ci": "AutoAttack (capped)",
    "pgd20-joint": "PGD-20, joint loss",
    "transfer-twin": "transfer (AT twin)",
    "transfer-natural": "transfer (natural)",
    "di-fgsm": "DI-FGSM",
    "ti-fgsm": "TI-FGSM",
    "nattack": "N-Attack",
    "square": "Square",
}
METHODS = {"natural": "natural", "at": "AT", "trades": "TRADES", "mart": "MART", "fsr": "FSR", "awp": "AWP"}
METHODS |= {name: name.upper() for name in ("fd", "cas", "cifs")}
WEIGHTS = {"last": "last weights", "best": "best weights", "ema": "EMA weights", "unknown": "weights not stated"}


def network(run: Run) -> str:
    """The network as it was really built: ResNet-18, ResNet-10 (width 8), WRN-10-1."""
    blocks, width = run.blocks, run.width
    if run.backbone == "wideresnet34":
        depth = 34 if blocks is None else 4 + 2 * sum(blocks)
        return f"WRN-{depth}-{10 if width is None else width}"
    if run.backbone == "vgg16":
        name = f"VGG-{16 if blocks is None else sum(blocks) + 3}-BN"
    elif run.backbone == "resnet18":
        name = f"ResNet-{18 if blocks is None else 2 + 2 * sum(blocks)}"
    else:
        name = run.backbone  # one that somebody added
    return name if width is None else f"{name} (width {width})"


def dataset(name: str) -> str:
    """`cifar10` as it is written: CIFAR-10; a folder by its last part."""
    return DATASETS.get(name, name.rstrip("/").rsplit("/", 1)[-1])


def method(label: str) -> str:
    """`at+fsr` as rows are named: AT + FSR."""
    return " + ".join(METHODS.get(part, part) for part in label.split("+"))


def metric(name: str) -> str:
    """`pgd20` as it is written: PGD-20."""
    return METRICS.get(name, name)


def run(profile: str, run: Run) -> str:
    """A planned run as tables name it: `AT + FSR, seed 1`, `T5 tau = 0.05, seed 0`."""
    for kind, rows in experiments.ROWS[profile].items():
        for row in rows:
            if run in row.runs and row.intervention is None:
                prefix = {"settings": "T5 ", "placement": "T6 "}.get(kind, "")
                place = "" if run.backbone == experiments.profile_of(profile).base.backbone else f", {network(run)}"
                return f"{prefix}{row.name}{place}, seed {run.seed}"
    return f"{method(run.label)}, seed {run.seed}"
