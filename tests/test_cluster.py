"""A Ray cluster computes what one process computes, whoever is killed on the way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray_nodes

from fsr import files, store
from fsr.config import Analysis, Evaluation, FSRSpec, Run, for_dataset, run_id
from fsr.files import UsageError
from fsr.runs import Options, Task, local, perform, state_path, weights_path
from fsr.runs import ray as room
from fsr.runs.local import run_inline
from fsr.runs.ray import resources, run_tasks
from fsr.store.weights import load_tensors

BASE = for_dataset(
    "digits", train_size=192, test_size=64, holdout=32, width=4, blocks=(1, 1, 1, 1), batch=32, epochs=12,
    precision="float32",
)  # fmt: skip
RUNS = (BASE, replace(BASE, module=FSRSpec(at=("layer3",))), replace(BASE, seed=1))
LOOKS = (Evaluation(attack="clean"), Evaluation(attack="pgd20", checkpoint="ema"))
SURROGATE = Evaluation(attack="transfer", surrogate=run_id(RUNS[2]))
HELD = 4  # the epoch in which trainings wait for a test
SLOTS = 2  # tasks at once of a node: more in all than there are trainings
PATIENCE = 900  # seconds, for a machine that does other work as well
TASKS = [Task(run=run, evaluations=LOOKS) for run in RUNS] + [Task(run=RUNS[0], evaluations=(SURROGATE,))]


def test_small_networks_share_a_gpu_and_take_one_core():
    small, wide = Task(run=BASE), Task(run=Run())
    assert resources(wide, gpus=True, cpus=8) == {"num_gpus": 1, "num_cpus": 1}
    assert resources(small, gpus=True, cpus=8)["num_gpus"] == 0.125
    assert resources(Task(run=Run(width=16)), gpus=True, cpus=8)["num_gpus"] == 0.25
    timed = Task(run=BASE, analyses=(Analysis(kind="cost"),))
    assert resources(timed, gpus=True, cpus=8)["num_gpus"] == 1  # what is timed has it for itself
    assert resources(wide, gpus=False, cpus=8) == {"num_gpus": 0, "num_cpus": 8}
    assert resources(small, gpus=False, cpus=8) == {"num_gpus": 0, "num_cpus": 1}


# --- wrong use ---------------------------------------------------------------------------------------------


def test_nothing_to_do_needs_no_cluster(root):
    assert run_tasks([], Options(), address="127.0.0.1:1").stopped is None


def test_without_ray_the_error_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed; type `pip install"):
        run_tasks(TASKS, Options())


def test_an_address_where_nobody_answers_is_one_clear_line_at_once(root):
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"no Ray cluster at '127.0.0.1:1' .*; start one by `ray start") as caught:
        run_tasks(TASKS, Options(), address=f"127.0.0.1:{1}")
    assert "\n" not in str(caught.value)


# --- a real cluster ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """(address, [head, worker, worker]) of a cluster on loopback."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_nodes.environment().items():
            patch.setenv(name, value)
        with ray_nodes.cluster(cpus=SLOTS) as started:
            yield started


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process records."""
    root = tmp_path_factory.mktemp("inline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSR_ROOT", str(root))
        assert run_inline(TASKS, Options(device="cpu")).failed == []
        return recorded()


def recorded() -> dict:
    """Everything that must not depend on who computed it: histories, digests of weights, outcomes."""
    out = {}
    for run in RUNS:
        history = store.history(run).drop(columns="seconds")
        kept = {kind: load_tensors(weights_path(run, kind))[0] for kind in ("last", "best", "ema")}
        out[run_id(run)] = {
            "history": history.to_csv(),
            "digests": store.environment(run)["checkpoints"],
            "weights": {kind: sum(float(t.double().sum()) for t in tensors.values()) for kind, tensors in kept.items()},
            "correct": [store.load_evaluation(run, e).correct.tolist() for e in LOOKS],
        }
    return out | {"transfer": store.load_evaluation(RUNS[0], SURROGATE).correct.tolist()}


def driver(root: Path, address: str, name: str = "driver", *, unseen: Path | None = None) -> subprocess.Popen:
    """A driver of its own: this file as a program; its reports go to root/<name>.jsonl.

    unseen: a folder that it takes for its results and no worker does.
    """
    with open(root / f"{name}.log", "wb") as log:
        command = [sys.executable, __file__, address, str(root / f"{name}.jsonl"), *([str(unseen)] if unseen else [])]
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def told(root: Path, name: str = "driver") -> list[tuple]:
    """What a driver was told so far: (run, what, done, of)."""
    path = root / f"{name}.jsonl"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def finished(process: subprocess.Popen, root: Path, name: str = "driver") -> list[tuple]:
    """Wait for a driver that must succeed; returns what it was told."""
    assert process.wait(PATIENCE) == 0, (root / f"{name}.log").read_text()[-3000:]
    return told(root, name)


def eventually(condition, process: subprocess.Popen, root: Path):
    """What `condition` returns as soon as it is true; the driver must live until then."""
    until = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < until and process.poll() is None, "".join(p.read_text() for p in root.glob("*.log"))
        time.sleep(0.05)
    return found


def held_work(*arguments):
    """A task whose training waits in epoch HELD for as long as there is a file `hold` in the root.

    It travels to the workers by value, as everything in a driver's own file does.
    """

    def held(task, options):
        def report(name, what, done, of):
            options.report(name, what, done, of)
            while what.startswith(f"epoch {HELD}/") and (files.root() / "hold").exists() and not options.interrupted():
                time.sleep(0.05)

        return perform(task, replace(options, report=report))

    local.perform = held
    return room._work(*arguments)


@pytest.fixture
def hold(root):
    """A file: while it is there, trainings of drivers that were started after it wait in mid-training."""
    path = root / "hold"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


def held_run(process: subprocess.Popen, root: Path) -> Run:
    """A run in mid-training: it has a checkpoint, epochs to go, and waits."""
    log = root / "driver.jsonl"
    where = f"epoch {HELD}/{BASE.epochs}"
    names = eventually(lambda: log.exists() and [n for n, what, *_ in told(root) if what == where], process, root)
    run = next(run for run in RUNS if run_id(run) == names[0])
    assert load_tensors(state_path(run))[1]["epoch"] == HELD
    return run


def trainings(events: list[tuple]) -> list[str]:
    """Runs whose last step a driver was told of."""
    return [name for name, what, done, of in events if what.startswith("epoch") and done == of]


@pytest.mark.slow
def test_a_cluster_records_what_one_process_records(root, nodes, expected, monkeypatch):
    monkeypatch.setenv("FSR_COMMIT", "0" * 40)  # nodes have no repository: the driver says which code it sent
    events = finished(driver(root, nodes[0]), root)
    assert recorded() == expected
    assert sorted(trainings(events)) == sorted(map(run_id, RUNS))
    assert {what for _, what, *_ in events} >= {"last clean", "ema pgd20"}
    assert store.environment(RUNS[0])["commit"] == "0" * 40
    assert not list((files.results() / ".locks").glob("*.shared"))


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_goes_on_from_its_checkpoint(root, nodes, expected, hold):
    process = driver(root, nodes[0])
    run = held_run(process, root)
    killed = [pid for node in nodes[1][1:] for pid in ray_nodes.working(node, f"ray::{run_id(run)}")]
    assert killed
    before = len(told(root))
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert not store.is_trained(run)
    hold.unlink()
    events = finished(process, root)
    epochs = [int(what.split()[1].split("/")[0]) for name, what, *_ in events[before:] if name == run_id(run)
              and what.startswith("epoch")]  # fmt: skip
    assert min(epochs) == HELD  # of the new worker: the old one's earlier news had all been heard
    assert recorded() == expected


@pytest.mark.slow
def test_a_killed_driver_loses_nothing_and_leaves_no_worker(root, nodes, expected, hold):
    process = driver(root, nodes[0])
    run = held_run(process, root)
    process.kill()
    process.wait()
    until = time.monotonic() + PATIENCE
    while any(ray_nodes.working(node, "ray::digits") for node in nodes[1]):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert not store.is_trained(run)
    assert load_tensors(state_path(run))[1]["epoch"] == HELD
    hold.unlink()
    finished(driver(root, nodes[0]), root)
    assert recorded() == expected


@pytest.mark.slow
def test_a_signal_stops_all_workers_with_their_checkpoints(root, nodes, expected, hold):
    process = driver(root, nodes[0])
    run = held_run(process, root)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 130
    assert not store.is_trained(run)
    assert load_tensors(state_path(run))[1]["epoch"] == HELD
    assert not list((files.results() / ".locks").glob("*.shared"))
    hold.unlink()
    finished(driver(root, nodes[0]), root)
    assert recorded() == expected


@pytest.mark.slow
def test_a_folder_that_workers_do_not_see_is_said_and_nothing_is_computed(root, nodes):
    process = driver(root, nodes[0], unseen=root / "elsewhere")
    assert process.wait(PATIENCE) == 1
    said = (root / "driver.log").read_text()
    assert said.count("does not see the driver's") >= len(TASKS)
    assert not any(store.is_trained(run) for run in RUNS)


@pytest.mark.slow
def test_a_lost_node_is_survived(root, nodes, expected, hold):  # the last: the cluster is smaller afterwards
    process = driver(root, nodes[0])
    run = held_run(process, root)
    lost = next(node for node in nodes[1][1:] if ray_nodes.working(node, f"ray::{run_id(run)}"))
    for pid in [lost.pid, *ray_nodes.children(lost.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    hold.unlink()
    finished(process, root)
    assert recorded() == expected


def main(address: str, log: str, unseen: str | None = None) -> int:
    """A driver: all tasks on the cluster, reports as lines."""
    if unseen:
        room._mark = lambda token, what: Path(unseen) / token
    if (files.root() / "hold").exists():
        room._work = held_work
    with open(log, "a", buffering=1) as file:
        options = Options(device=None, report=lambda *event: print(json.dumps(event), file=file))
        outcome = run_tasks(TASKS, options, address=address)
    print(outcome)
    return 130 if outcome.stopped else int(bool(outcome.failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
