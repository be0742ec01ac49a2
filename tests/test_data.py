"""Data sets on disk, read whole or named; whole tensors, seeded parts, augmentation that can be checked by hand."""

import io
import shutil
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, PngImagePlugin
from scipy.io import savemat
from sklearn.datasets import load_digits

from fsr import data
from fsr.config import Run, for_dataset
from fsr.data import readers
from fsr.files import MissingData, UsageError


def test_digits_are_split_as_documented_and_no_image_is_in_two_parts():
    d = data.load(for_dataset("digits", holdout=100))
    assert [len(d.train_y), len(d.held_y), len(d.test_y)] == [1197, 100, 500]
    x, y = torch.cat([d.train_x, d.held_x, d.test_x]), torch.cat([d.train_y, d.held_y, d.test_y])
    raw = (load_digits().images * (255 / 16)).round().astype(np.uint8).reshape(-1, 64)
    images = sorted(zip(x[:, 0].flatten(1).tolist(), y.tolist()))
    assert images == sorted(zip(raw.tolist(), load_digits().target.tolist()))
    assert (d.train_x[:, 0] == d.train_x[:, 2]).all() and d.train_x.max() == 255
    assert (data.load(for_dataset("digits", holdout=100, seed=5)).held_x == d.held_x).all()
    assert d.held_y.bincount().min() >= 9 and d.test_y.bincount().min() >= 45


def test_a_missing_data_set_says_where_its_files_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name, contents in (("tinyimagenet", "tiny-imagenet-200"), ("cifar10", "cifar-10-batches-py"), ("svhn", "mat")):
        with pytest.raises(MissingData, match=f"{contents}.*{tmp_path}|{tmp_path}.*{contents}"):
            data.load(for_dataset(name))
    states = {name: state[:7] for name, state in readers.check().items()}
    assert states == {"digits": "there"} | dict.fromkeys(("cifar10", "svhn", "tinyimagenet"), "missing")


def test_a_missing_data_set_is_downloaded_once_although_two_find_it_missing(tmp_path, monkeypatch):
    downloads, pixels = [], np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)

    def cifar10(folder, *, train, download):
        there = folder / f"part-{train}"
        if not there.exists():
            time.sleep(0.2)  # the other one looks as well
            if not download:
                raise RuntimeError("not found")
            downloads.append(train)
            there.touch()
        return SimpleNamespace(data=pixels, targets=[3, int(train)], classes=["a", "b"])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar10)
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(readers.read, [Run()] * 2))
    assert sorted(downloads) == [False, True]
    train_x, train_y, _, test_y, names = readers.read(Run())
    assert np.array_equal(train_x.numpy(), pixels.transpose(0, 3, 1, 2)) and names == ("a", "b")
    assert train_y.tolist() == [3, 1] and test_y.tolist() == [3, 0] and train_y.dtype == torch.int64


def test_svhn_has_its_zeros_as_zeros(tmp_path, monkeypatch):
    """Its files say 10 for a 0, and hold (row, column, colour, image)."""
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for part, labels in (("train", [10, 1, 9, 10, 5]), ("test", [3, 10, 2, 1, 1])):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": np.array(labels, np.uint8)[:, None]})
    train_x, train_y, _, test_y, names = readers.read(for_dataset("svhn"))
    assert train_y.tolist() == [0, 1, 9, 0, 5] and test_y.tolist() == [3, 0, 2, 1, 1] and train_y.dtype == torch.int64
    assert np.array_equal(train_x.numpy(), x.transpose(3, 2, 0, 1)) and names == tuple("0123456789")


def _saved(kind: str, array: np.ndarray, mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, kind, **options)
    return file.getvalue()


def test_tiny_imagenet_is_read_whole_or_said_to_be_half(tmp_path, monkeypatch):
    """Two classes, listed out of order: n09 has grey value 200, n01 has 50; one image is stored without colours."""
    files = {"wnids.txt": b"n09\nn01\n", "val/val_annotations.txt": b""}
    for wnid, value in (("n09", 200), ("n01", 50)):
        for i in range(3):
            pixels = np.full((64, 64) if i == 2 else (64, 64, 3), value + i, np.uint8)
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = _saved("JPEG", pixels)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"0\t0\t1\t1\n"
    for i, wnid in enumerate(("n01", "n09", "n09", "n01")):
        files["val/val_annotations.txt"] += f"val_{i}.JPEG\t{wnid}\t0\t0\t1\t1\n".encode()
        files[f"val/images/val_{i}.JPEG"] = _saved("JPEG", np.full((64, 64, 3), 100 + i, np.uint8))
    for name, content in files.items():
        path = tmp_path / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr(readers, "TINY", (6, 4))
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    train_x, train_y, test_x, test_y, names = readers.read(for_dataset("tinyimagenet"))
    assert names == ("n01", "n09") and train_y.tolist() == [0, 0, 0, 1, 1, 1] and test_y.tolist() == [0, 1, 1, 0]
    assert train_x.shape == (6, 3, 64, 64) and train_x.dtype == test_x.dtype == torch.uint8
    assert train_x.float().mean((1, 2, 3)).round().tolist() == [50, 51, 52, 200, 201, 202]
    assert test_x.float().mean((1, 2, 3)).round().tolist() == [100, 101, 102, 103]
    assert readers.check()["tinyimagenet"] == "there"
    path.unlink()
    with pytest.raises(MissingData, match=r"tiny-imagenet-200: \(6, 3\) training and validation images"):
        readers.read(for_dataset("tinyimagenet"))


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
EIGHT = (RAMP * 255).round().astype(np.uint8)
SIXTEEN = (RAMP * 65535).round().astype(np.uint16)
COLOURS = np.stack([EIGHT, EIGHT.T, 255 - EIGHT], 2)
HALF = np.dstack([COLOURS, np.full((32, 32), 128, np.uint8)])  # half transparent


