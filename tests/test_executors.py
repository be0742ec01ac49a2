"""The same tasks in this process and in workers: same records, and no failure takes the others along."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import FSR_HERE, tiny_run

from fsr import files, hardware, store
from fsr.config import Evaluation, run_id
from fsr.files import Interrupted
from fsr.runs import Options, Task
from fsr.runs import local as executors

CPU = Options(device="cpu")
PAIR = (tiny_run(epochs=1), tiny_run(epochs=1, module=FSR_HERE))
TASKS = [Task(run=run, evaluations=(Evaluation(attack="clean"), Evaluation(attack="fgsm"))) for run in PAIR]


def test_never_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    monkeypatch.setattr(hardware, "REQUESTED_THREADS", None)
    cpu = torch.device("cpu")
    assert executors.shape(TASKS * 5, cpu) == (4, 1)  # small nets: a thread each
    wide = [Task(run=tiny_run(width=64, precision="bf16"))] * 5
    assert executors.shape(wide, cpu) == (1, 4)  # wide nets: all cores for one
    assert executors.shape(wide, cpu, workers=2) == (2, 2)
    assert executors.shape(wide, cpu, workers=99) == (4, 1)
    assert executors.shape(TASKS, cpu) == (2, 1)  # no more processes than tasks
    gpu = torch.device("cuda")
    assert [executors.shape(TASKS, gpu, workers=n) for n in (None, 2, 9)] == [(1, 4), (2, 2), (2, 2)]


def test_the_environment_limits_threads_and_never_adds_any(monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    wide = [Task(run=tiny_run(width=64, precision="bf16"))]
    for asked, expected in ((1, 1), (2, 2), (9, 4)):  # one task alone would take all four cores
        monkeypatch.setattr(hardware, "REQUESTED_THREADS", asked)
        assert executors.shape(wide, torch.device("cpu"), workers=2) == (1, expected)
    assert hardware.threads(0) == 1


@pytest.mark.parametrize("value, asked", [("3", 3), ("2,1", 2), ("0", None), ("", None), ("many", None)])
def test_what_the_environment_asks_for(monkeypatch, value, asked):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert hardware._requested_threads() == asked


def test_workers_make_the_records_that_this_process_makes(root, monkeypatch, tmp_path):
    assert executors.inline(TASKS, CPU) == executors.Outcome()
    digests = [store.environment(run)["checkpoints"] for run in PAIR]
    outcomes = [store.load_evaluation(run, e).correct.tolist() for run in PAIR for e in TASKS[0].evaluations]
    monkeypatch.setenv("FSR_ROOT", str(tmp_path / "workers"))
    seen = []
    options = Options(device="cpu", report=lambda *event: seen.append(event))
    assert executors.local(TASKS, options, workers=2) == executors.Outcome()
    assert [store.environment(run)["checkpoints"] for run in PAIR] == digests
    assert [store.load_evaluation(run, e).correct.tolist() for run in PAIR for e in TASKS[0].evaluations] == outcomes
    names = {run_id(run) for run in PAIR}
    assert {name for name, *_ in seen} == names
    assert sorted(event for event in seen if event[1] == "done") == sorted((name, "done", 1, 1) for name in names)


def test_a_run_is_done_after_its_last_task_failed_or_not_and_not_when_it_was_stopped(monkeypatch):
    """The first run has two tasks, the second fails, the third is stopped."""
    third, said = Task(run=tiny_run(seed=2)), []
    tasks = [TASKS[0], TASKS[1], TASKS[0], third]

    def perform(task, options):
        if task is third:
            raise Interrupted("stopped")
        said.append(task.name)
        return ["it failed"] if task is TASKS[1] else []

    monkeypatch.setattr(executors, "perform", perform)
    outcome = executors.inline(tasks, Options(device="cpu", report=lambda *event: said.append(event)))
    one, two = (task.name for task in TASKS)
    assert said == [one, two, (two, "done", 1, 1), one, (one, "done", 1, 1)]
    assert (outcome.failed, outcome.stopped) == (["it failed"], "signal")


def test_a_failing_task_is_named_at_once_and_the_others_are_done(root, caplog):
    wrong = Task(run=tiny_run(epochs=1, train_size=5000))
    outcome = executors.local([wrong, TASKS[0]], CPU, workers=1)
    assert len(outcome.failed) == 1 and run_id(wrong.run) in outcome.failed[0]
    assert store.has_evaluation(PAIR[0], Evaluation(attack="fgsm")) and outcome.stopped is None
    assert f"failed, the others go on: {run_id(wrong.run)}" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stoppable_takes_the_first_signal_as_a_wish_and_the_second_as_an_order(number):
    before = signal.getsignal(number)
    with executors.stoppable() as flag:
        signal.raise_signal(number)
        assert flag.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.skipif(hardware.cores() < 2, reason="needs two workers")
def test_a_killed_worker_ends_the_call_at_once_although_another_one_is_busy(root):
    """The pool does not watch a worker whose start took a while until another one speaks; it ends them by a SIGTERM."""
    code = f"""
import multiprocessing, os, pathlib, signal, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fsr.runs import local as executors
from fsr.runs import Options, Task
from tiny import tiny_run

start = multiprocessing.process.BaseProcess.start

def slow(process):
    start(process)
    time.sleep(1)

def kill():
    while len(list(pathlib.Path(os.environ["FSR_ROOT"]).rglob("state.safetensors"))) < 2:
        time.sleep(0.05)  # until both are at work
    os.kill(max(child.pid for child in multiprocessing.active_children()), signal.SIGKILL)

if __name__ == "__main__":
    tasks = [Task(run=tiny_run(seed=seed, epochs=100000)) for seed in (0, 1)]
    multiprocessing.process.BaseProcess.start = slow
    threading.Thread(target=kill, daemon=True).start()
    outcome = executors.local(tasks, Options(device="cpu"), workers=2)
    print(sum("a worker process died" in line for line in outcome.failed))
"""
    script = root / "killed.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FSR_ROOT": str(root)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=900)
    assert done.stdout.split() == ["2"], done.stderr


def test_the_time_limit_stops_workers(root):
    outcome = executors.local(TASKS, Options(device="cpu", deadline=time.monotonic() - 1), workers=1)
    assert outcome.stopped == "time" and not store.is_trained(PAIR[0])


def test_a_signal_saves_and_leaves_nothing_half_written(root):
    command = [sys.executable, "-m", "fsr", "train", "whitebox", "--profile", "ci", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(Path(root).rglob("state.safetensors")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # SIGINT has the same handler, see above
    _, errors = process.communicate(timeout=3600)
    assert process.returncode == 130, errors
    assert not list(Path(root).rglob("*.tmp"))
    assert "goes on from here" in errors
    for folder in files.results().glob("checkpoints/*"):
        assert (folder / "state.safetensors").exists() or not list(folder.glob("*.safetensors"))
