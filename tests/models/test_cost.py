import torch
from torch import nn

from fsr.models import count_macs, count_params


def test_multiply_accumulates_and_parameters_of_a_network_counted_by_hand():
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 4 * 4, 5)
    )
    convolution, linear = 6 * 4 * 4 * (2 * 9), 96 * 5  # outputs times products per output
    for batch in (1, 3):
        assert count_macs(net, torch.rand(batch, 4, 8, 8)) == convolution + linear
    assert count_params(net) == 6 * 2 * 9 + 6 + 2 * 6 + 96 * 5 + 5
    net[0].requires_grad_(False)
    assert count_params(net) == 2 * 6 + 96 * 5 + 5


def test_counting_leaves_mode_statistics_and_hooks_alone():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    count_macs(net, torch.rand(2, 3, 4, 4))
    assert net.training and not net[0]._forward_hooks
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
