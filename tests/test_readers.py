"""Data sets on disk: read whole, named when they are missing or not whole."""

import contextlib
import io
import os
import shutil
import struct
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, PngImagePlugin
from scipy.io import savemat

from fsr import data
from fsr.config import Run, for_dataset
from fsr.data import readers
from fsr.files import MissingData

DIGITS = for_dataset("digits", holdout=100)


def test_digits_are_split_as_documented_and_no_image_is_in_two_parts():
    d = data.load(DIGITS)
    assert [len(d.train_y), len(d.held_y), len(d.test_y)] == [1197, 100, 500]
    from sklearn.datasets import load_digits

    images, target = readers._scans()
    assert (images == load_digits().images).all() and (target == load_digits().target).all()
    raw = torch.from_numpy((load_digits().images * (255 / 16)).round().astype(np.uint8))
    everything = torch.cat([d.train_x, d.held_x, d.test_x])[:, 0].flatten(1).tolist()
    assert sorted(everything) == sorted(raw.flatten(1).tolist())
    assert (d.train_x[:, 0] == d.train_x[:, 2]).all() and d.train_x.max() == 255


def test_every_prefix_of_the_stratified_order_is_nearly_balanced():
    y = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(3))
    order = readers.stratified_order(y)
    assert sorted(order.tolist()) == list(range(400))
    share = y.bincount() / 400
    for n in (10, 50, 200, 399):
        assert ((y[order[:n]].bincount(minlength=4) - n * share).abs() <= 1.01).all()


def test_a_missing_data_set_says_where_its_files_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(MissingData, match="tiny-imagenet-200"):
        data.load(for_dataset("tinyimagenet"))
    states = {name: there for name, there, _ in readers.check()}
    assert states == {"digits": True, "cifar10": False, "svhn": False, "tinyimagenet": False}


def test_a_missing_data_set_is_downloaded_once_although_two_find_it_missing(tmp_path, monkeypatch):
    downloads, both = [], threading.Barrier(2)

    class CIFAR10:
        def __init__(self, folder, *, train, download):
            there = Path(folder) / f"part-{train}"
            if download:
                downloads.append(train)
                time.sleep(0.2)
                there.touch()
            elif not there.exists():
                with contextlib.suppress(threading.BrokenBarrierError):
                    both.wait(timeout=1)  # neither goes on before both have looked
                raise RuntimeError("not found")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR10)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(readers._torchvision, ["cifar10"] * 2, [tmp_path] * 2))
    assert sorted(downloads) == [False, True]


def _tiny_imagenet(folder, files: dict, *, zipped: bool) -> None:
    """The files as the official folder or zip."""
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr("tiny-imagenet-200/" + name, content)
    if not zipped:
        shutil.unpack_archive(folder / "tiny-imagenet-200.zip", folder)
        (folder / "tiny-imagenet-200.zip").unlink()


def _jpeg(value: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (64, 64), value if mode == "L" else (value,) * 3).save(file, "JPEG")
    return file.getvalue()


def test_a_whole_tiny_imagenet_is_the_same_from_folder_and_zip(tmp_path, monkeypatch):
    """Two classes, listed out of order: n09 has grey value 200, n01 has 50; one image is stored without colours."""
    files = {"wnids.txt": "n09\nn01\n", "val/val_annotations.txt": ""}
    for wnid, value in (("n09", 200), ("n01", 50)):
        for i in range(3):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = _jpeg(value + i, "L" if i == 2 else "RGB")
        files[f"train/{wnid}/{wnid}_boxes.txt"] = "0\t0\t1\t1\n"
    for i, wnid in enumerate(("n01", "n09", "n09", "n01")):
        files["val/val_annotations.txt"] += f"val_{i}.JPEG\t{wnid}\t0\t0\t1\t1\n"
        files[f"val/images/val_{i}.JPEG"] = _jpeg(100 + i)
    monkeypatch.setattr(readers, "TINY_TRAIN", 6)
    monkeypatch.setattr(readers, "TINY_TEST", 4)
    folders = tmp_path / "folder", tmp_path / "zip"
    for folder in folders:
        folder.mkdir()
        _tiny_imagenet(folder, files, zipped=folder.name == "zip")
    opened, read, made = [], [], zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: opened.append(made(path)) or opened[-1])
    for folder in folders:
        monkeypatch.setenv("FSR_DATA", str(folder))
        read.append(readers.read(for_dataset("tinyimagenet")))
    for images in read:
        assert images.names == ("n01", "n09")
        assert images.train_y.tolist() == [0, 0, 0, 1, 1, 1] and images.test_y.tolist() == [0, 1, 1, 0]
        assert images.train_x.shape == (6, 3, 64, 64) and images.test_x.shape == (4, 3, 64, 64)
        assert images.train_x.dtype == images.test_x.dtype == torch.uint8
        assert images.train_x.float().mean((1, 2, 3)).round().tolist() == [50, 51, 52, 200, 201, 202]
        assert images.test_x.float().mean((1, 2, 3)).round().tolist() == [100, 101, 102, 103]
    for one, two in zip(read[0][:4], read[1][:4]):
        assert torch.equal(one, two)
    assert len(opened) == 1 and opened[0].fp is None  # read and closed


