"""3x3 convolutions on a CPU with a quarter of the products: Winograd's F(4x4, 3x3) in C, compiled at first use.

N images, C channels, H and W pixels. torch's own convolutions multiply directly; this is for the networks that attacks
differentiate hundreds of times. Rounding is that of float32 with errors about ten times larger (measured, 1e-5 of the
values), far below bf16's. Without a C compiler, or where the result is wrong, everything goes on with torch's.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

log = logging.getLogger("fsr")

SOURCE = Path(__file__).with_name("winograd.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
CHANNELS, TILE = 16, 4  # what the C code works in: channels in panels of 16, outputs in tiles of 4x4
TOLERANCE = 1e-3  # of the largest value, against torch's; it is about 1e-5


def _folder() -> Path:
    """Where compiled code is kept: the user's cache, $XDG_CACHE_HOME as everywhere."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fsr"


def _processor() -> bytes:
    """What `-march=native` depends on, so that machines which share a cache do not share code."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return os.uname().machine.encode()
    keys = (b"model name", b"flags", b"Features")
    return b"".join(next((line for line in lines if line.startswith(key)), b"") for key in keys)


def _compile() -> Path:
    """The shared library, compiled unless it is there already; OSError or CalledProcessError if that fails."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), "cc")
    content = b"\0".join([SOURCE.read_bytes(), _processor(), compiler.encode(), *(flag.encode() for flag in FLAGS)])
    path = _folder() / f"winograd-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # renamed when whole: others may compile it too
            made = Path(folder) / path.name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            made.replace(path)
    return path


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_compile()))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.convolve.argtypes = [pointer] * 4 + [count] * 5 + [ctypes.c_int] * 2
    return library


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, backward: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous()
    n, inputs, height, width = x.shape
    outputs = weight.shape[1 if backward else 0]
    y = torch.empty((n, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    shift = None if bias is None else bias.data_ptr()
    given = (n, height, width, inputs, outputs, backward, torch.get_num_threads())
    if _library().convolve(x.data_ptr(), weight.data_ptr(), shift, y.data_ptr(), *given):
        raise MemoryError("no memory for a convolution")
    return y


@torch.library.custom_op("fsr::convolve3x3", mutates_args=(), device_types="cpu")
def _forward_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _convolve(x, weight, bias, False)


@torch.library.custom_op("fsr::convolve3x3_backward", mutates_args=(), device_types="cpu")
def _backward_op(gradient: Tensor, weight: Tensor) -> Tensor:
    return _convolve(gradient, weight, None, True)


@_forward_op.register_fake
def _(x, weight, bias):
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:])).contiguous(memory_format=torch.channels_last)


@_backward_op.register_fake
def _(gradient, weight):
    shape = (gradient.shape[0], weight.shape[1], *gradient.shape[2:])
    return gradient.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _to_input(ctx, gradient):
    """Gradients of the input alone: of the weights nobody asks here."""
    return _backward_op(gradient, ctx.saved_tensors[0]), None, None


_forward_op.register_autograd(_to_input, setup_context=_keep)


@functools.cache
def works() -> bool:
    """Does this machine compile the C code, and does it agree with torch, forwards and backwards?

    Without a compiler (or OpenMP, as on a Mac) only time is lost, which is worth a line for who asks; wrong results
    are a warning.
    """
    try:
        if _agrees():
            return True
        log.warning("3x3 convolutions go on without their C code: its results are wrong on this machine")
        return False
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.decode(errors="replace").strip().splitlines() or ["the compiler failed"])[0]
    except (OSError, AttributeError, RuntimeError, subprocess.TimeoutExpired) as error:
        reason = str(error).strip() or type(error).__name__
    log.info("3x3 convolutions go on without their C code: %s", reason[:160])
    return False


def _agrees() -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, gradient = (
        torch.randn(shape, generator=generator) for shape in ((3, 16, 8, 12), (32, 16, 3, 3), (32,), (3, 32, 8, 12))
    )
    for found, wanted in (
        (_convolve(x, weight, bias, False), conv2d(x, weight, bias, padding=1)),
        (_convolve(gradient, weight, None, True), torch.conv_transpose2d(gradient, weight, padding=1)),
    ):
        if not float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()):
            return False
    return True


def fits(conv: Any) -> bool:
    """Is this a convolution that the C code computes: 3x3, stride 1, zero padding 1, float32, channels in sixteens?"""
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    whole = conv.in_channels % CHANNELS == conv.out_channels % CHANNELS == 0
    kind = conv.weight.dtype == torch.float32 and conv.weight.device.type == "cpu"
    return plain and whole and kind and conv.groups == 1 and conv.padding_mode == "zeros"


def convolve3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As torch.nn.functional.conv2d(x, weight, bias, padding=1), with gradients to x alone; works under compile.

    x: (N, C, H, W) float32 on a CPU; weight: (O, C, 3, 3); bias: (O,). C and O multiples of 16; images whose H or W is
    no multiple of 4 are left to torch. Source: Lavin and Gray, CVPR 2016, F(4x4, 3x3).
    """
    if x.shape[2] % TILE or x.shape[3] % TILE:
        return conv2d(x, weight, bias, padding=1)
    return _forward_op(x, weight, bias)
