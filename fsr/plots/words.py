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
    "f": "$f$",
    "robust": "$f^{+}$",
    "nonrobust": "$f^{-}$",
    "recalibrated": "$\\tilde{f}^{\\,-}$",
    "output": "$\\tilde f$",
}
STREAM_WORDS = {
    "f": "input",
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
    blocks, width = run.blocks, run.width
    if run.backbone == "wideresnet34":
        return f"WRN-{34 if blocks is None else 4 + 2 * sum(blocks)}-{10 if width is None else width}"
    if run.backbone == "vgg16":
        name = f"VGG-{16 if blocks is None else sum(blocks) + 3}-BN"
    else:
        name = f"ResNet-{18 if blocks is None else 2 + 2 * sum(blocks)}"
    return name if width is None else f"{name} (width {width})"


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
