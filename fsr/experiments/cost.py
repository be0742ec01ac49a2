"""What a training costs, before it is run: closed-form counts of multiplications, and seconds at a measured speed."""

import functools

from fsr.config import BACKBONES, DATASETS, Run

# The authors' code on one H200 (reference_data/known_results.csv: 34.1 s per epoch of AT + FSR, float32)
EPOCH_SECONDS_H200 = 34.1
BACKWARD = 2  # a backward pass costs about two forward passes
TRAIN_IMAGES = {"digits": 1197, "cifar10": 50_000, "svhn": 73_257, "tinyimagenet": 100_000}


def _conv(size: int, inside: int, out: int, kernel: int = 3) -> int:
    return size * size * inside * out * kernel * kernel


def _residual(run: Run, size: int, widths: tuple[int, ...], stem: int, blocks: tuple[int, ...]) -> int:
    macs, inside = _conv(size, 3, stem), stem
    for i, (width, count) in enumerate(zip(widths, blocks)):
        if i:
            size = -(-size // 2)
        for _ in range(count):
            shortcut = _conv(size, inside, width, 1) if inside != width else 0
            macs += _conv(size, inside, width) + _conv(size, width, width) + shortcut
            inside = width
    return macs


def _vgg(run: Run, size: int) -> int:
    base = run.width or 64
    widths = tuple(base * m for m in (1, 2, 4, 8, 8))
    macs, inside = 0, 3
    for i, (width, count) in enumerate(zip(widths, run.blocks or (2, 2, 3, 3, 3))):
        if i:
            size = -(-size // 2)
        for _ in range(count):
            macs += _conv(size, inside, width)
            inside = width
    return macs + 2 * inside * inside


def forward_macs(run: Run) -> int:
    """Multiply-adds of one forward pass of one image, without FSR (a few percent) and without BatchNorm.

    A backbone that is not the authors' is counted as a residual network of its width and blocks.
    """
    info = DATASETS.get(run.dataset)
    size = info.size if info else run.image_size or 32
    if run.backbone == "vgg16":
        return _vgg(run, size)
    usual = BACKBONES[run.backbone]
    width, blocks, stem = run.width or usual.width, run.blocks or usual.blocks, None
    if run.backbone == "wideresnet34":
        width, stem = 16 * width, 16
    return _residual(run, size, tuple(width * 2**i for i in range(len(blocks))), stem or width, blocks)


def training_flops(run: Run) -> float:
    """Floating-point operations of the whole training: crafting and update, forward and backward."""
    images = run.train_size or TRAIN_IMAGES.get(run.dataset, 50_000)
    crafting = 0 if run.method == "natural" else run.steps
    clean = 1 if run.method in ("trades", "mart") else 0
    passes = (crafting + clean + 1) * (1 + BACKWARD)
    return 2.0 * forward_macs(run) * passes * images * run.epochs


@functools.cache
def reference_speed() -> float:
    """Floating-point operations per second of the authors' code on one H200, by this file's own counting."""
    return training_flops(Run(epochs=1)) / EPOCH_SECONDS_H200


def estimate(run: Run, speed: float | None = None) -> float:
    """Seconds of training; speed in operations per second as `measured_speed` gives it, default the reference's."""
    return training_flops(run) / (speed or reference_speed())


def measured_speed(done: list[tuple[Run, float]]) -> float | None:
    """Operations per second of finished trainings (run, seconds), the largest network's; None without any."""
    timed = [(forward_macs(run), training_flops(run) / seconds) for run, seconds in done if seconds > 0]
    return max(timed)[1] if timed else None
