"""Data: whole tensors, seeded parts, augmentation that can be checked by hand."""

from collections import Counter

import pytest
import torch

from fsr import data
from fsr.config import for_dataset
from fsr.data import readers
from fsr.files import UsageError

DIGITS = for_dataset("digits", holdout=100)


def test_every_prefix_of_the_stratified_order_is_nearly_balanced():
    y = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(3))
    order = readers.stratified_order(y)
    assert sorted(order.tolist()) == list(range(400))
    for n in (10, 50, 200, 399):
        assert ((y[order[:n]].bincount(minlength=4) - n * y.bincount() / 400).abs() <= 1.01).all()


def test_a_part_of_the_test_set_is_a_prefix_of_a_larger_part():
    d = data.load(DIGITS)
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
