"""Convolutions with fewer products: known answers in float64, and everything that may go wrong around them."""

import subprocess

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d

from fsr.train import winograd
from fsr.train.fastnet import FastNet
from fsr.train.fold import FoldedConv, Twin, WinogradConv
from fsr.train.winograd import convolve3x3

pytestmark = pytest.mark.skipif(not winograd.works(), reason="no C compiler on this machine")


def problem(n=3, inputs=16, outputs=32, height=8, width=12):
    """Random images (channels last), weights and biases of usual size."""
    x = torch.randn(n, inputs, height, width).to(memory_format=torch.channels_last)
    return x, torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5, torch.randn(outputs)


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (32, 32), (4, 40)])
@pytest.mark.parametrize("channels", [(16, 16), (16, 48), (32, 16), (128, 64)])
@pytest.mark.parametrize("n", [1, 7])
def test_it_is_the_convolution_in_both_directions(n, channels, size):
    x, weight, bias = problem(n, *channels, *size)
    leaf = x.clone().requires_grad_()
    y = convolve3x3(leaf, weight, bias)
    upstream = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, leaf, upstream)
    exact = x.double().requires_grad_()
    wanted = conv2d(exact, weight.double(), bias.double(), padding=1)
    (wanted_gradient,) = torch.autograd.grad(wanted, exact, upstream.double())
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=2e-4)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=0, atol=2e-4)


def test_one_pixel_and_one_tap_come_out_exactly_where_they_belong():
    x, weight = torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 3, 3)
    x[0, 5, 3, 4], weight[9, 5, 0, 2] = 1.0, 1.0  # the tap above and to the right: the pixel moves down and left
    y = convolve3x3(x, weight)
    expected = torch.zeros_like(y)
    expected[0, 9, 4, 3] = 1.0
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


def test_without_a_bias_and_in_any_memory_layout():
    x, weight, _ = problem()
    y = convolve3x3(x, weight)
    assert torch.equal(y, convolve3x3(x.contiguous(), weight.to(memory_format=torch.channels_last)))
    torch.testing.assert_close(y, conv2d(x, weight, padding=1), rtol=0, atol=2e-4)


def test_images_do_not_see_each_other_and_threads_change_no_bit():
    x, weight, bias = problem(n=9, height=16, width=16)
    whole = convolve3x3(x, weight, bias)
    assert torch.equal(whole[4:5], convolve3x3(x[4:5], weight, bias))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert torch.equal(whole, convolve3x3(x, weight, bias))
    finally:
        torch.set_num_threads(before)


def test_odd_sizes_are_left_to_torch():
    x, weight, bias = problem(height=6, width=7)
    assert torch.equal(convolve3x3(x, weight, bias), conv2d(x, weight, bias, padding=1))


def test_it_can_be_traced_with_gradients_inside():
    x, weight, bias = problem()

    def slope(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(convolve3x3(leaf, weight, bias).relu().sum(), leaf)[0]

    torch.testing.assert_close(make_fx(slope)(x)(x), slope(x))


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_size": 1, "padding": 0},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2},
        {"groups": 16},
        {"padding_mode": "reflect"},
        {"in_channels": 3},
        {"out_channels": 10},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64},
    ],
)
def test_other_convolutions_do_not_fit(change):
    usual = {"in_channels": 16, "out_channels": 16, "kernel_size": 3, "padding": 1}
    assert winograd.fits(nn.Conv2d(**usual))
    assert not winograd.fits(nn.Conv2d(**{**usual, **change}))


def network():
    """Two convolutions that fit behind one that does not, BatchNorm folded into each."""
    parts = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(2):
        parts += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def test_a_twin_uses_it_where_it_fits_and_follows_the_live_weights():
    model, x = network(), torch.rand(4, 3, 8, 8)
    twin = Twin(model, x, channels_last=True, fewer_products=True)
    kinds = [type(m) for m in twin.net.modules() if isinstance(m, FoldedConv)]
    assert twin.winograd and kinds == [FoldedConv, WinogradConv, WinogradConv]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    twin.refill(model)
    torch.testing.assert_close(twin.net(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_twin_without_it_is_as_before():
    twin = Twin(network(), torch.rand(4, 3, 8, 8), channels_last=True)
    assert not twin.winograd and not any(isinstance(m, WinogradConv) for m in twin.net.modules())


def test_evaluation_uses_it_unless_told_not_to():
    model, x = network(), torch.rand(4, 3, 8, 8)
    fast, plain = FastNet(model), FastNet(model, winograd=False)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, WinogradConv) for m in fast.net.modules())
    assert not any(isinstance(m, WinogradConv) for m in plain.net.modules())


@pytest.fixture
def forgetful(monkeypatch, tmp_path):
    """Nothing compiled yet, an empty cache, and the real state afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    winograd.works.cache_clear()
    winograd._library.cache_clear()
    yield tmp_path
    winograd.works.cache_clear()
    winograd._library.cache_clear()


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_working_compiler_everything_goes_on(forgetful, monkeypatch, caplog, compiler):
    monkeypatch.setenv("CC", compiler)
    caplog.set_level("INFO", "fsr")
    twin = Twin(network(), torch.rand(4, 3, 8, 8), channels_last=True, fewer_products=True)
    assert not twin.winograd and "go on without" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # nothing is wrong, only slower
    assert not list(forgetful.rglob("*.so"))


def test_it_is_compiled_once(forgetful, monkeypatch):
    assert winograd.works()
    (library,) = forgetful.rglob("*.so")
    made = library.stat().st_mtime_ns
    winograd._library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # a second compilation would fail
    winograd._library()
    assert library.stat().st_mtime_ns == made


def test_wrong_results_are_not_used(forgetful, monkeypatch, caplog):
    right = winograd._convolve
    monkeypatch.setattr(winograd, "_convolve", lambda *given: right(*given) * 1.01)
    assert not winograd.works() and "wrong on this machine" in caplog.text
