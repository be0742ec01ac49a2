"""`python -m benchmarks.cluster [--quick]`: eight small trainings on a Ray cluster of this machine, 1 and 2 workers.

Against the same trainings one after the other in this process, and what a task costs by itself, whose work is already
done. Every worker is a node of its own with one core. The cases take turns, round by round, and a ratio compares one
round's: other work on the machine slows them alike. Seconds run from the first batch to the last one's return; what a
command takes before that (connecting, sending the package, starting processes that import torch) is `start_seconds`.
"""

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks import measure
from fsr import files
from fsr.config import FSRSpec, Run, for_dataset, replace
from fsr.runs import Options, Task
from fsr.runs.local import run_inline
from fsr.runs.ray import run_tasks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import ray_nodes  # the same nodes as the tests'

EMPTY_TASKS = 500
DIGITS = for_dataset("digits", holdout=100, width=8, blocks=(1, 1, 1, 1), epochs=5, precision="float32")


def eight(quick: bool) -> list[Run]:
    """AT and AT+FSR with four seeds, the demo profile's network; quick: on a part of the images for two epochs."""
    base = replace(DIGITS, epochs=2, train_size=256) if quick else DIGITS
    modules = (None, FSRSpec(at=("layer3",)))
    return [replace(base, seed=seed, module=module) for seed in range(4) for module in modules]


def timed(function) -> tuple[float, float, list[tuple]]:
    """(seconds before the first report, seconds from then on, reports with their times) of a call that must succeed.

    function: takes Options.
    """
    heard, started = [], time.perf_counter()
    report = lambda *event: heard.append((time.perf_counter(), *event))  # noqa: E731
    outcome = function(Options(device="cpu", report=report))
    if outcome.failed or outcome.stopped or not heard:
        raise SystemExit(f"failed: {outcome}")
    return heard[0][0] - started, time.perf_counter() - heard[0][0], heard


def alone(runs: list[Run]) -> dict[str, float]:
    """The baseline: one process, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        files.use(root=folder)
        load = os.getloadavg()[0]
        start, seconds, _ = timed(lambda options: run_inline([Task(run=run) for run in runs], options))
    return {"seconds": seconds, "start_seconds": start, "load_before": load}


def on_workers(runs: list[Run], workers: int) -> dict[str, float]:
    """The same on a cluster, and what a task costs that finds its work done."""
    with ray_nodes.cluster(workers=workers) as (address, _), tempfile.TemporaryDirectory() as folder:
        files.use(root=folder)
        load = os.getloadavg()[0]
        tasks = [Task(run=run) for run in runs]
        start, seconds, _ = timed(lambda options: run_tasks(tasks, options, address=address))
        task = seconds_per_task(runs[0], workers, address)
    return {"seconds": seconds, "start_seconds": start, "seconds_per_task": task, "load_before": load}


def seconds_per_task(done: Run, workers: int, address: str) -> float:
    """Between a short training and the next one in every worker's queue: tasks whose work is done, one by one."""
    short = [Task(run=replace(done, epochs=1, seed=100 + i)) for i in range(2 * workers)]
    before, after = short[:workers], short[workers:]
    tasks = [*before, *[Task(run=done)] * EMPTY_TASKS, *after]
    *_, told = timed(lambda options: run_tasks(tasks, options, address=address))
    heard = [event for event in told if event[2] != "done"]  # from workers: the driver alone says `done`, and later
    ended = max(when for when, name, *_ in heard if name in {task.name for task in before})
    began = min(when for when, name, *_ in heard if name in {task.name for task in after})
    return (began - ended) / EMPTY_TASKS


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
    root, device = files.root(), torch.device("cpu")
    os.environ.update(ray_nodes.environment())
    runs, rounds = eight(given.quick), []
    for _ in range(given.rounds):
        rounds.append({})
        for case, measured in CASES.items():
            rounds[-1][case] = measured(runs)
            print(case, {key: round(value, 4) for key, value in rounds[-1][case].items()}, flush=True)
    files.use(root=root)
    rows = [row(case, rounds, len(runs)) for case in CASES]
    print(measure.save("cluster", rows, device, quick=given.quick, rounds=given.rounds, epochs=runs[0].epochs))


if __name__ == "__main__":
    main()