def test_one_wrong_bit_in_the_zip_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    _tiny_imagenet(tmp_path, {"val/val_annotations.txt": "val_0.JPEG\tn01\t0\t0\t1\t1\n"}, zipped=True)
    archive = tmp_path / "tiny-imagenet-200.zip"
    data = bytearray(archive.read_bytes())
    data[data.index(b"val_0.JPEG")] ^= 1
    archive.write_bytes(data)
    with pytest.raises(MissingData, match=r"tiny-imagenet-200\.zip is damaged .* get it again"):
        readers.read(for_dataset("tinyimagenet"))


def test_svhn_has_its_zeros_as_zeros(tmp_path, monkeypatch):
    """Its files say 10 for a 0, and hold (row, column, colour, image)."""
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for part, labels in (("train", [10, 1, 9, 10, 5]), ("test", [3, 10, 2, 1, 1])):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": np.array(labels, np.uint8)[:, None]})
    images = readers.read(for_dataset("svhn"))
    assert images.train_y.tolist() == [0, 1, 9, 0, 5] and images.test_y.tolist() == [3, 0, 2, 1, 1]
    assert images.train_y.dtype == torch.int64 and images.train_x.shape == (5, 3, 32, 32)
    assert np.array_equal(images.train_x.numpy(), x.transpose(3, 2, 0, 1))
    assert images.names == tuple("0123456789")


@pytest.mark.parametrize("zipped", [False, True])
def test_half_a_tiny_imagenet_is_not_there(zipped, tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    files = {"wnids.txt": "n1\nn2\n", "val/val_annotations.txt": "val_0.JPEG\tn1\t0\t0\t1\t1\n" * 10_000}
    files |= {f"train/n1/images/n1_{i}.JPEG": "" for i in range(7)} | {f"val/images/val_{i}.JPEG": "" for i in range(5)}
    _tiny_imagenet(tmp_path, files, zipped=zipped)
    row = next(row for row in readers.check() if row[0] == "tinyimagenet")
    assert not row[1] and "7 training and 5 validation images" in row[2]


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
EIGHT = (RAMP * 255).round().astype(np.uint8)
COLOURS = np.stack([EIGHT, EIGHT.T, 255 - EIGHT], 2)
HALF = np.dstack([COLOURS, np.full((32, 32), 128, np.uint8)])  # half transparent


def _folder(root: Path) -> Path:
    """train/ and test/ of two classes, each with three images of the ramp; returns where another one belongs."""
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / folder).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(COLOURS).save(root / folder / f"{i}.png")
    return root / "train" / "cat" / "a"  # after 0, 1, 2


def _read(root: Path) -> readers.Images:
    return readers.read(Run(dataset=f"folder:{root}", image_size=32))


def _halves(left, right) -> np.ndarray:
    """An array of 32 x 32 pixels, of one value on the left and another on the right."""
    return np.repeat(np.uint8([[left, right]]), 16, 1).repeat(32, 0)


def _palette() -> Image.Image:
    image = Image.fromarray(_halves(0, 1), "P")
    image.putpalette([200, 10, 10, 0, 255, 0])
    return image


