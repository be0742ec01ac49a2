"""What attacks climb, by hand."""

import pytest
import torch

from fsr.attacks import losses


def test_losses_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 4.0, 2.0, 1.0]], dtype=torch.float64)
    y, target = torch.tensor([0, 2]), torch.tensor([2, 3])
    assert losses.margin(logits, y, kappa=50).tolist() == [-52.0, -48.0]
    assert losses.margin(logits, y, kappa=0).tolist() == [-2.0, 0.0]
    assert losses.dlr(logits, y).tolist() == pytest.approx([-2 / 2.5, 2 / 3], abs=1e-9)
    assert losses.logit_margin(logits, y).tolist() == [-2.0, 2.0]
    assert losses.targeted_margin(logits, y, target).tolist() == [-2.5, -1.0]


def test_dlr_ignores_the_scale_of_the_logits_and_cross_entropy_does_not():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(64, 5, generator=generator, dtype=torch.float64), torch.arange(64) % 5
    for scale in (1e-3, 1e3):
        torch.testing.assert_close(losses.dlr(scale * logits, y), losses.dlr(logits, y), atol=1e-6, rtol=1e-6)
        assert not torch.allclose(losses.cross_entropy(scale * logits, y), losses.cross_entropy(logits, y))


def test_minus_infinity_is_judged_by_argmax_and_no_number_is_never_right():
    logits = torch.tensor([[1.0, -torch.inf], [-torch.inf, 1.0], [torch.nan, 1.0], [torch.inf, 1.0], [-torch.inf] * 2])
    assert losses.is_wrong(logits, torch.tensor([0, 0, 0, 0, 0])).tolist() == [False, True, True, True, True]
