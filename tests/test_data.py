"""Data: whole tensors, seeded parts, augmentation that can be checked by hand."""

import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fsr import data, readers
from fsr.config import Run, for_dataset
from fsr.errors import MissingData, UsageError

DIGITS = for_dataset("digits", holdout=100)


def test_digits_are_split_as_documented_and_no_image_is_in_two_parts():
    d = data.load(DIGITS)
    assert [len(d.train_y), len(d.held_y), len(d.test_y)] == [1197, 100, 500]
    from sklearn.datasets import load_digits

    raw = torch.from_numpy((load_digits().images * (255 / 16)).round().astype(np.uint8))
    everything = torch.cat([d.train_x, d.held_x, d.test_x])[:, 0].flatten(1).tolist()
    assert sorted(everything) == sorted(raw.flatten(1).tolist())
    assert (d.train_x[:, 0] == d.train_x[:, 2]).all() and d.train_x.max() == 255


def test_parts_are_the_same_for_every_run_seed_and_cover_the_classes():
    one, two = data.load(DIGITS), data.load(for_dataset("digits", holdout=100, seed=5))
    assert (one.held_x == two.held_x).all()
    assert one.held_y.bincount().min() >= 9 and one.test_y.bincount().min() >= 45


def test_every_prefix_of_the_stratified_order_is_nearly_balanced():
    y = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(3))
    order = data.stratified_order(y)
    assert sorted(order.tolist()) == list(range(400))
    share = y.bincount() / 400
    for n in (10, 50, 200, 399):
        assert ((y[order[:n]].bincount(minlength=4) - n * share).abs() <= 1.01).all()


def test_a_part_of_the_test_set_is_a_prefix_of_a_larger_part():
    d = data.load(DIGITS)
    small, large = data.part_of_test(d, 50)[2], data.part_of_test(d, 200)[2]
    assert (large[:50] == small).all()
    assert (data.part_of_test(d, None)[2] == torch.arange(500)).all()
    with pytest.raises(UsageError, match="500"):
        data.part_of_test(d, 501)


def test_augmentation_is_a_crop_of_the_padded_image_or_its_mirror():
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.uint8).reshape(2, 3, 5, 5)
    out = data.augment(x, pad=2, flip=True, generator=torch.Generator().manual_seed(1))
    for image, got in zip(torch.nn.functional.pad(x, (2, 2, 2, 2)), out):
        crops = [image[:, r : r + 5, c : c + 5] for r in range(5) for c in range(5)]
        assert any((got == crop).all() or (got == crop.flip(2)).all() for crop in crops)


def test_crops_and_flips_are_uniform():
    x = torch.zeros(20000, 1, 3, 3, dtype=torch.uint8)
    x[:, 0, 1, 1], x[:, 0, 1, 2] = 1, 2  # where the 1 lands gives the crop, on which side the 2 is gives the flip
    out = data.augment(x, pad=1, flip=True, generator=torch.Generator().manual_seed(0))[:, 0]
    places = (out == 1).flatten(1).float().mean(0)
    assert torch.allclose(places, torch.full((9,), 1 / 9), atol=0.012)
    flipped = ((out[:, :, :2] == 2) & (out[:, :, 1:] == 1)).any(2).any(1).float().mean()
    straight = ((out[:, :, :2] == 1) & (out[:, :, 1:] == 2)).any(2).any(1).float().mean()
    assert abs(flipped - straight) < 0.02


def test_no_augmentation_changes_nothing():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert (data.augment(x, pad=0, flip=False, generator=torch.Generator()) == x).all()


def test_a_last_batch_of_one_joins_the_batch_before():
    assert [len(p) for p in data.batches(257, 128)] == [128, 129]
    assert [len(p) for p in data.batches(256, 128)] == [128, 128]
    assert [len(p) for p in data.batches(258, 128)] == [128, 128, 2]
    assert [len(p) for p in data.batches(1, 128)] == [1]
    parts = data.batches(300, 128, generator=torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(300))


def test_more_images_than_there_are_is_one_clear_line():
    with pytest.raises(UsageError, match="1297"):
        data.load(for_dataset("digits", holdout=1000, train_size=300))


def test_a_missing_data_set_says_where_its_files_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(MissingData, match="tiny-imagenet-200"):
        data.load(for_dataset("tinyimagenet"))
    states = {name: there for name, there, _ in readers.check()}
    assert states == {"digits": True, "cifar10": False, "svhn": False, "tinyimagenet": False}


@pytest.mark.parametrize("zipped", [False, True])
def test_half_a_tiny_imagenet_is_not_there(zipped, tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path))
    files = {"wnids.txt": "n1\nn2\n", "val/val_annotations.txt": "val_0.JPEG\tn1\t0\t0\t1\t1\n" * 10_000}
    files |= {f"train/n1/images/n1_{i}.JPEG": "" for i in range(7)} | {f"val/images/val_{i}.JPEG": "" for i in range(5)}
    if zipped:
        with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
            for name, text in files.items():
                archive.writestr("tiny-imagenet-200/" + name, text)
    else:
        for name, text in files.items():
            path = tmp_path / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    row = next(row for row in readers.check() if row[0] == "tinyimagenet")
    assert not row[1] and "7 training and 5 validation images" in row[2]


def test_a_folder_of_images_is_a_data_set(tmp_path):
    for part, count in (("train", 6), ("val", 2)):
        for label, value in (("cat", 10), ("dog", 200)):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((16, 16, 3), value + i, np.uint8)).save(folder / f"{i}.png")
    d = data.load(Run(dataset=f"folder:{tmp_path}", holdout=2, image_size=16))
    assert d.class_names == ("cat", "dog") and len(d.train_y) == 10 and len(d.test_y) == 4
    assert ((d.test_x.float().mean((1, 2, 3)) > 100).long() == d.test_y).all()


def test_a_folder_without_the_layout_is_refused(tmp_path):
    with pytest.raises(MissingData, match="train/"):
        data.load(Run(dataset=f"folder:{tmp_path}"))
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "x.png").write_bytes(b"not an image")
    with pytest.raises(MissingData):
        data.load(Run(dataset=f"folder:{tmp_path}"))


@pytest.mark.skipif("FSR_DATA" not in os.environ, reason="real CIFAR-10: set FSR_DATA to its folder")
def test_real_cifar10():
    d = data.load(for_dataset("cifar10"))
    assert tuple(d.train_x.shape) == (49000, 3, 32, 32) and len(d.held_y) == 1000 and len(d.test_y) == 10000
    assert d.held_y.bincount().tolist() == [100] * 10
    assert d.test_y[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, airplane, frog: the well known first five