def _oriented(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(np.rot90(COLOURS, 1)).save(file, exif=exif)


FORMATS = {  # how it is saved, its ending, what it must be read as, (32, 32) or (32, 32, 3), and the tolerance
    "16-bit PNG": (lambda f: Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(f), "png", EIGHT, 0),
    "16-bit TIFF": (lambda f: Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(f), "tiff", EIGHT, 0),
    "1 bit": (lambda f: Image.fromarray(EIGHT > 127).save(f), "png", np.where(EIGHT > 127, 255, 0), 0),
    "CMYK": (lambda f: Image.fromarray(COLOURS).convert("CMYK").save(f), "tiff", COLOURS, 1),
    "rotated by EXIF": (_oriented, "png", COLOURS, 0),
    "palette": (lambda f: _palette().save(f), "png", _halves([200, 10, 10], [0, 255, 0]), 0),
    "with transparency": (lambda f: _palette().save(f, transparency=1), "png", _halves([200, 10, 10], [255] * 3), 0),
    "half transparent": (lambda f: Image.fromarray(HALF).save(f), "png", 255 - (255.0 - COLOURS) * 128 / 255, 1),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_images_keep_their_grey_levels_and_colours(kind, tmp_path):
    save, ending, expected, tolerance = FORMATS[kind]
    save(_folder(tmp_path).with_suffix(f".{ending}"))
    got = _read(tmp_path).train_x[3].permute(1, 2, 0).numpy().astype(float)
    expected = expected if np.ndim(expected) == 3 else np.repeat(np.asarray(expected)[:, :, None], 3, 2)
    assert np.abs(got - expected).max() <= tolerance


@pytest.mark.parametrize("dtype, mode", [(np.int32, "I"), (np.float32, "F")])
def test_images_without_a_known_range_are_refused_by_file_and_mode(dtype, mode, tmp_path):
    Image.fromarray((RAMP * 65535).astype(dtype)).save(_folder(tmp_path).with_suffix(".tiff"))
    with pytest.raises(MissingData, match=rf"a\.tiff.*mode '{mode}'"):
        _read(tmp_path)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _truncated(file: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(COLOURS).save(data, "JPEG")
    file.with_suffix(".jpg").write_bytes(data.getvalue()[: len(data.getvalue()) * 2 // 3])


def _bomb(file: Path) -> None:
    head = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", head), _chunk(b"IDAT", zlib.compress(bytes(1000))), _chunk(b"IEND", b"")
    file.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _talkative(file: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    Image.fromarray(COLOURS).save(file.with_suffix(".png"), pnginfo=text)


def _no_images(file: Path) -> None:
    header = file.name.endswith("1")  # of a wrong size; the other has none
    file.with_suffix(".pgm").write_bytes(b"P5 2x4 24 255 " + bytes(576) if header else b"not an image")


@pytest.mark.parametrize("damage", [_truncated, _bomb, _talkative, _no_images])
def test_damaged_images_are_named_one_by_one(damage, tmp_path):
    place = _folder(tmp_path)
    for name in ("broken1", "broken2"):
        damage(place.with_name(name))
    with pytest.raises(MissingData, match=r"broken1.*broken2") as caught:
        _read(tmp_path)
    assert "\n" not in str(caught.value) and "0.png" not in str(caught.value)


def test_a_folder_of_images_is_a_data_set_and_says_the_size_it_takes(tmp_path, caplog):
    root = tmp_path / "{braces} in-{profile}"
    _folder(root)
    d = data.load(Run(dataset=f"folder:{root}", holdout=2))
    assert d.class_names == ("cat", "dog") and len(d.train_y) == 4 and d.test_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert d.train_x.shape == (4, 3, 32, 32) and "resized to 32 x 32" in caplog.text and "image_size" in caplog.text


def test_folders_without_two_classes_in_both_parts_are_refused(tmp_path):
    with pytest.raises(MissingData, match="train/"):
        _read(tmp_path)
    _folder(tmp_path)
    shutil.rmtree(tmp_path / "test" / "dog")
    with pytest.raises(MissingData, match="the same classes"):
        _read(tmp_path)
    shutil.rmtree(tmp_path / "train" / "dog")
    with pytest.raises(MissingData, match=r"one class only .'cat'"):
        _read(tmp_path)
    shutil.rmtree(tmp_path / "train" / "cat")
    with pytest.raises(MissingData, match="class folder"):
        _read(tmp_path)


@pytest.mark.skipif("FSR_DATA" not in os.environ, reason="real CIFAR-10: set FSR_DATA to its folder")
def test_real_cifar10():
    d = data.load(for_dataset("cifar10"))
    assert tuple(d.train_x.shape) == (49000, 3, 32, 32) and len(d.held_y) == 1000 and len(d.test_y) == 10000
    assert d.held_y.bincount().tolist() == [100] * 10
    assert d.test_y[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, airplane, frog: the well known first five
