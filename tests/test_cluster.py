"""A Ray cluster computes what one process computes, whoever is killed on the way."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray_nodes
from tiny import results

from fsr import files, store
from fsr.config import Analysis, Evaluation, FSRSpec, Run, for_dataset, run_id
from fsr.files import FSRError, TimeUp, UsageError
from fsr.runs import Options, Task, perform, state_path
from fsr.runs import ray as room
from fsr.runs.local import run_inline
from fsr.runs.ray import resources, run_tasks
from fsr.store.weights import load_tensors

SIZES = {"train_size": 192, "test_size": 64, "holdout": 32, "width": 4, "blocks": (1, 1, 1, 1), "batch": 32}
BASE = for_dataset("digits", epochs=12, precision="float32", **SIZES)
RUNS = (BASE, replace(BASE, module=FSRSpec(at=("layer3",))), replace(BASE, seed=1))
LOOKS = (Evaluation(attack="clean"), Evaluation(attack="pgd20", checkpoint="ema"))
SURROGATE = Evaluation(attack="transfer", surrogate=run_id(RUNS[2]))
HELD = 4  # the epoch in which trainings wait for a test
PATIENCE = 900  # seconds, for a machine that does other work as well
TASKS = [Task(run=run, parts=LOOKS) for run in RUNS] + [Task(run=RUNS[0], parts=(SURROGATE,))]


def test_small_networks_share_a_gpu_and_take_one_core():
    wide, timed = Task(run=Run()), Task(run=BASE, parts=(Analysis(kind="cost"),))
    shares = [resources(task, gpus=True) for task in (wide, Task(run=Run(width=16)), timed)]
    assert [need["num_gpus"] for need in shares] == [1, 0.25, 1]  # what is timed has it for itself
    assert resources(wide, gpus=False) == {"num_gpus": 0, "num_cpus": 1}


class FakeRay:
    """Tasks are done one by one in a thread."""

    def __init__(self):
        self.exceptions, self.asked = pytest.importorskip("ray.exceptions"), []
        self.thread = ThreadPoolExecutor(1)

    def remote(self, thing):
        def start(options, *arguments):
            self.asked.append(options)
            return SimpleNamespace(future=lambda: self.thread.submit(thing, *arguments))

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=partial(start, options)))

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0}}]

    def init(self, address, **setting):
        self.setting = setting

    def shutdown(self):
        pass


@pytest.fixture
def ray(root, monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def replaced(monkeypatch, behaviour=lambda task, options: []) -> list[Task]:
    """Replace the work by `behaviour`; returns the list that each task is added to."""
    done: list[Task] = []
    monkeypatch.setattr(room, "perform", lambda task, options: done.append(task) or behaviour(task, options))
    return done


def test_all_tasks_are_done_in_order_and_reported(ray, root, monkeypatch):
    heard, done = [], replaced(monkeypatch)
    assert run_tasks(TASKS, Options(report=lambda *event: heard.append(event))) == [] and done == TASKS
    assert sorted(heard) == sorted((task.name, "done", 1, 1) for task in TASKS)
    assert {(o["num_gpus"], o["num_cpus"], o["max_retries"]) for o in ray.asked} == {(0, 1, room.RETRIES)}
    sent = ray.setting["runtime_env"]["env_vars"]
    assert sent["FSR_ROOT"] == str(root) and sent.get("FSR_COMMIT") == files.provenance()["commit"]
    assert not list((files.results() / ".locks").glob("*.shared"))


def test_what_fails_is_one_line_and_leaves_the_others(ray, monkeypatch):
    def lose(task, _):
        if task.run == BASE:
            raise ray.exceptions.WorkerCrashedError
        return []

    done = replaced(monkeypatch, lose)
    failed = run_tasks(TASKS, Options())
    assert done == TASKS and len(failed) == 2  # two tasks are of that run
    assert all(line.startswith(f"{run_id(BASE)}: WorkerCrashedError") for line in failed)
    done = replaced(monkeypatch)
    monkeypatch.setattr(room.Path, "exists", lambda path: path.suffix != ".shared")
    failed = run_tasks(TASKS, Options())
    assert len(failed) == 4 and all("does not see" in line for line in failed) and not done


def test_the_time_limit_stops_tasks_that_have_not_begun(ray, monkeypatch):
    done: list[Task] = []

    def work(task, options):
        while not done and not options.interrupted():
            time.sleep(0.01)
        options.check()
        done.append(task)

    replaced(monkeypatch, work)
    with pytest.raises(TimeUp):
        run_tasks(TASKS, Options(deadline=time.monotonic() + 0.5))
    assert not done


def test_no_ray_and_wrong_addresses_are_one_clear_line(ray, root, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Could not find any running Ray instance. Please give one.\nMore text")

    ray.init = refuse
    addresses = {"auto": r".*running Ray instance\); start one by `ray start", "127.0.0.1:1": "", f"{'a' * 70}:1": ""}
    for address, says in (addresses | {"ray://127.0.0.1:10001": ""}).items():
        with pytest.raises(UsageError, match=rf"^no Ray cluster at '{address}'{says}") as caught:
            run_tasks(TASKS, Options(), address=address)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed; type `pip install"):
        run_tasks(TASKS, Options())


@pytest.fixture(scope="module")
def nodes():
    """(address, [head, worker, worker]) of a cluster on loopback: more slots in all than there are trainings."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_nodes.environment().items():
            patch.setenv(name, value)
        with ray_nodes.cluster(cpus=2) as started:
            yield started


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(root := tmp_path_factory.mktemp("inline")))
        assert run_inline(TASKS, Options(device="cpu")) == []
        return results(root)


