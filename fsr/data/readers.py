"""Data sets as they lie on disk: one reader each, and whether its files are there and whole."""

import contextlib
import importlib.util
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fsr import files
from fsr.config import DATASETS, Run
from fsr.data.images import decode_all
from fsr.files import MissingData

log = logging.getLogger("fsr")

TINY_TRAIN, TINY_TEST = 100_000, DATASETS["tinyimagenet"].test  # images of Tiny ImageNet
FOLDER_SIZE = 32  # pixels of folder: images where the run names no image_size


class Images(NamedTuple):
    """A whole data set: x (N, 3, H, W) uint8, y (N,) int64, the classes' names in the order of y."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    names: tuple[str, ...]


def stratified_order(y: Tensor) -> Tensor:
    """An order of all positions, (N,) int64, of which every prefix holds the classes in near equal shares of y.

    Each class is shuffled, then its members are spread evenly over [0, 1) and all are sorted by that place.
    """
    generator = torch.Generator().manual_seed(0)  # the same images for every run seed
    y = y.cpu()
    place = torch.empty(len(y), dtype=torch.float64)
    for label in y.unique():
        members = (y == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        place[members] = (torch.arange(len(members), dtype=torch.float64) + offset) / len(members)
    return place.argsort(stable=True)


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """(images (1797, 8, 8) from 0 to 16, labels) of sklearn.datasets.load_digits, whose import takes long."""
    found = importlib.util.find_spec("sklearn")
    file = Path((found.origin if found else None) or "").parent / "datasets/data/digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)[0].reshape(-1, 8, 8), load_digits().target


def _digits(_folder: Path, _run: Run) -> Images:
    """scikit-learn's 1,797 digits, 8x8 scans in three equal channels: 1,297 to train and hold out, 500 to test."""
    images, target = _scans()
    x = torch.from_numpy((images * (255 / 16)).round().astype(np.uint8))[:, None].repeat(1, 3, 1, 1)
    y = torch.from_numpy(target.astype(np.int64))
    order, held = stratified_order(y), DATASETS["digits"].test
    test, train = order[:held].sort().values, order[held:].sort().values
    return Images(x[train], y[train], x[test], y[test], tuple("0123456789"))


SOURCES: dict[str, tuple[str, str, tuple, str]] = {  # torchvision's class, its argument for train and test, its files
    "cifar10": ("CIFAR10", "train", (True, False), "cifar-10-batches-py/"),
    "svhn": ("SVHN", "split", ("train", "test"), "train_32x32.mat, test_32x32.mat"),
}


def _parts(name: str, folder: Path, download: bool = False) -> list:
    """Both parts as torchvision's objects; RuntimeError or OSError when files are missing or damaged (by md5)."""
    import torchvision

    kind, argument, values, _ = SOURCES[name]
    return [getattr(torchvision.datasets, kind)(folder, **{argument: v}, download=download) for v in values]


def _why(error: Exception) -> str:
    """What torchvision says is wrong, without its advice to callers of torchvision."""
    return str(error).split(". ")[0][:60]


def _torchvision(name: str, folder: Path) -> list:
    """Both parts, downloaded where they are not there."""
    try:
        return _parts(name, folder)
    except (RuntimeError, OSError) as error:
        missing = error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # several workers may find it missing at once
            with contextlib.suppress(RuntimeError, OSError):
                return _parts(name, folder)
            return _parts(name, folder, download=True)
    except (OSError, RuntimeError, ImportError) as error:
        raise MissingData(
            f"{SOURCES[name][0]} is not (or not whole) in {folder} ({_why(missing)}) and could not be downloaded "
            f"({str(error)[:80]}); put its official files there or give --data DIR (see `python -m fsr data check`)"
        ) from None


def _cifar10(folder: Path, _run: Run) -> Images:
    train, test = _torchvision("cifar10", folder)
    x = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    return Images(x[0], torch.tensor(train.targets), x[1], torch.tensor(test.targets), tuple(train.classes))


def _svhn(folder: Path, _run: Run) -> Images:
    parts = _torchvision("svhn", folder)
    x = [torch.from_numpy(np.ascontiguousarray(part.data)) for part in parts]
    y = [torch.from_numpy(part.labels.astype(np.int64)) for part in parts]
    return Images(x[0], y[0], x[1], y[1], tuple("0123456789"))


