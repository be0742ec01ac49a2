"""Whole data sets as uint8 tensors on the device; every random choice from one seeded generator."""

import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsr import paths
from fsr.config import DATASETS, Run
from fsr.errors import MissingData, UsageError

SPLIT_SEED = 0  # of held-out and subset choices: the same images for every run seed


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
        """Number of classes K."""
        return len(self.class_names)

    def to(self, device) -> "Data":
        """The same data on another device."""
        tensors: dict[str, Any] = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def as_float(x: Tensor) -> Tensor:
    """uint8 images (N, C, H, W) as float32 in [0, 1]; no mean/std normalisation, so eps is always in pixels.

    UsageError for any other type: floating point would be divided a second time, in the caller's own memory.
    """
    if x.dtype != torch.uint8:
        raise UsageError(f"images are stored as uint8 in 0..255, not {x.dtype}")
    return x.float().div_(255)


def stratified_order(y: Tensor, seed: int = SPLIT_SEED) -> Tensor:
    """An order of all positions, (N,) int64, of which every prefix holds the classes in near equal shares of y.

    Each class is shuffled, then its members are spread evenly over [0, 1) and all are sorted by that place.
    """
    generator = torch.Generator().manual_seed(seed)
    y = y.cpu()
    place = torch.empty(len(y), dtype=torch.float64)
    for label in y.unique():
        members = (y == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        place[members] = (torch.arange(len(members), dtype=torch.float64) + offset) / len(members)
    return place.argsort(stable=True)


def augment(x: Tensor, *, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Zero-pad, random crop and horizontal flip of a batch, per image.

    x: (N, C, H, W) uint8 or float; pad in pixels, 0 for none; generator on the device of x; returns like x.
    """
    n, _, h, w = x.shape
    if pad:
        rows, cols = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator, device=x.device)
        padded = F.pad(x, (pad, pad, pad, pad))
        rows, cols = rows + torch.arange(h, device=x.device), cols + torch.arange(w, device=x.device)
        images = torch.arange(n, device=x.device)[:, None, None]
        x = padded.permute(0, 2, 3, 1)[images, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        flipped = torch.rand(n, generator=generator, device=x.device) < 0.5
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    return x.contiguous()


def batches(n: int, size: int, *, generator: torch.Generator | None = None) -> list[Tensor]:
    """Positions 0..n-1 in batches of `size`, shuffled when a (CPU) generator is given; the last batch is kept.

    A last batch of one joins the batch before it: BatchNorm at 1x1 has no variance of one value.
    """
    order = torch.randperm(n, generator=generator) if generator else torch.arange(n)
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def part_of_test(data: Data, images: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(x uint8, y, index): the whole test set in data order, or the first `images` of the fixed stratified order."""
    if images is None:
        return data.test_x, data.test_y, torch.arange(len(data.test_y))
    if images > len(data.test_y):
        raise UsageError(f"{images} test images asked for, there are {len(data.test_y)}")
    index = stratified_order(data.test_y)[:images]
    chosen = index.to(data.test_x.device)
    return data.test_x[chosen], data.test_y[chosen], index


# --- readers: name -> (train x, train y, test x, test y, class names), numpy or tensors ---------------------


def _digits(_folder: Path, _run: Run):
    """scikit-learn's digits: 1,797 real 8x8 scans, three equal channels; 1,297 to train and hold out, 500 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    y = torch.from_numpy(bunch.target.astype(np.int64))
    order = stratified_order(y)
    test, train = order[:500].sort().values, order[500:].sort().values
    return x[train], y[train], x[test], y[test], tuple(str(d) for d in range(10))


def _torchvision(name: str, folder: Path, **which):
    import torchvision

    try:
        return getattr(torchvision.datasets, name)(str(folder), **which, download=False)
    except (RuntimeError, OSError) as error:
        missing = error
    try:
        return getattr(torchvision.datasets, name)(str(folder), **which, download=True)
    except (OSError, RuntimeError, ImportError) as error:
        raise MissingData(
            f"{name} is not (or not whole) in {folder} ({str(missing)[:60]}) and could not be downloaded "
            f"({str(error)[:80]}); put its official files there or give --data DIR (see `python -m fsr data check`)"
        ) from None


def _cifar10(folder: Path, _run: Run):
    train, test = (_torchvision("CIFAR10", folder, train=t) for t in (True, False))
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    labels = [torch.tensor(part.targets) for part in (train, test)]
    return images[0], labels[0], images[1], labels[1], tuple(train.classes)


def _svhn(folder: Path, _run: Run):
    train, test = (_torchvision("SVHN", folder, split=s) for s in ("train", "test"))
    images = [torch.from_numpy(np.ascontiguousarray(part.data)) for part in (train, test)]
    labels = [torch.from_numpy(part.labels.astype(np.int64)) for part in (train, test)]
    return images[0], labels[0], images[1], labels[1], tuple(str(d) for d in range(10))


def _decode(blob: bytes | Path, size: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(blob) if isinstance(blob, bytes) else blob) as file:
            image = file.convert("RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except (UnidentifiedImageError, OSError) as error:
        raise MissingData(f"an image cannot be read: {error}; unpack the data set again") from None


class _Tree:
    """Files below a folder, or members of a zip, under one interface."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.zip = folder / name, None
        if not self.folder.is_dir():
            archive = folder / f"{name}.zip"
            if not archive.is_file():
                raise MissingData(
                    f"Tiny ImageNet belongs in {self.folder} or {archive}; get its zip from Stanford CS231N"
                )
            try:
                self.zip, self.prefix = zipfile.ZipFile(archive), name + "/"
            except zipfile.BadZipFile as error:
                raise MissingData(f"{archive} is damaged ({error}); get it again") from None

    def read(self, name: str) -> bytes:
        try:
            return self.zip.read(self.prefix + name) if self.zip else (self.folder / name).read_bytes()
        except (KeyError, FileNotFoundError):
            raise MissingData(f"Tiny ImageNet is not whole: {name} is missing in {self.folder}") from None

    def names(self, prefix: str) -> list[str]:
        if self.zip:
            inside = [n[len(self.prefix) :] for n in self.zip.namelist()]
            return sorted(n for n in inside if n.startswith(prefix + "/") and not n.endswith("/"))
        return sorted(str(p.relative_to(self.folder)) for p in (self.folder / prefix).rglob("*") if p.is_file())


def _tinyimagenet(folder: Path, _run: Run):
    """The official folder or zip: train/<wnid>/images; test = the official validation images."""
    tree = _Tree(folder, "tiny-imagenet-200")
    wnids = tree.read("wnids.txt").decode().split() if tree.names("train") else []
    labels = {wnid: i for i, wnid in enumerate(sorted(wnids))}
    train = [n for n in tree.names("train") if n.endswith(".JPEG")]
    lines = [line.split("\t") for line in tree.read("val/val_annotations.txt").decode().splitlines()]
    if len(train) != 100_000 or len(lines) != 10_000:
        raise MissingData(f"Tiny ImageNet is not whole: {len(train)} training and {len(lines)} validation images")
    train_x = torch.stack([_decode(tree.read(n), 64) for n in train])
    test_x = torch.stack([_decode(tree.read(f"val/images/{line[0]}"), 64) for line in lines])
    train_y = torch.tensor([labels[n.split("/")[1]] for n in train])
    return train_x, train_y, test_x, torch.tensor([labels[line[1]] for line in lines]), tuple(sorted(labels))


def _folder(folder: Path, run: Run):
    """torchvision's ImageFolder layout: train/<class>/*, and test/ or val/."""
    import torchvision

    where = Path(run.dataset.removeprefix("folder:")).expanduser()
    held = next((where / n for n in ("test", "val") if (where / n).is_dir()), None)
    if not (where / "train").is_dir() or held is None:
        raise MissingData(f"{where} needs train/<class>/ and test/<class>/ (or val/<class>/) with images")
    try:
        parts = [torchvision.datasets.ImageFolder(str(p)) for p in (where / "train", held)]
    except FileNotFoundError as error:
        raise MissingData(f"{where}: {str(error)[:160]}") from None
    if parts[0].classes != parts[1].classes:
        raise MissingData(f"{where}: train/ and {held.name}/ do not hold the same classes")
    size = run.image_size or 32
    x = [torch.stack([_decode(Path(p), size) for p, _ in part.samples]) for part in parts]
    y = [torch.tensor(part.targets) for part in parts]
    return x[0], y[0], x[1], y[1], tuple(parts[0].classes)


READERS = {"digits": _digits, "cifar10": _cifar10, "svhn": _svhn, "tinyimagenet": _tinyimagenet}


def augmentation(run: Run) -> tuple[int, bool]:
    """(pad, flip) of a run's data set; a folder: set is padded by an eighth of its size and flipped."""
    info = DATASETS.get(run.dataset)
    return (info.pad, info.flip) if info else ((run.image_size or 32) // 8, True)


def load(run: Run, device="cpu") -> Data:
    """The data of a run, whole, on the device; MissingData says what is missing and where it belongs.

    Held-out images come from train: a stratified, seeded choice that is the same for every run seed.
    """
    read = READERS.get(run.dataset, _folder)
    train_x, train_y, test_x, test_y, names = read(paths.data(), run)
    order = stratified_order(train_y)
    size = len(order) - run.holdout if run.train_size is None else run.train_size
    if size < 1 or run.holdout + size > len(order):
        raise UsageError(f"{run.dataset} has {len(order)} training images: {run.holdout} held out + {size} do not fit")
    held, train = order[: run.holdout], order[run.holdout : run.holdout + size].sort().values
    data = Data(train_x[train], train_y[train], train_x[held], train_y[held], test_x, test_y, names)
    if run.test_size is not None:
        test_x, test_y, _ = part_of_test(data, run.test_size)
        data = replace(data, test_x=test_x, test_y=test_y)
    return data.to(device)


def fetch(name: str) -> None:
    """Have a data set of torchvision's here, downloaded where possible; MissingData says where it belongs.

    Other data sets are looked at when they are read.
    """
    if name == "cifar10":
        _torchvision("CIFAR10", paths.data(), train=True)
        _torchvision("CIFAR10", paths.data(), train=False)
    elif name == "svhn":
        _torchvision("SVHN", paths.data(), split="train")
        _torchvision("SVHN", paths.data(), split="test")


def check() -> list[tuple[str, bool, str]]:
    """(name, there, where or what to do) of every known data set, without downloading anything."""
    import torchvision

    base, rows = paths.data(), [("digits", True, "embedded in scikit-learn")]
    for name, kind, which in (("cifar10", "CIFAR10", {}), ("svhn", "SVHN", {"split": "test"})):
        try:
            getattr(torchvision.datasets, kind)(str(base), **which, download=False)
            rows.append((name, True, str(base)))
        except (RuntimeError, OSError) as error:
            what = "cifar-10-batches-py/" if name == "cifar10" else "train_32x32.mat, test_32x32.mat"
            rows.append((name, False, f"{what} belongs in {base} ({str(error)[:60]})"))
    try:
        _Tree(base, "tiny-imagenet-200").read("val/val_annotations.txt")
        rows.append(("tinyimagenet", True, str(base)))
    except MissingData as error:
        rows.append(("tinyimagenet", False, str(error)))
    return rows
