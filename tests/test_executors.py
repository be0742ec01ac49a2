"""The same tasks in this process and in workers: the same bytes, and no failure takes the others along."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray_nodes
import torch
from tiny import FSR_HERE, results, tiny_run

from fsr import files, hardware, runs, store
from fsr.cli.options import Executor, Setting
from fsr.config import Analysis, Evaluation, run_id
from fsr.files import TimeUp
from fsr.runs import Options, Task
from fsr.runs import local as executors

CPU = Options(device="cpu")
# random starts, noise, random queries, AutoAttack; the analysis samples noisy masks
ATTACKS = {"pgd100-restarts": 2, "random-noise": None, "di-fgsm": None, "autoattack-ci": None}  # to their steps
RUNS = (tiny_run(epochs=1, module=FSR_HERE), tiny_run(epochs=1, method="trades", awp=0.005))
LOOKS = tuple(Evaluation(attack=name, images=8, steps=steps) for name, steps in ATTACKS.items())
TASKS = [Task(run=run, parts=(*LOOKS, Analysis(kind="masks")) if run.fsr else LOOKS) for run in RUNS]


def test_never_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    monkeypatch.setattr(hardware, "REQUESTED_THREADS", 0)
    cpu, gpu, wide = torch.device("cpu"), torch.device("cuda"), [Task(run=tiny_run(width=64, precision="bf16"))] * 5
    assert executors.shape(TASKS * 5, cpu) == (4, 1)  # small nets: a thread each
    assert [executors.shape(wide, cpu, n) for n in (None, 2, 99)] == [(1, 4), (2, 2), (5, 1)]  # wide nets: all cores
    assert executors.shape(TASKS, cpu) == (2, 1)  # no more processes than tasks
    assert [executors.shape(TASKS * 3, gpu, n) for n in (None, 2, 9)] == [(1, 4), (2, 2), (6, 1)]
    for required, threads in ((1, 1), (2, 2), (9, 4)):  # the environment limits threads and never adds any
        monkeypatch.setattr(hardware, "REQUESTED_THREADS", required)
        assert executors.shape(wide[:1], cpu, 2) == (1, threads)


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
    print(executors.run_tasks(tasks, Options(device="cpu"), workers=2))
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
    assert failed.count("BrokenProcessPool") == 1 and run_id(LONG) in failed
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
    for compute in (executors.run_tasks, executors.run_inline):
        with pytest.raises(TimeUp):
            compute(TASKS, late)
        assert not store.is_trained(RUNS[0]) and not said


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


ALONE = """
import random, sys, numpy, torch
sys.path.insert(0, sys.argv[1])
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)  # what ran before must not matter
from test_executors import CPU, TASKS, executors
sys.exit("; ".join(executors.run_inline(TASKS, CPU)) or 0)
"""


def test_one_process_and_two_workers_make_the_same_bytes_and_say_what_fails(root, monkeypatch, tmp_path):
    command = [sys.executable, "-c", ALONE, str(Path(__file__).parent)]
    environment = {**os.environ, "FSR_ROOT": str(tmp_path / "alone"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("FSR_ROOT", str(tmp_path / "workers"))
    wrong, seen = Task(run=tiny_run(epochs=1, train_size=5000)), []
    options = Options(device="cpu", report=lambda *event: seen.append(event))
    (failed,) = executors.run_tasks([wrong, *TASKS], options, workers=2)
    assert run_id(wrong.run) in failed and not files.run_dir(wrong.name).exists()  # what is refused leaves nothing
    names = {task.name for task in (wrong, *TASKS)}
    assert sorted(event for event in seen if event[1] == "done") == sorted((name, "done", 1, 1) for name in names)
    assert any(what.startswith("last di-fgsm") for _, what, *_ in seen)
    alone = results(tmp_path / "alone")
    assert len(alone) >= len(RUNS) * (4 + len(ATTACKS)) + 1  # history, last, best, ema; one analysis
    assert alone == results(tmp_path / "workers")


def test_deterministic_reaches_whatever_computes(root, monkeypatch):
    called = []
    monkeypatch.setattr(hardware, "make_deterministic", lambda: called.append(1))
    for deterministic in (False, True):
        Setting(device="cpu", executor=Executor.inline, deterministic=deterministic).compute([Task(run=RUNS[0])])
        shutil.rmtree(root / "results")
    assert called == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_two_trainings_on_a_gpu_are_the_same_bytes(root, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    hardware.make_deterministic()
    run, digests = tiny_run(module=FSR_HERE, precision="bf16"), []
    try:
        for name in ("one", "two"):
            monkeypatch.setenv("FSR_ROOT", str(tmp_path / name))
            runs.ensure_trained(run, Options(device="cuda"))
            digests.append(store.environment(run)["checkpoints"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert digests[0] == digests[1]
