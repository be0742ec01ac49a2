"""Data sets as they lie on disk: one reader each, every image with all of its grey levels, or refused by name."""

import contextlib
import importlib.util
import io
import logging
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor

from fsr import files
from fsr.config import DATASETS, Run
from fsr.files import FSRError, MissingData

log = logging.getLogger("fsr")
Images = tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]  # to train (N, 3, H, W), (N,); to test; classes' names
TINY = (100_000, DATASETS["tinyimagenet"].test)  # images to train and test
FOLDER_SIZE = 32  # pixels of folder: images where the run names no image_size
SOURCES = {  # torchvision's class, its argument for train and test, its labels, its files
    "cifar10": ("CIFAR10", "train", (True, False), "targets", "cifar-10-batches-py/"),
    "svhn": ("SVHN", "split", ("train", "test"), "labels", "train_32x32.mat, test_32x32.mat"),
}


def stratified_order(y: Tensor) -> Tensor:
    """An order of all positions, (N,) int64, of which every prefix holds the classes in near equal shares of y.

    Each class is shuffled, then its members are spread evenly over [0, 1) and all are sorted by that place.
    """
    generator = torch.Generator().manual_seed(0)  # the same images for every run seed
    place = torch.empty(len(y), dtype=torch.float64)
    for label in y.cpu().unique():
        members = (y.cpu() == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        steps = torch.arange(len(members), dtype=torch.float64)
        place[members] = (steps + torch.rand(1, generator=generator, dtype=torch.float64)) / len(members)
    return place.argsort(stable=True)


def _rgb(image: Image.Image) -> Image.Image:
    """Any image in RGB, upright, transparent parts on white; ValueError for a mode without a known range of values."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 is white; Pillow would clip 16 bits to 8
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode!r} (32-bit) has no fixed range of values; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _decoded(sources: Iterable[tuple[str, Callable[[], bytes]]], size: int) -> Tensor:
    """Images by (name, function that reads the bytes) as (N, 3, size, size) uint8, resized bilinearly where needed."""
    images, failed = [], []
    for name, read in sources:
        try:
            with warnings.catch_warnings(), Image.open(io.BytesIO(read())) as file:
                warnings.simplefilter("ignore", UserWarning)  # of damaged metadata, which is not used
                file.load()
                image = _rgb(file)
            image = image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        except FSRError:  # a signal asked to stop
            raise
        except Exception as error:  # foreign bytes lead Pillow into any exception: bombs, wrong headers, bad checksums
            reason = " ".join(str(error).split()) or type(error).__name__
            failed.append(f"{name} ({reason.replace(repr(name), 'it')[:150]})")
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise MissingData(f"images that cannot be read: {', '.join(failed[:5])}{more}; replace or remove them")
    return torch.stack(images)


def _digits(_folder: Path, _look: bool) -> Images:
    """scikit-learn's 1,797 digits, 8x8 scans from 0 to 16: 1,297 to train and hold out, 500 to test."""
    package = Path(cast(Any, importlib.util.find_spec("sklearn")).origin).parent  # whose import takes seconds
    table = np.loadtxt(package / "datasets/data/digits.csv.gz", delimiter=",")
    x = torch.from_numpy((table[:, :-1] * (255 / 16)).round().astype(np.uint8)).reshape(-1, 1, 8, 8).repeat(1, 3, 1, 1)
    y = torch.from_numpy(table[:, -1].astype(np.int64))
    order, held = stratified_order(y), DATASETS["digits"].test
    test, train = order[:held].sort().values, order[held:].sort().values
    return x[train], y[train], x[test], y[test], tuple("0123456789")


def _torchvision(name: str, folder: Path, look: bool) -> Images:
    """A data set of torchvision, checked by md5, downloaded where it is not whole; look: download nothing."""
    import torchvision

    kind, argument, values, labels, contents = SOURCES[name]
    for fetching in (False,) if look else (False, True):
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


def _tinyimagenet(folder: Path, look: bool) -> Images | None:
    """The official folder or zip: train/<wnid>/images; test = the official validation images."""
    base = folder / "tiny-imagenet-200"
    try:
        with contextlib.nullcontext() if base.is_dir() else zipfile.ZipFile(base.with_suffix(".zip")) as archive:
            read = archive.read if archive else lambda name: (folder / name).read_bytes()
            names = archive.namelist() if archive else [str(p.relative_to(folder)) for p in base.rglob("*.JPEG")]
            lines = [s.split("\t") for s in read(f"{base.name}/val/val_annotations.txt").decode().splitlines()]
            labels = {wnid: i for i, wnid in enumerate(sorted(read(f"{base.name}/wnids.txt").decode().split()))}
            images = sorted(name for name in names if name.endswith(".JPEG"))
            train, held = ([n for n in images if n.startswith(f"{base.name}/{part}/")] for part in ("train", "val"))
            if (len(train), min(len(lines), len(held))) != TINY:
                raise KeyError(f"{len(train)} training and {len(held)} validation images, {len(lines)} listed")
            if look:
                return None
            test = [f"{base.name}/val/images/{line[0]}" for line in lines]
            x = [_decoded(((name, partial(read, name)) for name in part), 64) for part in (train, test)]
            y = [[labels[n.split("/")[2]] for n in train], [labels[line[1]] for line in lines]]
    except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        where = f"{base} or {base}.zip"
        raise MissingData(f"Tiny ImageNet belongs whole in {where}; get it from Stanford CS231N ({error})") from None
    return x[0], torch.tensor(y[0]), x[1], torch.tensor(y[1]), tuple(labels)


def _folder(run: Run) -> Images:
    """torchvision's ImageFolder layout: train/<class>/*, and test/ or val/."""
    import torchvision

    where, size = Path(run.dataset.removeprefix("folder:")), run.image_size or FOLDER_SIZE
    held = "test" if (where / "test").is_dir() else "val"
    try:
        train, test = parts = [torchvision.datasets.ImageFolder(str(where / part)) for part in ("train", held)]
        if train.classes != test.classes or len(train.classes) < 2:
            raise FileNotFoundError(f"its parts hold {', '.join(train.classes)} and {', '.join(test.classes)}")
    except OSError as error:
        needed = "train/<class>/ and test/<class>/ (or val/<class>/), the same two or more classes"
        raise MissingData(f"{where} needs {needed}: {str(error)[:160]}") from None
    if run.image_size is None:
        log.warning("%s: no image_size given, so images are resized to %d x %d pixels", run.dataset, size, size)
    x = [_decoded(((p, Path(p).read_bytes) for p, _ in part.samples), size) for part in parts]
    return x[0], torch.tensor(train.targets), x[1], torch.tensor(test.targets), tuple(train.classes)


READERS: dict[str, Callable] = {"digits": _digits} | {name: partial(_torchvision, name) for name in SOURCES}
READERS["tinyimagenet"] = _tinyimagenet


def read(run: Run) -> Images:
    """The whole data set of a run; MissingData says what is missing and where it belongs."""
    return READERS[run.dataset](files.data(), False) if run.dataset in READERS else _folder(run)


def fetch(name: str) -> None:
    """Download a data set of torchvision's where it is not here; MissingData says where it belongs."""
    if name in SOURCES:
        READERS[name](files.data(), False)


def check() -> list[tuple[str, bool, str]]:
    """(name, there and whole, where or what to do) of every known data set, without downloading anything."""
    rows = []
    for name, reader in READERS.items():
        try:
            reader(files.data(), True)
            rows.append((name, True, "embedded in scikit-learn" if name == "digits" else str(files.data())))
        except MissingData as error:
            rows.append((name, False, str(error)))
    return rows
