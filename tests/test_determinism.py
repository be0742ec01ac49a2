"""The same run twice is bit-identical on a CPU: across processes, workers and everything that is seeded."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import FSR_HERE, tiny_run

from fsr import hardware, runs, store
from fsr.cli.options import Executor, Setting
from fsr.config import Analysis, Evaluation
from fsr.runs import Options, Task, ray
from fsr.runs import local as executors
from fsr.train import distributed

CPU = Options(device="cpu")
# random starts, noise, random queries, AutoAttack; the analysis samples noisy masks
ATTACKS = {"pgd100-restarts": 2, "random-noise": None, "di-fgsm": None, "autoattack-ci": None}  # to their steps
RUNS = (tiny_run(epochs=1, module=FSR_HERE), tiny_run(epochs=1, method="trades", awp=0.005))
TASKS = [
    Task(
        run=run,
        evaluations=tuple(Evaluation(attack=a, images=8, steps=steps) for a, steps in ATTACKS.items()),
        analyses=(Analysis(kind="masks"),) if run.fsr else (),
    )
    for run in RUNS
]

ALONE = """
import random, sys, numpy, torch
sys.path.insert(0, sys.argv[1])
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)  # what ran before must not matter
from test_determinism import CPU, TASKS, executors
outcome = executors.run_inline(TASKS, CPU)
sys.exit(str(outcome) if outcome.failed or outcome.stopped else 0)
"""


def results(root: Path) -> dict:
    """Weights, outcomes and histories byte by byte, but for histories' seconds."""
    out: dict = {p.relative_to(root): pd.read_csv(p).drop(columns="seconds").to_csv() for p in root.rglob("*.csv")}
    kept = (p for p in root.rglob("*") if p.suffix in (".npz", ".safetensors") and p.stem != "state")  # has seconds
    return out | {p.relative_to(root): p.read_bytes() for p in kept}


def test_one_process_and_two_workers_make_the_same_bytes(root, monkeypatch, tmp_path):
    command = [sys.executable, "-c", ALONE, str(Path(__file__).parent)]
    environment = {**os.environ, "FSR_ROOT": str(tmp_path / "alone"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("FSR_ROOT", str(tmp_path / "workers"))
    assert executors.run_tasks(TASKS, CPU, workers=2) == executors.Summary()
    alone = results(tmp_path / "alone")
    assert len(alone) >= len(RUNS) * (4 + len(ATTACKS)) + 1  # history, last, best, ema; one analysis
    assert alone == results(tmp_path / "workers")


@pytest.fixture
def as_before():
    """Deterministic algorithms are for the whole process: put everything back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.deterministic = before[1]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_deterministic_is_wired_wherever_tasks_run(root, monkeypatch, as_before):
    called = []
    monkeypatch.setattr(hardware, "make_deterministic", lambda: called.append("here"))
    for name, room in (("local", executors), ("ray", ray)):
        monkeypatch.setattr(room, "run_tasks", lambda *_, name=name, **how: called.append((name, how["deterministic"])))
    monkeypatch.setattr(executors, "run_inline", lambda tasks, options: executors.Summary())
    monkeypatch.setattr(executors, "run_together", lambda *_: executors.Summary())
    for executor in Executor:
        Setting(device="cpu", executor=executor, deterministic=True).compute(TASKS)
    Setting(device="cpu", executor=Executor.inline).compute(TASKS)
    monkeypatch.setattr(distributed, "requested", lambda: True)
    Setting(device="cpu", deterministic=True).compute([replace(TASKS[0], evaluations=(), analyses=())])
    assert sorted(map(str, called)) == sorted(map(str, ["here", "here", ("local", True), ("ray", True)]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_two_trainings_on_a_gpu_are_the_same_bytes(root, monkeypatch, tmp_path, as_before):
    hardware.make_deterministic()
    run, digests = tiny_run(module=FSR_HERE, precision="bf16"), []
    for name in ("one", "two"):
        monkeypatch.setenv("FSR_ROOT", str(tmp_path / name))
        runs.ensure_trained(run, Options(device="cuda"))
        digests.append(store.environment(run)["checkpoints"])
    assert digests[0] == digests[1]