def driver(root: Path, address: str) -> subprocess.Popen:
    """A driver of its own: this file as a program."""
    with open(root / "driver.log", "wb") as log:
        command = [sys.executable, __file__, address]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finished(process: subprocess.Popen, root: Path) -> None:
    """Wait for a driver that must succeed."""
    assert process.wait(PATIENCE) == 0, (root / "driver.log").read_text()[-3000:]


def held_work(*arguments):
    """A task, sent to workers by value, whose training waits in epoch HELD while the root has a file `hold`."""

    def held(task, options):
        def report(name, what, done, of):
            while what.startswith(f"epoch {HELD}/") and (files.root() / "hold").exists() and not options.interrupted():
                time.sleep(0.05)

        return perform(task, replace(options, report=report))

    room.perform = held
    return room._work(*arguments)


def epoch(run: Run) -> int:
    return load_tensors(state_path(run))[1]["epoch"] if state_path(run).exists() else 0


@pytest.fixture
def held(root, nodes, monkeypatch):
    """(driver, run): trainings wait while there is a file `hold`; the run has a checkpoint, and epochs to go."""
    monkeypatch.setenv("FSR_COMMIT", "0" * 40)  # nodes have no repository: the driver says which code it sent
    (root / "hold").touch()
    process, until, waiting = driver(root, nodes[0]), time.monotonic() + PATIENCE, []
    while not waiting:
        assert time.monotonic() < until and process.poll() is None, (root / "driver.log").read_text()
        time.sleep(0.05)
        waiting = [run for run in RUNS if epoch(run) == HELD]
    yield process, waiting[0]
    (root / "hold").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_a_driver_that_ends_leaves_checkpoints_and_no_worker(root, nodes, expected, held, number, code):
    process, run = held
    process.send_signal(number)
    assert process.wait(PATIENCE) == code
    until = time.monotonic() + PATIENCE
    while any(ray_nodes.working(node, "ray::digits") for node in nodes[1]):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert not store.is_trained(run) and epoch(run) == HELD
    (root / "hold").unlink()
    finished(driver(root, nodes[0]), root)
    assert results(root) == expected


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["worker", "node"])  # a node last: the cluster is smaller afterwards
def test_a_cluster_records_what_one_process_records_though_one_is_lost(root, nodes, expected, held, lost):
    process, run = held
    result = {node: ray_nodes.working(node, f"ray::{run_id(run)}") for node in nodes[1][1:]}
    node = max(result, key=lambda node: len(result[node]))
    for pid in result[node] if lost == "worker" else [node.pid, *ray_nodes.children(node.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert result[node] and not store.is_trained(run)
    (root / "hold").unlink()
    finished(process, root)
    record = store.environment(run)  # the new worker went on from the checkpoint
    assert [part["first_step"] for part in record["sittings"]] == [0, record["steps"] // run.epochs * (HELD - 1)]
    assert results(root) == expected and store.environment(RUNS[0])["commit"] == "0" * 40
    assert not list((files.results() / ".locks").glob("*.shared"))


if __name__ == "__main__":  # a driver: all tasks on the cluster
    if (files.root() / "hold").exists():
        room._work = held_work
    try:
        sys.exit("; ".join(run_tasks(TASKS, Options(), address=sys.argv[1])) or 0)
    except FSRError as error:
        sys.exit(error.exit_code)
