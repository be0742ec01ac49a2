"""The machine by its parts, the device a user asked for, and how many threads to use."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fsr.files import UsageError

# when this process began, 0 for nothing asked: workers are given their number in the same variable
REQUESTED_THREADS = int((re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", "")) or "0")[0])
CPUINFO = path.read_text() if (path := Path("/proc/cpuinfo")).exists() else ""


def cpu_name() -> str:
    """The processor's own name, as the kernel prints it; the architecture's where it prints none."""
    name = re.search(r"^model name\s*:\s*(.*)$", CPUINFO, re.MULTILINE)
    return name[1].strip() if name else (platform.processor() or platform.machine())


def bf16_is_fast() -> bool:
    """Does this CPU multiply bf16 matrices natively (AVX512-BF16 or AMX)?"""
    return "bf16" in CPUINFO


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def device_named(name: str | None) -> torch.device:
    """cpu, cuda or cuda:N; None: cuda when there is one.  UsageError when it is not there."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda" if there else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"unknown device {name!r}; type --device cpu or --device cuda")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= there:
        raise UsageError(f"--device {name}: this machine with this torch has {there or 'no'} CUDA devices")
    return device


def describe(device: torch.device | str = "cpu") -> dict:
    """JSON-able parts of the machine: processor, cores, threads in use, and the GPU when that is the device."""
    device = torch.device(device)
    parts = {"cpu": cpu_name(), "cores": cores(), "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        return parts | {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return parts | {"bf16_units": bf16_is_fast()}


def make_deterministic() -> None:
    """Bit-identical results on one machine where torch has deterministic kernels; else it warns.  Slower on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    places: tuple[Any, ...] = (getattr(torch.backends.cudnn, "conv"), torch.backends.cuda.matmul)  # noqa: B009 - untyped
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = precision
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


# No TensorFloat-32 inside: on recent GPUs it keeps 10 bits, enough to flip images at the boundary.
exact_float32 = partial(_float32_products, "ieee")
# TensorFloat-32 inside, where the GPU has it: for crafting images that the exact network then classifies.
quick_float32 = partial(_float32_products, "tf32")
