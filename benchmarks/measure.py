"""Timing side by side, the machine's peak, memory, and the record and plot that each benchmark leaves.

Seconds throughout. Ratios are taken within one round, because other work on the machine slows both sides of it alike.
"""

import argparse
import ctypes
import gc
import logging
import re
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fsr import files
from fsr.files import UsageError, provenance, save_json
from fsr.hardware import bf16_is_fast, cores, cpu_name, describe, device_named
from fsr.plots.style import BLUE, VERMILION, panels, styled

Rounds = dict[str, list[float]]


def arguments(description: str, extra: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The options that every benchmark has; --root and --data hold for this process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small cases and few rounds")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: cuda when there is one")
    parser.add_argument("--rounds", type=int, default=None, help="timed rounds per case")
    parser.add_argument("--root", default=None, help="where results/ and figures/ lie")
    parser.add_argument("--data", default=None, help="where data sets lie")
    if extra:
        extra(parser)
    given = parser.parse_args()
    try:
        files.use(root=given.root, data=given.data)
        given.device = device_named(given.device)
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    given.rounds = given.rounds or (2 if given.quick else 7)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return given


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock reading means what it says."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    synchronise(device)
    started = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - started


def interleaved(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> tuple[Rounds, Rounds]:
    """(seconds of the first call of each, seconds of each in every timed round); one more untimed call lies between."""
    first = {name: [timed(function, device)] for name, function in functions.items()}
    for function in functions.values():
        function()
    times: Rounds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(timed(function, device))
    return first, times


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(times: Rounds, of: str, to: str) -> dict[str, float]:
    """How many times longer `of` takes than `to`, round by round."""
    return spread([a / b for a, b in zip(times[of], times[to], strict=True)])


def peak_flops(device: torch.device) -> dict[str, float]:
    """Measured floating point operations per second of a large matrix product, the best of several, per precision.

    bf16 only where the processor has units for it: emulated, one product takes a minute, and nothing is computed so.
    """
    n, found = 8192 if device.type == "cuda" else 2048, {}
    kinds = [("float32", torch.float32), ("bf16", torch.bfloat16)]
    for name, dtype in kinds if device.type == "cuda" or bf16_is_fast() else kinds[:1]:
        a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
        best = min(timed(lambda a=a, b=b: a @ b, device) for _ in range(6))
        found[name] = 2 * n**3 / best
    return found


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _give_back_freed_pages() -> None:
    """Where the C library keeps freed memory resident (glibc), have it returned."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_memory(function: Callable[[], object], device: torch.device) -> int | None:
    """Bytes in use at most while function runs: of the device's allocator, or of this process (None if unknown)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        timed(function, device)
        return torch.cuda.max_memory_allocated(device)
    if not Path("/proc/self/statm").exists():
        return None
    _give_back_freed_pages()  # else a large case before this one would count here
    seen, done = [_resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return max(seen)


def machine(device: torch.device) -> str:
    """The machine by its parts, fit for a file name: processor, cores, GPU; never a host's name."""
    name = f"{cpu_name()} {cores()} cores"
    if device.type == "cuda":
        name += " " + torch.cuda.get_device_name(device)
    elif not bf16_is_fast():
        name += " without bf16"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def record_path(name: str, device: torch.device) -> Path:
    """results/benchmarks/<name>-<machine>.json."""
    return files.results() / "benchmarks" / f"{name}-{machine(device)}.json"


def save(name: str, rows: list[dict], device: torch.device, **more) -> Path:
    """What was measured, on which parts, with which code, in `record_path`; replaces an earlier record."""
    path = record_path(name, device)
    record = {"benchmark": name, "machine": describe(device), "rows": rows, **more}
    save_json(path, {**provenance(), **record, "torch": torch.__version__})
    return path


@styled
def draw_ratios(rows: list[dict], title: str):
    """Bars of the ratios with their spread, one per row that has one."""
    figure, ((axes,),) = panels(1, 1, 0.6 + 0.22 * max(4, len(rows)))
    labels = [row["case"] for row in rows][::-1]
    values = [row["ratio"] for row in rows][::-1]
    for i, value in enumerate(values):
        axes.barh(i, value["median"], color=VERMILION, height=0.6)
        axes.plot([value["low"], value["high"]], [i, i], color="black", linewidth=1)
        axes.text(value["high"], i, f"  {value['median']:.1f}", va="center")
    axes.axvline(1, color=BLUE, linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("times faster than the plain loop (median and range of rounds)")
    axes.set_title(title)
    return figure


def save_figure(figure, name: str, device: torch.device) -> Path:
    """figures/benchmarks/<name>-<machine>.png."""
    path = files.root() / "figures" / "benchmarks" / f"{name}-{machine(device)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path
