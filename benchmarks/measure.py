"""Timing side by side, the machine's peak, and the record and plot that each benchmark leaves.

Seconds throughout. Ratios are taken within one round, because other work on the machine slows both sides of it alike.
"""

import argparse
import logging
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fsr import files
from fsr.config import DATASETS, Run
from fsr.data import Data
from fsr.files import UsageError, provenance, save_json
from fsr.hardware import BF16_UNITS, describe, device_named

Rounds = dict[str, list[float]]


def arguments(description: str, extra: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The options that every benchmark has; --root and --data hold for this process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small cases and few rounds")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: cuda when there is one")
    parser.add_argument("--rounds", type=int, default=None, help="timed rounds per case")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="cases with TEXT in their name, a record of their own"
    )
    parser.add_argument("--root", default=None, help="where results/ and figures/ lie")
    parser.add_argument("--data", default=None, help="where data sets lie")
    if extra:
        extra(parser)
    given = parser.parse_args()
    try:
        files.use(root=given.root, data=given.data)
        files.writable()
        given.device = device_named(given.device)
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    given.rounds = given.rounds or (2 if given.quick else 7)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return given


def chosen(cases: dict, only: str) -> dict:
    """The cases with `only` in their name; without any the process ends with code 2 and one line."""
    selected = {name: case for name, case in cases.items() if only in name}
    if not selected:
        argparse.ArgumentParser().exit(2, f"--only {only}: type a part of one of: {', '.join(cases)}\n")
    return selected


def random_data(run: Run, n: int) -> Data:
    """n training images of the run's shape, as uint8: what they show does not change the time."""
    info = DATASETS[run.dataset]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, info.size, info.size), dtype=torch.uint8, generator=generator)
    y = torch.arange(n) % info.classes
    return Data(x, y, x[:0], y[:0], x[:0], y[:0], tuple(map(str, range(info.classes))))


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, on a GPU until it is done."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
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
    """Floating point operations per second of a large matrix product, the best of several, per precision.

    bf16 only where the processor has units for it: emulated, one product takes a minute, and nothing is computed so.
    """
    n, speeds = 8192 if device.type == "cuda" else 2048, {}
    kinds = {"float32": torch.float32} | ({"bf16": torch.bfloat16} if device.type == "cuda" or BF16_UNITS else {})
    for name, dtype in kinds.items():
        a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
        speeds[name] = 2 * n**3 / min(timed(lambda a=a, b=b: a @ b, device) for _ in range(6))
    return speeds


def machine(device: torch.device) -> str:
    """The machine by its parts, fit for a file name: processor, cores, GPU; never a host's name."""
    name = "{cpu} {cores} cores".format_map(describe())
    if device.type == "cuda":
        name += " " + torch.cuda.get_device_name(device)
    elif not BF16_UNITS:
        name += " without bf16"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(name: str, rows: list[dict], given: argparse.Namespace, **more) -> Path:
    """results/benchmarks/<name>-<machine>.json: what was measured, on which parts, with which code."""
    name = "-".join(filter(None, [name, re.sub(r"[^a-z0-9]+", "-", given.only.lower()).strip("-")]))
    record = {"benchmark": name, "machine": describe(given.device), "rounds": given.rounds, "quick": given.quick}
    path = files.results() / "benchmarks" / f"{name}-{machine(given.device)}.json"
    save_json(path, {**provenance(), **record, "rows": rows, "torch": torch.__version__, **more})
    return path


def draw(path: Path, rows: list[dict], title: str) -> Path:
    """figures/benchmarks/<record>.png: bars of the ratios, the range of rounds as whiskers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.8 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    values = [row["ratio"] for row in rows]
    errors = [[v["median"] - v["low"] for v in values], [v["high"] - v["median"] for v in values]]
    axes.barh([row["case"] for row in rows], [v["median"] for v in values], xerr=errors)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="times faster than the plain loop (median and range of rounds)", title=title)
    image = files.root() / "figures" / "benchmarks" / f"{path.stem}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150, metadata={"Software": None})
    return image