@contextlib.contextmanager
def _tiny_files(folder: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """(sorted names, function that reads one) of the official folder or zip; MissingData when it is not whole."""
    base = folder / "tiny-imagenet-200"
    archive = base.with_suffix(".zip")
    try:
        if base.is_dir():
            names = sorted(p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file())
            yield names, lambda name: (base / name).read_bytes()
        elif archive.is_file():
            with zipfile.ZipFile(archive) as file:
                names = [n.removeprefix(f"{base.name}/") for n in file.namelist() if not n.endswith("/")]
                yield sorted(names), lambda name: file.read(f"{base.name}/{name}")
        else:
            raise MissingData(f"Tiny ImageNet belongs in {base} or {archive}; get its zip from Stanford CS231N")
    except (KeyError, FileNotFoundError) as error:
        raise MissingData(f"Tiny ImageNet is not whole in {base}: {error}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise MissingData(f"{archive} is damaged ({error}); get it again") from None


def _tiny_listing(names: list[str], read: Callable[[str], bytes]) -> tuple[list[str], list[list[str]], list[str]]:
    """(training images, lines of the validation list, sorted classes); MissingData unless all are there."""
    lines = [line.split("\t") for line in read("val/val_annotations.txt").decode().splitlines()]
    images = [name for name in names if name.endswith(".JPEG")]
    train, held = ([n for n in images if n.startswith(part)] for part in ("train/", "val/images/"))
    if len(train) != TINY_TRAIN or min(len(lines), len(held)) != TINY_TEST:
        there = f"{len(train)} training and {len(held)} validation images ({len(lines)} listed)"
        raise MissingData(f"Tiny ImageNet is not whole: {there}")
    return train, lines, sorted(read("wnids.txt").decode().split())


def _tinyimagenet(folder: Path, _run: Run) -> Images:
    """The official folder or zip: train/<wnid>/images; test = the official validation images."""
    with _tiny_files(folder) as (names, read):
        train, lines, classes = _tiny_listing(names, read)
        test = [f"val/images/{line[0]}" for line in lines]
        x = [decode_all(((name, partial(read, name)) for name in part), 64) for part in (train, test)]
    labels = {wnid: i for i, wnid in enumerate(classes)}
    train_y = torch.tensor([labels[name.split("/")[1]] for name in train])
    return Images(x[0], train_y, x[1], torch.tensor([labels[line[1]] for line in lines]), tuple(classes))


def _folder(_base: Path, run: Run) -> Images:
    """torchvision's ImageFolder layout: train/<class>/*, and test/ or val/."""
    import torchvision

    where = Path(run.dataset.removeprefix("folder:"))
    held = where / ("test" if (where / "test").is_dir() else "val")
    if not (where / "train").is_dir() or not held.is_dir():
        raise MissingData(f"{where} needs train/<class>/ and test/<class>/ (or val/<class>/) with images")
    try:
        parts = [torchvision.datasets.ImageFolder(str(p)) for p in (where / "train", held)]
    except OSError as error:
        raise MissingData(f"{where}: {str(error)[:160]}") from None
    classes = parts[0].classes
    if classes != parts[1].classes:
        raise MissingData(f"{where}: train/ and {held.name}/ do not hold the same classes")
    if len(classes) < 2:
        raise MissingData(f"{where} holds one class only ({classes[0]!r}); a classifier needs two or more")
    size = run.image_size or FOLDER_SIZE
    if run.image_size is None:
        log.warning("%s: no image_size given, so images are resized to %d x %d pixels", run.dataset, size, size)
    x = [decode_all(((p, Path(p).read_bytes) for p, _ in part.samples), size) for part in parts]
    y = [torch.tensor(part.targets) for part in parts]
    return Images(x[0], y[0], x[1], y[1], tuple(classes))


READERS = {"digits": _digits, "cifar10": _cifar10, "svhn": _svhn, "tinyimagenet": _tinyimagenet}


def read(run: Run) -> Images:
    """The whole data set of a run; MissingData says what is missing and where it belongs."""
    return READERS.get(run.dataset, _folder)(files.data(), run)


def fetch(name: str) -> None:
    """Download a data set of torchvision's where it is not here; MissingData says where it belongs."""
    if name in SOURCES:
        _torchvision(name, files.data())


def check() -> list[tuple[str, bool, str]]:
    """(name, there and whole, where or what to do) of every known data set, without downloading anything."""
    base, rows = files.data(), [("digits", True, "embedded in scikit-learn")]
    for name, (_, _, _, contents) in SOURCES.items():
        try:
            _parts(name, base)
            rows.append((name, True, str(base)))
        except (RuntimeError, OSError) as error:
            rows.append((name, False, f"{contents} belongs in {base}, or is downloaded at first use ({_why(error)})"))
    try:
        with _tiny_files(base) as (names, read):
            _tiny_listing(names, read)
        rows.append(("tinyimagenet", True, str(base)))
    except MissingData as error:
        rows.append(("tinyimagenet", False, str(error)))
    return rows
