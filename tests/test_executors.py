"""The same tasks in this process and in workers: same records, and no failure takes the others along."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray_nodes
import torch
from tiny import FSR_HERE, tiny_run

from fsr import files, hardware, runs, store
from fsr.config import Evaluation, run_id
from fsr.runs import Options, Task
from fsr.runs import local as executors

CPU = Options(device="cpu")
PAIR = (tiny_run(epochs=1), tiny_run(epochs=1, module=FSR_HERE))
TASKS = [Task(run=run, evaluations=(Evaluation(attack="clean"), Evaluation(attack="fgsm"))) for run in PAIR]


def test_never_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    monkeypatch.setattr(hardware, "REQUESTED_THREADS", 0)
    cpu, gpu, wide = torch.device("cpu"), torch.device("cuda"), [Task(run=tiny_run(width=64, precision="bf16"))] * 5
    assert executors.shape(TASKS * 5, cpu) == (4, 1)  # small nets: a thread each
    assert [executors.shape(wide, cpu, n) for n in (None, 2, 99)] == [(1, 4), (2, 2), (4, 1)]  # wide nets: all cores
    assert executors.shape(TASKS, cpu) == (2, 1)  # no more processes than tasks
    assert [executors.shape(TASKS * 3, gpu, n) for n in (None, 2, 9)] == [(1, 4), (2, 2), (6, 1)]
    for asked, threads in ((1, 1), (2, 2), (9, 4)):  # the environment limits threads and never adds any
        monkeypatch.setattr(hardware, "REQUESTED_THREADS", asked)
        assert executors.shape(wide[:1], cpu, 2) == (1, threads)


def test_workers_do_what_one_process_does_and_name_at_once_what_fails(root, caplog):
    """Equal bytes: see test_determinism."""
    wrong, seen = Task(run=tiny_run(epochs=1, train_size=5000)), []
    options = Options(device="cpu", report=lambda *event: seen.append(event))
    outcome = executors.run_tasks([wrong, *TASKS], options, workers=1)
    assert outcome.stopped is None and len(outcome.failed) == 1 and run_id(wrong.run) in outcome.failed[0]
    assert f"failed, the others go on: {run_id(wrong.run)}" in caplog.text
    assert not any(task.missing() for task in TASKS)
    names = {task.name for task in (wrong, *TASKS)}
    assert sorted(event for event in seen if event[1] == "done") == sorted((name, "done", 1, 1) for name in names)
    assert {what for _, what, *_ in seen} > {"done", "last clean"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stoppable_takes_the_first_signal_as_a_wish_and_the_second_as_an_order(number):
    before = signal.getsignal(number)
    with executors.stoppable() as flag:
        signal.raise_signal(number)
        assert flag.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


LONG, OTHER, LAST = tiny_run(seed=5, epochs=100_000), tiny_run(seed=6, epochs=20), tiny_run(seed=7, epochs=1)
SCRIPT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_executors import LAST, LONG, OTHER, Options, Task, executors

if __name__ == "__main__":
    tasks = [Task(run=run) for run in (LONG, OTHER, LAST)]
    print(executors.run_tasks(tasks, Options(device="cpu"), workers=2).failed)
"""


def started(root: Path) -> tuple[subprocess.Popen, list[int]]:
    """A process whose two workers are in mid-training, and their ids, that of LONG first."""
    (root / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FSR_ROOT": str(root)}
    process = subprocess.Popen([sys.executable, root / "script.py"], env=environment, stdout=subprocess.PIPE, text=True)
    while not all(runs.state_path(run).exists() for run in (LONG, OTHER)):
        assert process.poll() is None
        time.sleep(0.05)
    held = {}  # run id -> who holds its lock
    for pid in ray_nodes.children(process.pid):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                held[Path(os.readlink(link)).stem] = pid
    return process, [held[run_id(run)] for run in (LONG, OTHER)]


def test_a_killed_worker_costs_its_own_task_only(root):
    process, (pid, _) = started(root)
    os.kill(pid, signal.SIGKILL)
    failed = process.communicate(timeout=900)[0]
    assert failed.count("worker process died") == 1 and run_id(LONG) in failed
    assert store.is_trained(OTHER) and store.is_trained(LAST) and not store.is_trained(LONG)


def test_after_its_parent_was_killed_no_worker_goes_on_writing(root):
    process, pids = started(root)
    process.kill()
    process.communicate()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/fd").exists() and list(Path(f"/proc/{pid}/fd").iterdir()) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    time.sleep(1)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_time_limit_stops_workers(root):
    said: list = []
    late = Options(device="cpu", deadline=time.monotonic() - 1, report=lambda *event: said.append(event))
    for outcome in (executors.run_tasks(TASKS, late, workers=1), executors.run_inline(TASKS, late)):
        assert outcome.stopped == "time" and not store.is_trained(PAIR[0]) and not said


def test_a_signal_saves_and_leaves_nothing_half_written(root):
    command = [sys.executable, "-m", "fsr", "train", "whitebox", "--profile", "ci", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(Path(root).rglob("state.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # SIGINT has the same handler, see above
    _, errors = process.communicate(timeout=3600)
    assert process.returncode == 130 and "goes on from here" in errors, errors
    assert not list(Path(root).rglob("*.tmp"))
    for folder in files.results().glob("checkpoints/*"):
        assert (folder / "state.safetensors").exists() or not list(folder.glob("*.safetensors"))
