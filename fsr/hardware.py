"""The machine by its parts, the device a user asked for, and how many threads to use."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from fsr.files import UsageError

# $OMP_NUM_THREADS when this process began, 0 without one; workers get their own number in the same variable
REQUESTED_THREADS = int((re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", "")) or "0")[0])
CPUINFO = path.read_text() if (path := Path("/proc/cpuinfo")).exists() else ""
BF16_UNITS = "bf16" in CPUINFO  # this CPU multiplies bf16 matrices natively (AVX512-BF16 or AMX)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def device_named(name: str | None) -> torch.device:
    """cpu, cuda or cuda:N; None: cuda when there is one.  UsageError when it is not there."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    there = ["cuda"] * bool(gpus) + ["cpu", *gpus]
    if name not in (None, *there):
        raise UsageError(f"no device {name!r} here ({len(gpus) or 'no'} CUDA devices); type --device {there[0]}")
    return torch.device(name or there[0])


def describe(device: torch.device | str = "cpu") -> dict:
    """JSON-able parts of the machine: processor, cores, threads in use, and the GPU when that is the device."""
    device, name = torch.device(device), re.search(r"^model name\s*:\s*(.*\S)", CPUINFO, re.MULTILINE)
    parts = {"cpu": name[1] if name else platform.machine(), "cores": cores(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        return parts | {"device": "cuda", "gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return parts | {"device": device.type, "bf16_units": BF16_UNITS}


def make_deterministic() -> None:
    """Bit-identical results on one machine where torch has deterministic kernels; else it warns.  Slower on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # of cuDNN too
    torch.backends.cudnn.benchmark = False


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    convolutions, matrices = cast(Any, torch.backends.cudnn).conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, matrices.fp32_precision
    convolutions.fp32_precision = matrices.fp32_precision = precision
    try:  # whatever mode the caller is in
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        convolutions.fp32_precision, matrices.fp32_precision = before


# TensorFloat-32 of recent GPUs keeps 10 bits, enough to flip images at the boundary: quick is for crafting alone.
exact_float32, quick_float32 = partial(_float32_products, "ieee"), partial(_float32_products, "tf32")
