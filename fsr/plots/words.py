"""One spelling for methods, attacks and streams, in every figure and sentence."""

METHODS = {"natural": "natural", "at": "AT", "trades": "TRADES", "mart": "MART", "awp": "AWP"}
MODULES = {
    "fsr": "FSR",
    "separation": "separation only",
    "residual": "residual, no mask",
    "aux": "auxiliary head only",
    "fd": "FD",
    "cas": "CAS",
    "cifs": "CIFS",
}
BACKBONES = {"resnet18": "ResNet-18", "vgg16": "VGG-16", "wideresnet34": "WRN-34-10"}
DATASETS = {"digits": "digits", "cifar10": "CIFAR-10", "svhn": "SVHN", "tinyimagenet": "Tiny ImageNet"}
ATTACKS = {
    "clean": "no attack",
    "fgsm": "FGSM",
    "pgd10": "PGD-10",
    "pgd20": "PGD-20",
    "pgd100": "PGD-100",
    "cw": "C&W",
    "ensemble": "Ensemble",
    "autoattack": "AutoAttack",
    "autoattack-ci": "AutoAttack (capped)",
    "autoattack-rand": "AutoAttack (rand)",
    "square": "Square",
    "nattack": "N-Attack",
    "di-fgsm": "DI-FGSM",
    "ti-fgsm": "TI-FGSM",
    "mi-fgsm": "MI-FGSM",
    "transfer": "transfer",
    "random-noise": "random noise",
}
STREAMS = {
    "features": "$f$",
    "robust": "$f^{+}$",
    "nonrobust": "$f^{-}$",
    "recalibrated": "$\\tilde f^{-}$",
    "output": "$\\tilde f$",
}
STREAM_WORDS = {
    "features": "input",
    "robust": "robust",
    "nonrobust": "non-robust",
    "recalibrated": "recalibrated",
    "output": "output",
}
CHECKPOINTS = {"last": "last epoch", "best": "best epoch", "ema": "EMA"}


def method(label: str) -> str:
    """`at+fsr` as it is read: AT + FSR."""
    names = METHODS | MODULES
    return " + ".join(names.get(part, part) for part in label.split("+"))


def backbone(run) -> str:
    """The network as it was really built: its family, and its width or blocks where they are not the family's own."""
    name = BACKBONES.get(run.backbone, run.backbone)
    if run.backbone == "resnet18" and run.blocks is not None:
        name = f"ResNet-{2 + 2 * sum(run.blocks)}"
    if run.backbone == "wideresnet34" and (run.width is not None or run.blocks is not None):
        depth = 34 if run.blocks is None else 4 + 2 * sum(run.blocks)
        return f"WRN-{depth}-{10 if run.width is None else run.width}"
    return name if run.width is None else f"{name}, width {run.width}"


def dataset(name: str) -> str:
    """`cifar10` as it is written: CIFAR-10; a folder by its last part."""
    return DATASETS.get(name, name.rstrip("/").rsplit("/", 1)[-1])


def attack(name: str) -> str:
    """`pgd20` as it is written: PGD-20."""
    return ATTACKS.get(name, name)


def points(fraction: float) -> str:
    """A difference of two fractions in percentage points, with its sign: +1.2; a true minus sign."""
    text = f"{100 * fraction:+.1f}"
    return ("+0.0" if text == "-0.0" else text).replace("-", "\N{MINUS SIGN}")


def percent(fraction: float) -> str:
    """A fraction as percent: 75.6 %."""
    return f"{100 * fraction:.1f} %"
