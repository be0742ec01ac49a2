"""`python -m benchmarks.cluster [--quick]`: eight small trainings on a Ray cluster of this machine, 1 and 2 workers.

Against the same trainings one after the other in this process, and what a task costs by itself: the time that one more
task takes whose work is already done. Every worker is a node of its own with one core. The cases take turns, round by
round, and a ratio compares one round's: other work on the machine slows them alike. What it cannot change much is
`cpu_seconds`, the processor time of everything that a case needs (for a cluster: driver, head and nodes).
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
DIGITS = for_dataset("digits", holdout=100, width=8, blocks=(1, 1, 1, 1), epochs=5, precision="float32")


def eight(quick: bool) -> list[Run]:
    """AT and AT+FSR with four seeds, the demo profile's network; quick: on a part of the images for two epochs."""
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


def alone(runs: list[Run]) -> dict[str, float]:
    """The baseline: one process, one thread, warm."""
    with tempfile.TemporaryDirectory() as folder:
        paths.use(root=folder)
        inline([Task(run=replace(runs[0], epochs=1))], Options(device="cpu"))
        load, spent = os.getloadavg()[0], time.process_time()
        took = seconds_of(lambda: inline([Task(run=run) for run in runs], Options(device="cpu")))
    return {"seconds": took, "cpu_seconds": time.process_time() - spent, "load_before": load}


def on_workers(runs: list[Run], workers: int) -> dict[str, float]:
    """Throughput with warm workers, what a task costs, and what connecting costs."""
    with ray_nodes.cluster(workers=workers) as (address, nodes), tempfile.TemporaryDirectory() as folder:
        paths.use(root=folder)

        def took(jobs: list[Job]) -> float:
            return seconds_of(lambda: compute(jobs, Options(device="cpu"), address=address))

        def spent() -> float:
            return time.process_time() + sum(map(ray_nodes.cpu_seconds, nodes))

        first = took(plan([Task(run=replace(run, epochs=1)) for run in runs[:workers]]))
        load, before = os.getloadavg()[0], spent()
        seconds, cpu_seconds = took(plan([Task(run=run) for run in runs])), spent() - before
        one = took([Job(Task(run=runs[0]))] * workers)
        many = took([Job(Task(run=runs[0]))] * (workers + EMPTY_TASKS))
    return {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "load_before": load, "first_call_seconds": first,
        "connect_and_start_seconds": one, "seconds_per_task": (many - one) / EMPTY_TASKS,
    }  # fmt: skip


CASES = {
    "one process": alone,
    "1 worker": partial(on_workers, workers=1),
    "2 workers": partial(on_workers, workers=2),
}


def row(case: str, rounds: list[dict[str, dict[str, float]]], count: int) -> dict:
    """Median and range over rounds; ratio: how many times faster than one process in the same round."""
    values = {key: measure.spread([one[case][key] for one in rounds]) for key in rounds[0][case]}
    times = {name: [one[name]["seconds"] for one in rounds] for name in ("one process", case)}
    minutes = measure.spread([60 * count / seconds for seconds in times[case]])
    return {"case": case, "ratio": measure.ratios(times, "one process", case), "runs_per_minute": minutes, **values}


def main() -> None:
    """Measure in rounds, print one line per case and round, write the record."""
    given = measure.arguments(__doc__, lambda parser: parser.set_defaults(rounds=3))
    root, device = paths.root(), torch.device("cpu")
    os.environ.update(ray_nodes.environment())
    runs, rounds = eight(given.quick), []
    for _ in range(given.rounds):
        rounds.append({})
        for case, measured in CASES.items():
            rounds[-1][case] = measured(runs)
            print(case, {key: round(value, 4) for key, value in rounds[-1][case].items()}, flush=True)
    paths.use(root=root)
    rows = [row(case, rounds, len(runs)) for case in CASES]
    print(measure.save("cluster", rows, device, quick=given.quick, rounds=given.rounds, epochs=runs[0].epochs))


if __name__ == "__main__":
    main()
