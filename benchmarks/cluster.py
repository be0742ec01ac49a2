"""`python -m benchmarks.cluster [--quick]`: eight small trainings on a Ray cluster of this machine, 1 and 2 workers.

Against the same trainings one after the other in this process, and what a task costs by itself: the time that one more
task takes whose work is already done. Every worker is a node of its own with one core.
"""

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks import measure
from fsr import paths
from fsr.cluster.driver import compute
from fsr.cluster.plan import Job, plan
from fsr.config import FSRSpec, Run, for_dataset, replace
from fsr.executors import inline
from fsr.runs import Options, Task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import ray_nodes  # the same nodes as the tests'

EMPTY_TASKS = 100
DIGITS = for_dataset("digits", holdout=100, width=8, blocks=(1, 1, 1, 1), epochs=15, precision="float32")


def eight(quick: bool) -> list[Run]:
    """AT and AT+FSR with four seeds, as the demo profile trains them; quick: on a part of the images for two epochs."""
    base = replace(DIGITS, epochs=2, train_size=256) if quick else DIGITS
    modules = (None, FSRSpec(at=("layer3",)))
    return [replace(base, seed=seed, module=module) for seed in range(4) for module in modules]


def seconds_of(function) -> float:
    """Wall clock of one call that must succeed."""
    started = time.perf_counter()
    outcome = function()
    if outcome.failed or outcome.stopped:
        raise SystemExit(f"failed: {outcome}")
    return time.perf_counter() - started


def alone(runs: list[Run]) -> dict:
    """The baseline: one process, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        paths.use(root=folder)
        took = seconds_of(lambda: inline([Task(run=run) for run in runs], Options(device="cpu")))
    return {"case": "one process", "workers": 0, "seconds": took, "runs_per_minute": 60 * len(runs) / took}


def on_workers(runs: list[Run], workers: int) -> dict:
    """One row: throughput with warm workers, what a task costs, and what connecting costs."""
    options = Options(device="cpu")
    with ray_nodes.cluster(workers=workers) as (address, _), tempfile.TemporaryDirectory() as folder:
        paths.use(root=folder)
        first = [replace(run, epochs=1) for run in runs[:workers]]
        connect = seconds_of(lambda: compute(plan([Task(run=run) for run in first]), options, address=address))
        took = seconds_of(lambda: compute(plan([Task(run=run) for run in runs]), options, address=address))
        one = seconds_of(lambda: compute([Job(Task(run=runs[0]))] * workers, options, address=address))
        many = seconds_of(lambda: compute([Job(Task(run=runs[0]))] * (workers + EMPTY_TASKS), options, address=address))
    return {
        "case": f"{workers} worker{'s' if workers > 1 else ''}", "workers": workers, "seconds": took,
        "runs_per_minute": 60 * len(runs) / took, "first_call_seconds": connect, "connect_and_start_seconds": one,
        "seconds_per_task": (many - one) / EMPTY_TASKS,
    }  # fmt: skip


def main() -> None:
    """Measure, print one line per case, write the record."""
    given = measure.arguments(__doc__)
    root, device = paths.root(), torch.device("cpu")
    os.environ.update(ray_nodes.environment())
    runs = eight(given.quick)
    rows = []
    for measured in (alone, partial(on_workers, workers=1), partial(on_workers, workers=2)):
        rows.append(row := measured(runs))
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    paths.use(root=root)
    print(measure.save("cluster", rows, device, quick=given.quick, load=os.getloadavg()[0]))


if __name__ == "__main__":
    main()
