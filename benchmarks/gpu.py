"""`python -m benchmarks.gpu [--images 12800] [--root DIR]`: everything that needs a GPU, the most telling first.

Whole epochs of full-width ResNet-18 AT+FSR, plain against fast; the same for AT; where the fast step's time goes
(profile); single steps per backbone and batch; how many small runs at once fill the device. Every row is saved as soon
as it is there.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable

import torch
import torch.multiprocessing as multiprocessing

from benchmarks import measure, pipeline, train_step
from fsr.config import Run, replace
from fsr.train import Trainer

FULL = replace(pipeline.SMALL, width=None)


def step_cases(quick: bool) -> dict[str, Run]:
    """Single steps: the three backbones, the small network, and larger batches."""
    found = {"resnet18 w64 at+fsr": FULL, "resnet18 w16 at+fsr": pipeline.SMALL}
    if not quick:
        found |= {name: replace(FULL, backbone=name) for name in ("vgg16", "wideresnet34")}
        found |= {f"resnet18 w64, batch {batch}": replace(FULL, batch=batch) for batch in (256, 512)}
    return found


def profile(run: Run, device: torch.device) -> str:
    """Where the time of three steps goes, as torch.profiler's table."""
    data = pipeline.random_data(run, run.batch).to(device)
    trainer = Trainer(run, data, device=device)
    trainer.model.train()
    index = torch.arange(run.batch, device=device)
    for _ in range(3):
        trainer.step(index)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(3):
            trainer.step(index)
        measure.synchronise(device)
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60)


def _one_of_many(number: int, run: Run, steps: int, device: str, ready, go, seconds) -> None:
    """A process of `packed`: warm up, wait for the others, time the steps."""
    torch.set_num_threads(1)
    data = pipeline.random_data(run, run.batch).to(device)
    trainer = Trainer(run, data, device=device)
    trainer.model.train()
    index = torch.arange(run.batch, device=device)
    for _ in range(2):
        trainer.step(index)
    trainer.stepper.tally()
    ready.release()
    go.wait()
    started = time.perf_counter()
    for _ in range(steps):
        trainer.step(index)
    trainer.stepper.tally()
    seconds[number] = time.perf_counter() - started


def packed(run: Run, k: int, steps: int, device: torch.device) -> dict:
    """k processes train a small run each on one device: images per second of all together."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # k processes with a pool of compilers each would thrash
    context = multiprocessing.get_context("spawn")
    ready, go, seconds = context.Semaphore(0), context.Event(), context.Array("d", k)
    places = (run, steps, str(device), ready, go, seconds)
    workers = [context.Process(target=_one_of_many, args=(i, *places)) for i in range(k)]
    for worker in workers:
        worker.start()
    for _ in workers:
        if not ready.acquire(timeout=120):  # one has died: no number is better than a wrong one
            break
    go.set()
    for worker in workers:
        worker.join()
    done = min(seconds) > 0
    return {"runs": k, "images_per_second": k * steps * run.batch / max(seconds) if done else None}


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark asks beyond the usual."""
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument(
        "--parts", nargs="*", default=[], help="only these: epoch, twin, profile, a step's case, packing"
    )


def main() -> None:
    """All parts, each saved and printed as it is done; a part that fails is named and the others go on."""
    given = measure.arguments(__doc__, options)
    device, quick = given.device, given.quick
    n = 256 if quick else given.images
    run = pipeline.SMALL if quick else FULL
    known = ["epoch", "twin", "profile", *step_cases(quick), "packing"]
    for part in given.parts:  # before anything is measured
        if not any(name.startswith(part) for name in known):
            print(f"--parts {part}: no such part; type the beginning of one of: {', '.join(known)}", file=sys.stderr)
            sys.exit(2)
    # some parts never replace the record of all
    where = re.sub(r"[^a-z0-9-]+", "-", "-".join(["gpu", *given.parts]).lower())
    record: dict = {"peak_flops": measure.peak_flops(device), "float32_convolutions": "torch's default"}
    rows: list[dict] = []

    def attempt(name: str, part: Callable[[], None]) -> None:
        """Whatever fails is named and the rest still counts: the machine may be borrowed."""
        if given.parts and not any(name.startswith(part) for part in given.parts):
            return
        try:
            part()
        except Exception as error:
            record.setdefault("failed", {})[name] = str(error)[:500]
        print(name, measure.save(where, rows, device, **record), flush=True)

    def step(name: str, case: Run) -> None:
        """One row of single steps."""
        rows.append(train_step.measure_case(name, case, given.rounds, device, record["peak_flops"]))

    ks = (1, 2) if quick else (1, 2, 4, 8)
    attempt("epoch", lambda: rows.append(pipeline.measure_case(f"epoch of {n} images", run, n, 1, device)))
    at = replace(run, module=None)
    attempt("twin", lambda: rows.append(pipeline.measure_case("a quarter of it, AT alone", at, n // 4, 1, device)))
    attempt("profile", lambda: record.update(profile=profile(run, device)))
    for name, case in step_cases(quick).items():
        attempt(name, lambda name=name, case=case: step(name, case))
    many = 2 if quick else 100
    attempt("packing", lambda: record.update(packed=[packed(pipeline.SMALL, k, many, device) for k in ks]))
    for row in rows:
        print(f"{row['case']:34s} {row['ratio']['median']:5.2f}x {row['seconds']}")
    print(record.get("profile"), record.get("packed"), record.get("failed"))
    print(measure.save_figure(measure.draw_ratios(rows, "Plain against fast"), where, device))


if __name__ == "__main__":
    main()
