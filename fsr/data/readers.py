"""Data sets as they lie on disk: one reader each, and whether its files are there and whole."""

import contextlib
import importlib.util
import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fsr import files
from fsr.config import DATASETS, Run
from fsr.files import MissingData

TINY_TRAIN, TINY_TEST = 100_000, DATASETS["tinyimagenet"].test  # images of Tiny ImageNet
SPLIT_SEED = 0  # of held-out and subset choices: the same images for every run seed


class Images(NamedTuple):
    """A whole data set: x (N, 3, H, W) uint8, y (N,) int64, the classes' names in the order of y."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    names: tuple[str, ...]


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


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """(images (1797, 8, 8) from 0 to 16, labels) as sklearn.datasets.load_digits gives them.

    From the same file where it is found: to import scikit-learn takes as long as torch, in every worker process.
    """
    found = importlib.util.find_spec("sklearn")
    file = Path((found.origin if found else None) or "").parent / "datasets/data/digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target


def _digits(_folder: Path, _run: Run) -> Images:
    """scikit-learn's digits: 1,797 real 8x8 scans, three equal channels; 1,297 to train and hold out, 500 to test."""
    images, target = _scans()
    x = torch.from_numpy((images * (255 / 16)).round().astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    y = torch.from_numpy(target.astype(np.int64))
    order, held = stratified_order(y), DATASETS["digits"].test
    test, train = order[:held].sort().values, order[held:].sort().values
    return Images(x[train], y[train], x[test], y[test], tuple(str(d) for d in range(10)))


# What is torchvision's: its class, the arguments of the training and the test part, what lies in the data folder.
PARTS: dict[str, tuple[str, tuple[dict, dict], str]] = {
    "cifar10": ("CIFAR10", ({"train": True}, {"train": False}), "cifar-10-batches-py/"),
    "svhn": ("SVHN", ({"split": "train"}, {"split": "test"}), "train_32x32.mat, test_32x32.mat"),
}


def _there(name: str, folder: Path) -> list:
    """Both parts as torchvision's objects; RuntimeError or OSError when files are missing or damaged (by md5)."""
    import torchvision

    kind, parts, _ = PARTS[name]
    return [getattr(torchvision.datasets, kind)(str(folder), **which, download=False) for which in parts]


def _why(error: Exception) -> str:
    """What torchvision says is wrong, without its advice to callers of torchvision."""
    return str(error).split(". ")[0][:60]


def _torchvision(name: str, folder: Path) -> list:
    """Both parts, downloaded where they are not there."""
    import torchvision

    try:
        return _there(name, folder)
    except (RuntimeError, OSError) as error:
        missing = error
    kind, parts, _ = PARTS[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # several workers may find it missing at once
            with contextlib.suppress(RuntimeError, OSError):
                return _there(name, folder)
            return [getattr(torchvision.datasets, kind)(str(folder), **which, download=True) for which in parts]
    except (OSError, RuntimeError, ImportError) as error:
        raise MissingData(
            f"{kind} is not (or not whole) in {folder} ({_why(missing)}) and could not be downloaded "
            f"({str(error)[:80]}); put its official files there or give --data DIR (see `python -m fsr data check`)"
        ) from None


def _cifar10(folder: Path, _run: Run) -> Images:
    train, test = _torchvision("cifar10", folder)
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    labels = [torch.tensor(part.targets) for part in (train, test)]
    return Images(images[0], labels[0], images[1], labels[1], tuple(train.classes))


def _svhn(folder: Path, _run: Run) -> Images:
    parts = _torchvision("svhn", folder)
    images = [torch.from_numpy(np.ascontiguousarray(part.data)) for part in parts]
    labels = [torch.from_numpy(part.labels.astype(np.int64)) for part in parts]
    return Images(images[0], labels[0], images[1], labels[1], tuple(str(d) for d in range(10)))


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
    """Files below a folder, or members of a zip that is open inside `with`, under one interface."""

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

    def __enter__(self) -> "_Tree":
        return self

    def __exit__(self, *_) -> None:
        if self.zip:
            self.zip.close()

    def read(self, name: str) -> bytes:
        try:
            return self.zip.read(self.prefix + name) if self.zip else (self.folder / name).read_bytes()
        except (KeyError, FileNotFoundError):
            raise MissingData(f"Tiny ImageNet is not whole: {name} is missing in {self.folder}") from None
        except (zipfile.BadZipFile, zlib.error) as error:
            raise MissingData(f"{self.folder}.zip is damaged ({error}); get it again") from None

    def names(self, prefix: str) -> list[str]:
        if self.zip:
            inside = [n[len(self.prefix) :] for n in self.zip.namelist()]
            return sorted(n for n in inside if n.startswith(prefix + "/") and not n.endswith("/"))
        return sorted(str(p.relative_to(self.folder)) for p in (self.folder / prefix).rglob("*") if p.is_file())


def _tiny_listing(tree: _Tree) -> tuple[list[str], list[list[str]], list[str]]:
    """(training images, lines of the validation list, sorted classes); MissingData unless all are there."""
    lines = [line.split("\t") for line in tree.read("val/val_annotations.txt").decode().splitlines()]
    train = [n for n in tree.names("train") if n.endswith(".JPEG")]
    held = sum(n.endswith(".JPEG") for n in tree.names("val/images"))
    if len(train) != TINY_TRAIN or min(len(lines), held) != TINY_TEST:
        raise MissingData(
            f"Tiny ImageNet is not whole: {len(train)} training and {held} validation images ({len(lines)} listed)"
        )
    return train, lines, sorted(tree.read("wnids.txt").decode().split())


def _tinyimagenet(folder: Path, _run: Run) -> Images:
    """The official folder or zip: train/<wnid>/images; test = the official validation images."""
    size = DATASETS["tinyimagenet"].size
    with _Tree(folder, "tiny-imagenet-200") as tree:
        train, lines, names = _tiny_listing(tree)
        train_x = torch.stack([_decode(tree.read(n), size) for n in train])
        test_x = torch.stack([_decode(tree.read(f"val/images/{line[0]}"), size) for line in lines])
    labels = {wnid: i for i, wnid in enumerate(names)}
    train_y = torch.tensor([labels[n.split("/")[1]] for n in train])
    return Images(train_x, train_y, test_x, torch.tensor([labels[line[1]] for line in lines]), tuple(names))


def _folder(_base: Path, run: Run) -> Images:
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
    return Images(x[0], y[0], x[1], y[1], tuple(parts[0].classes))


READERS = {"digits": _digits, "cifar10": _cifar10, "svhn": _svhn, "tinyimagenet": _tinyimagenet}


def read(run: Run) -> Images:
    """The whole data set of a run; MissingData says what is missing and where it belongs."""
    return READERS.get(run.dataset, _folder)(files.data(), run)


def fetch(name: str) -> None:
    """Have a data set of torchvision's here, downloaded where possible; MissingData says where it belongs.

    Other data sets are looked at when they are read.
    """
    if name in PARTS:
        _torchvision(name, files.data())


def check() -> list[tuple[str, bool, str]]:
    """(name, there and whole, where or what to do) of every known data set, without downloading anything."""
    base, rows = files.data(), [("digits", True, "embedded in scikit-learn")]
    for name in PARTS:
        try:
            _there(name, base)
            rows.append((name, True, str(base)))
        except (RuntimeError, OSError) as error:
            rows.append((name, False, f"{files} belongs in {base}, or is downloaded at first use ({_why(error)})"))
    try:
        with _Tree(base, "tiny-imagenet-200") as tree:
            _tiny_listing(tree)
        rows.append(("tinyimagenet", True, str(base)))
    except MissingData as error:
        rows.append(("tinyimagenet", False, str(error)))
    return rows
