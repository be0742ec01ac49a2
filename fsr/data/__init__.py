"""Whole data sets as uint8 tensors on the device; every random choice from one seeded generator."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr.config import DATASETS, Run
from fsr.data import readers
from fsr.data.readers import stratified_order
from fsr.files import UsageError


@dataclass(frozen=True)
class Data:
    """Training, held-out and test parts: x (N, 3, H, W) uint8, y (N,) int64, all on one device."""

    train_x: Tensor
    train_y: Tensor
    held_x: Tensor
    held_y: Tensor
    test_x: Tensor
    test_y: Tensor
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def to(self, device) -> "Data":
        moved: dict = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def as_float(x: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as float32 in [0, 1], never normalised: eps is in pixels; UsageError for another type."""
    if x.dtype != torch.uint8:
        raise UsageError(f"images are stored as uint8 in 0..255, not {x.dtype}")
    return x.float().div_(255)


def augment(x: Tensor, *, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Zero-pad by `pad` pixels, random crop and horizontal flip of each image of a batch (N, C, H, W)."""
    n, _, h, w = x.shape
    if pad:
        rows, cols = torch.randint(0, 2 * pad + 1, (2, n), generator=generator, device=x.device)
        crops = F.pad(x, (pad, pad, pad, pad)).unfold(2, h, 1).unfold(3, w, 1)  # a view of all crops of all images
        x = crops[torch.arange(n, device=x.device), :, rows, cols]
    if flip:
        flipped = torch.rand(n, generator=generator, device=x.device) < 0.5
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    return x.contiguous()


def batches(n: int, size: int, *, generator: torch.Generator | None = None) -> list[Tensor]:
    """Positions 0..n-1 in batches of `size`, shuffled when a (CPU) generator is given; the last batch is kept."""
    parts = list((torch.randperm(n, generator=generator) if generator else torch.arange(n)).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:  # BatchNorm at 1x1 has no variance of one value
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def part_of_test(data: Data, images: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(x uint8, y, index): the whole test set in data order, or the first `images` of the fixed stratified order."""
    if (images or 0) > len(data.test_y):
        raise UsageError(f"{images} test images asked for, there are {len(data.test_y)}")
    index = torch.arange(len(data.test_y)) if images is None else stratified_order(data.test_y)[:images]
    return data.test_x[index.to(data.test_x.device)], data.test_y[index.to(data.test_y.device)], index


def augmentation(run: Run) -> tuple[int, bool]:
    """(pad, flip) of a run's data set; a folder: set is padded by an eighth of its size and flipped."""
    info = DATASETS.get(run.dataset)
    return (info.pad, info.flip) if info else ((run.image_size or readers.FOLDER_SIZE) // 8, True)


def load(run: Run, device="cpu") -> Data:
    """The data of a run on the device; held-out images are a stratified choice from train, alike for every run seed."""
    train_x, train_y, test_x, test_y, names = readers.read(run)
    order = stratified_order(train_y)
    size = len(order) - run.holdout if run.train_size is None else run.train_size
    if size < 2 or run.holdout + size > len(order):  # BatchNorm needs two
        text = f"{run.holdout} held out + {size} do not fit; change holdout or train_size (at least 2)"
        raise UsageError(f"{run.dataset} has {len(order)} training images: {text}")
    held, train = order[: run.holdout], order[run.holdout : run.holdout + size].sort().values
    data = Data(train_x[train], train_y[train], train_x[held], train_y[held], test_x, test_y, names)
    test_x, test_y, _ = part_of_test(data, run.test_size)
    return replace(data, test_x=test_x, test_y=test_y).to(device)
