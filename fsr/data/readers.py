"""Data sets as they lie on disk: one reader each, every image with all of its grey levels, or refused by name."""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor

from fsr import files
from fsr.config import DATASETS, Run
from fsr.files import MissingData, UsageError

log = logging.getLogger("fsr")
Images = tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]  # to train (N, 3, H, W), (N,); to test; classes' names
TINY = (100_000, DATASETS["tinyimagenet"].test)  # images to train and test
FOLDER_SIZE = 32  # pixels of folder: images where the run names no image_size
SOURCES = {  # torchvision's class, its argument for train and test, its labels, its files
    "cifar10": ("CIFAR10", "train", (True, False), "targets", "cifar-10-batches-py/"),
    "svhn": ("SVHN", "split", ("train", "test"), "labels", "train_32x32.mat, test_32x32.mat"),
}


def stratified_order(y: Tensor) -> Tensor:
    """An order of all positions, (N,) int64, of which every prefix holds the classes in near equal shares of y."""
    generator = torch.Generator().manual_seed(0)  # the same images for every run seed
    place = torch.empty(len(y), dtype=torch.float64)
    for label in y.cpu().unique():  # members are shuffled and spread evenly over [0, 1); all are sorted by that place
        members = (y.cpu() == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        steps = torch.arange(len(members), dtype=torch.float64)
        place[members] = (steps + torch.rand(1, generator=generator, dtype=torch.float64)) / len(members)
    return place.argsort(stable=True)


def _rgb(image: Image.Image) -> Image.Image:
    """An 8-bit image in RGB, upright, transparent parts on white; ValueError for a mode that may mean other values."""
    signed = {*getattr(image, "tag_v2", {}).get(339, (1,))} - {1}  # a TIFF's sample format: signed or float
    inverted = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info  # or not: nothing says it
    deep = image.mode[0] in "IF" or any(f";16{end}" in str(getattr(image, "tile", "")) for end in "BLN")
    if deep or signed or inverted:  # Pillow would clip, or cut, what has more than 8 bits
        raise ValueError(f"its mode {image.mode!r} does not say what white is; save it as 8-bit RGB")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _decoded(train: Sequence, test: Sequence, names: Sequence[str], size: int) -> Images:
    """Two lists of (file, label) as Images of size x size pixels, resized bilinearly where needed."""
    images, failed = list[Tensor](), list[str]()
    for file, _ in (*train, *test):
        try:
            with Image.open(file) as opened:
                image = _rgb(opened).resize((size, size), Image.Resampling.BILINEAR)
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        except Exception as error:  # foreign bytes lead Pillow into any exception: bombs, wrong headers, bad checksums
            failed.append(f"{file} ({' '.join(str(error).split())[:150] or type(error).__name__})")
    if failed:
        raise MissingData(f"{len(failed)} images cannot be read: {', '.join(failed[:5])}; replace or remove them")
    x, y = torch.stack(images), torch.tensor([label for _, label in (*train, *test)])
    return x[: len(train)], y[: len(train)], x[len(train) :], y[len(train) :], tuple(names)


def _digits(_folder: Path, _offline: bool) -> Images:
    """scikit-learn's 1,797 digits, 8x8 scans from 0 to 16: 1,297 to train and hold out, 500 to test."""
    package = metadata.distribution("scikit-learn").locate_file("sklearn")  # whose import takes seconds
    table = np.loadtxt(f"{package}/datasets/data/digits.csv.gz", delimiter=",")
    x = torch.from_numpy((table[:, :-1] * (255 / 16)).round().astype(np.uint8)).reshape(-1, 1, 8, 8).repeat(1, 3, 1, 1)
    y = torch.from_numpy(table[:, -1].astype(np.int64))
    order, held = stratified_order(y), DATASETS["digits"].test
    test, train = order[:held].sort().values, order[held:].sort().values
    return x[train], y[train], x[test], y[test], tuple("0123456789")


def _torchvision(name: str, folder: Path, offline: bool) -> Images:
    """A data set of torchvision, checked by md5, downloaded where it is not whole; offline: download nothing."""
    import torchvision

    kind, argument, values, labels, contents = SOURCES[name]
    for fetching in (False,) if offline else (False, True):
        try:  # several workers may find it missing at once
            with FileLock(folder / f".{name}.lock") if fetching else contextlib.nullcontext():
                made = partial(getattr(torchvision.datasets, kind), folder, download=fetching)
                parts = [made(**{argument: value}) for value in values]
            arrays = [part.data.transpose(0, 3, 1, 2) if name == "cifar10" else part.data for part in parts]
            x = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
            y = [torch.from_numpy(np.asarray(getattr(part, labels), np.int64)) for part in parts]
            return x[0], y[0], x[1], y[1], tuple(getattr(parts[0], "classes", "0123456789"))
        except (RuntimeError, OSError, ImportError) as error:
            reason = str(error).split(". ")[0][:80]  # without torchvision's advice to its callers
    where = f"{contents} belongs in {folder} (or --data DIR), or is downloaded at first use"
    raise MissingData(f"{kind} is not there or not whole: {where} ({reason})")


def _tinyimagenet(folder: Path, offline: bool) -> Images | None:
    """The official zip, unpacked: train/<wnid>/images; test = the official validation images."""
    base = folder / "tiny-imagenet-200"
    try:
        names = sorted((base / "wnids.txt").read_text().split())
        listed = [line.split("\t") for line in (base / "val" / "val_annotations.txt").read_text().splitlines()]
        train = [(file, names.index(file.parts[-3])) for file in sorted(base.glob("train/*/images/*.JPEG"))]
        test = [(base / "val" / "images" / line[0], names.index(line[1])) for line in listed]
        if (counts := (len(train), sum(file.exists() for file, _ in test))) != TINY:
            raise OSError(f"{counts} training and validation images, not {TINY}")
    except (OSError, LookupError, ValueError) as error:
        raise MissingData(f"Tiny ImageNet of Stanford CS231N belongs whole and unpacked in {base}: {error}") from None
    return None if offline else _decoded(train, test, names, 64)


def _folder(run: Run) -> Images:
    """torchvision's ImageFolder layout, train/<class>/* and test/ or val/, with the names of all kinds Pillow reads."""
    import torchvision

    where, size = Path(run.dataset.removeprefix("folder:")), run.image_size or FOLDER_SIZE
    held, suffixes = "test" if (where / "test").is_dir() else "val", tuple(Image.registered_extensions())
    try:
        made = partial(torchvision.datasets.DatasetFolder, loader=Image.open, extensions=suffixes)
        train, test = parts = [made(str(where / part)) for part in ("train", held)]
        if train.classes != test.classes or len(train.classes) < 2:
            raise FileNotFoundError(f"{len(train.classes)} and {len(test.classes)} classes, or other names")
        names = [file for part in parts for file, _ in part.samples if os.path.exists(file)]
        hidden = [file for file in names if "/." in file.removeprefix(str(where))]
        if hidden or len(names) > len({os.path.realpath(file) for file in names}):
            raise OSError(f"{hidden[0]} is hidden" if hidden else "links lead to the same images twice")
    except OSError as error:
        needed = "train/<class>/ and test/<class>/ (or val/<class>/), the same two or more classes"
        raise MissingData(f"{where} needs {needed}: {error!s:.160}") from None
    if left := [p for p in where.rglob("[!.]*") if p.is_file() and p.suffix.lower() not in suffixes]:
        log.warning("%s: %d files are left out, since Pillow does not read such as %s", run.dataset, len(left), left[0])
    if run.image_size is None:
        log.warning("%s: no image_size given, so images are resized to %d x %d pixels", run.dataset, size, size)
    return _decoded(train.samples, test.samples, train.classes, size)


READERS: dict[str, Callable] = {"digits": _digits} | {name: partial(_torchvision, name) for name in SOURCES}
READERS["tinyimagenet"] = _tinyimagenet


def read(run: Run) -> Images:
    """The whole data set of a run; MissingData says what is missing and where it belongs."""
    if run.image_size is not None and run.dataset in READERS:
        raise UsageError(f"{run.dataset} has a size of its own; leave out image_size={run.image_size}")
    return READERS[run.dataset](files.data(), False) if run.dataset in READERS else _folder(run)


def check() -> dict[str, str]:
    """`there`, or what is missing and where it belongs, of every known data set, without downloading anything."""
    states = dict.fromkeys(READERS, "there")
    for name, reader in READERS.items():
        try:
            reader(files.data(), True)
        except MissingData as error:
            states[name] = f"missing: {error}"
    return states