def _folder(root: Path) -> Path:
    """train/ and test/ of two classes, each with three images of the ramp; returns where another one belongs."""
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / folder).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(COLOURS).save(root / folder / f"{i}.png")
    return root / "train" / "cat" / "a"  # after 0, 1, 2


def _read(root: Path) -> torch.Tensor:
    return readers.read(Run(dataset=f"folder:{root}", image_size=32))[0]


def _halves(left, right) -> np.ndarray:
    return np.repeat(np.uint8([[left, right]]), 16, 1).repeat(32, 0)


PALETTE = Image.fromarray(_halves(0, 1), "P")
PALETTE.putpalette([200, 10, 10, 0, 255, 0])
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by a quarter, clockwise
FORMATS = {  # the image, what it must be read as, (32, 32) or (32, 32, 3), the tolerance, and how it is saved
    "1-bit.png": (Image.fromarray(EIGHT > 127), np.where(EIGHT > 127, 255, 0), 0, {}),
    "cmyk.tiff": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS, 1, {}),
    "turned.png": (Image.fromarray(np.rot90(COLOURS, 1)), COLOURS, 0, {"exif": EXIF}),
    "palette.png": (PALETTE, _halves([200, 10, 10], [0, 255, 0]), 0, {}),
    "transparent.png": (PALETTE, _halves([200, 10, 10], [255] * 3), 0, {"transparency": 1}),
    "half.png": (Image.fromarray(HALF), 255 - (255.0 - COLOURS) * 128 / 255, 1, {}),
    "animated.gif": (PALETTE, _halves([200, 10, 10], [0, 255, 0]), 0, {"save_all": True, "append_images": [PALETTE]}),
    "float-tag.tiff": (Image.fromarray(COLOURS), COLOURS, 0, {"tiffinfo": {339: (1, 1, 1, 1)}}),
    "UPPER.PNG": (Image.fromarray(COLOURS), COLOURS, 0, {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_images_keep_their_grey_levels_and_colours(name, tmp_path):
    image, expected, tolerance, options = FORMATS[name]
    image.save(_folder(tmp_path).with_name(f"a{name}"), **options)
    got = _read(tmp_path)[3].permute(1, 2, 0).numpy().astype(float)
    assert np.abs(got - (expected if expected.ndim == 3 else expected[:, :, None])).max() <= tolerance


def _png(width: int, depth: int, colour: int, pixels: bytes) -> bytes:
    head, body = struct.pack(">IIBBBBB", width, width, depth, colour, 0, 0, 0), zlib.compress(pixels)
    parts = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


TALK = PngImagePlugin.PngInfo()
TALK.add_text("comment", "x" * 2_000_000, zip=True)
UNREADABLE = {"cut.jpg": _saved("JPEG", COLOURS)[:600], "talk.png": _saved("PNG", COLOURS, pnginfo=TALK)}
UNREADABLE |= {"RGB16.png": _png(2, 16, 2, bytes(2 * 13)), "bomb.png": _png(20000, 1, 0, bytes(1000))}
UNREADABLE |= {"header.pgm": b"P5 2x4 24 255 " + bytes(576), "text.png": b"not an image"}
UNREADABLE |= {"I.tiff": _saved("TIFF", RAMP.astype(np.int32)), "F.tiff": _saved("TIFF", RAMP.astype(np.float32))}
UNREADABLE |= {f"I;16.{kind}": _saved(kind.upper(), SIXTEEN) for kind in ("png", "tiff")}
UNREADABLE |= {"L.tiff": _saved("TIFF", EIGHT // 2, tiffinfo={339: 2}), "link.png": None}
FITS = ("SIMPLE  =  T", "BITPIX  = 16", "NAXIS   =  2", "NAXIS1  =  2", "NAXIS2  =  2", "END")
UNREADABLE["I;16.fits"] = "".join(card.ljust(80) for card in FITS).ljust(2880).encode() + bytes(2880)
UNREADABLE["CMYK.jpg"] = _saved("JPEG", HALF, "CMYK").replace(b"\xff\xee", b"\xff\xe1", 1)  # without Adobe's mark


@pytest.mark.parametrize("name", UNREADABLE)
def test_images_that_are_damaged_or_without_a_known_range_are_named_one_by_one(name, tmp_path):
    place = _folder(tmp_path)
    for copy in (place.with_name(f"{number}{name}") for number in (1, 2)):
        copy.symlink_to("nowhere") if UNREADABLE[name] is None else copy.write_bytes(UNREADABLE[name])
    with pytest.raises(MissingData, match=rf"^[^\n]*1{name} \([^\n]*2{name} \([^\n]*$") as caught:
        _read(tmp_path)
    mode = f"mode '{name.partition('.')[0]}'"
    assert "0.png" not in str(caught.value) and (mode in str(caught.value)) == (name[0] in "IFLC")


def test_a_folder_of_images_is_a_data_set_and_says_the_size_it_takes(tmp_path, caplog):
    root = tmp_path / "{braces} in-{profile}"
    _folder(root).with_name("Thumbs.db").write_text("no image")
    d = data.load(Run(dataset=f"folder:{root}", holdout=2))
    assert d.class_names == ("cat", "dog") and len(d.train_y) == 4 and d.test_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert d.train_x.shape == (4, 3, 32, 32) and "resized to 32 x 32" in caplog.text and "image_size" in caplog.text
    assert "1 files are left out" in caplog.text and "Thumbs.db" in caplog.text


def test_folders_without_two_classes_in_both_parts_are_refused(tmp_path):
    _folder(tmp_path)
    assert len(_read(tmp_path)) == 6
    with pytest.raises(UsageError, match="leave out image_size=16"):
        readers.read(for_dataset("digits", image_size=16))
    (loop := tmp_path / "train" / "dog" / "loop").symlink_to("..")  # the same images once more, without end
    with pytest.raises(MissingData, match="the same images twice"):
        _read(tmp_path)
    loop.unlink()
    (link := tmp_path / "test" / "dog" / "9.png").symlink_to("../../train/cat/0.png")  # trained and tested on
    with pytest.raises(MissingData, match="the same images twice"):
        _read(tmp_path)
    link.unlink()
    shutil.copytree(tmp_path / "train" / "cat", tmp_path / "train" / "cat" / ".ipynb_checkpoints")
    with pytest.raises(MissingData, match="png is hidden"):
        _read(tmp_path)
    shutil.rmtree(tmp_path / "train" / "cat" / ".ipynb_checkpoints")
    for gone in ("test/dog", "train/dog", "train/cat", "."):  # other classes, one class, no class, nothing
        shutil.rmtree(tmp_path / gone)
        with pytest.raises(MissingData, match="needs train/<class>/ and test/<class>/"):
            _read(tmp_path)


def test_every_prefix_of_the_stratified_order_is_nearly_balanced():
    y = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(3))
    order = readers.stratified_order(y)
    assert sorted(order.tolist()) == list(range(400))
    for n in (10, 50, 200, 399):
        assert ((y[order[:n]].bincount(minlength=4) - n * y.bincount() / 400).abs() <= 1.01).all()


def test_a_part_of_the_test_set_is_a_prefix_of_a_larger_part():
    d = data.load(for_dataset("digits", holdout=100))
    small, large = data.part_of_test(d, 50)[2], data.part_of_test(d, 200)[2]
    assert (large[:50] == small).all() and (data.part_of_test(d, None)[2] == torch.arange(500)).all()
    with pytest.raises(UsageError, match="500"):
        data.part_of_test(d, 501)
    with pytest.raises(UsageError, match="1297"):
        data.load(for_dataset("digits", holdout=1000, train_size=300))
    with pytest.raises(UsageError, match="at least 2"):
        data.load(for_dataset("digits", holdout=1296))


def test_augmentation_is_a_crop_of_the_padded_image_or_its_mirror():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.uint8).reshape(2, 3, 5, 5)
    assert (data.augment(x, pad=0, flip=False, generator=torch.Generator()) == x).all()
    out = data.augment(x.repeat(5000, 1, 1, 1), pad=2, flip=True, generator=torch.Generator().manual_seed(1))
    for i, image in enumerate(torch.nn.functional.pad(x, (2, 2, 2, 2))):
        crops = [image[:, r : r + 5, c : c + 5] for r in range(5) for c in range(5)]
        result = Counter(tuple(got.flatten().tolist()) for got in out[i::2])
        assert result.keys() == {tuple(v.flatten().tolist()) for crop in crops for v in (crop, crop.flip(2))}
        assert min(result.values()) > 60 and max(result.values()) < 140  # all 50 alike often


def test_a_last_batch_of_one_joins_the_batch_before():
    for n, sizes in {257: [128, 129], 256: [128, 128], 258: [128, 128, 2], 1: [1]}.items():
        assert [len(part) for part in data.batches(n, 128)] == sizes
    parts = data.batches(300, 128, generator=torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(300))
