"""The decisions of `fsr.runs.ray`, with a stand-in for Ray that does one task at a time."""

import contextlib
import sys
import time
from types import SimpleNamespace

import pytest

from fsr import files
from fsr.config import Evaluation, Run, for_dataset, replace
from fsr.files import CorruptFile, Interrupted, UsageError, provenance
from fsr.runs import Options, Task, local
from fsr.runs import ray as room

exceptions = pytest.importorskip("ray.exceptions")

RUN = for_dataset("digits", width=4, blocks=(1, 1, 1, 1), epochs=1, precision="float32")
OTHER = replace(RUN, seed=1)
TASKS = [Task(run=RUN), Task(run=OTHER), Task(run=RUN, evaluations=(Evaluation(attack="clean"),))]
FIRST, SECOND = TASKS[0].name, TASKS[1].name


class FakeRay:
    """remote, wait, get in one process: `wait` does one task at a time, `get` raises what it raised."""

    exceptions = exceptions

    def __init__(self):
        self.options, self.results, self.calls = [], {}, {}

    def remote(self, thing):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._remote(thing, options)))

    def _remote(self, thing, options):
        if isinstance(thing, type):
            return lambda: SimpleNamespace(**{n: self._method(thing, n) for n in ("tell", "take")})
        self.options.append(options)
        return lambda *arguments: self._later(lambda: thing(*arguments))

    def _later(self, call):
        self.calls[name := f"ref{len(self.calls)}"] = call
        return name

    def _method(self, cls, name):
        self.actor = getattr(self, "actor", cls())
        return SimpleNamespace(remote=lambda *a: self._later(lambda: getattr(self.actor, name)(*a)) and self._done())

    def _done(self):
        ref, call = self.calls.popitem()
        self.calls[ref] = None
        self.results[ref] = call()
        return ref

    def wait(self, refs, **_):
        ref = refs[0]
        try:
            self.results[ref] = self.calls[ref]()
        except Exception as error:
            self.results[ref] = error
        return [ref], refs[1:]

    def get(self, ref, timeout=None):
        if isinstance(self.results[ref], Exception):
            raise self.results[ref]
        return self.results[ref]

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


def perform(monkeypatch, behaviour=lambda task, options: []) -> list[Task]:
    """Replace the work by `behaviour`; returns the list that each task is added to."""
    done: list[Task] = []
    monkeypatch.setattr(local, "perform", lambda task, options: done.append(task) or behaviour(task, options))
    return done


def test_all_tasks_are_done_in_order_and_reported(ray, root, monkeypatch):
    heard, done = [], perform(monkeypatch, lambda task, options: options.report(task.name, "epoch", 3, 3) or [])
    summary = room.run_tasks(TASKS, Options(report=lambda *event: heard.append(event)))
    assert summary == room.Summary() and done == TASKS
    assert [event for event in heard if event[1] == "done"] == [(SECOND, "done", 1, 1), (FIRST, "done", 1, 1)]
    assert (FIRST, "epoch", 3, 3) in heard
    assert {(o["num_gpus"], o["num_cpus"], o["max_retries"]) for o in ray.options} == {(0, 1, room.RETRIES)}
    sent = ray.setting["runtime_env"]
    assert sent["env_vars"]["FSR_ROOT"] == str(root) and sent["env_vars"].get("FSR_COMMIT") == provenance()["commit"]
    assert not list((files.results() / ".locks").glob("*.shared"))


def buggy(task, options):
    raise ValueError("a bug")


def damaged(task, options):
    raise CorruptFile("damaged")


@pytest.mark.parametrize(
    "behaviour, says",
    [
        (lambda task, options: [f"{task.name}: diverged"], "diverged"),
        (damaged, "damaged"),
        (buggy, "ValueError: a bug"),
    ],
)
def test_a_failed_task_is_one_line_and_leaves_the_others(ray, monkeypatch, behaviour, says):
    done = perform(monkeypatch, lambda task, options: behaviour(task, options) if task.run == RUN else [])
    failed = room.run_tasks(TASKS, Options()).failed
    assert done == TASKS and [line.startswith(FIRST) and says in line for line in failed] == [True, True]


def test_a_worker_that_is_lost_too_often_is_a_line(ray, monkeypatch):
    def lost(*_):
        raise exceptions.WorkerCrashedError

    monkeypatch.setattr(room, "_work", lost)
    failed = room.run_tasks(TASKS, Options()).failed
    assert len(failed) == 3 and all("lost more than 5 times (WorkerCrashedError" in line for line in failed)


def test_a_signal_stops_the_task_that_runs_and_those_that_wait(ray, monkeypatch):
    def behaviour(task, options):
        stops.append(options.interrupted())
        flag.append(True)
        raise Interrupted("stopped")

    flag: list[bool] = []
    stops: list[bool] = []
    done = perform(monkeypatch, behaviour)
    monkeypatch.setattr(room, "stoppable", lambda: contextlib.nullcontext(SimpleNamespace(is_set=lambda: bool(flag))))
    assert room.run_tasks(TASKS, Options()) == room.Summary(stopped="signal")
    assert done == TASKS and stops == [False, True, True]  # those that wait see it as soon as they begin


def test_the_time_limit_stops_tasks_that_have_not_begun(ray, monkeypatch):
    stops: list[bool] = []
    perform(monkeypatch, lambda task, options: stops.append(options.interrupted()) or [])
    assert room.run_tasks(TASKS, Options(deadline=time.monotonic())) == room.Summary(stopped="time")
    assert stops == [False, True, True]


def test_a_node_that_does_not_see_the_folder_says_so(ray, monkeypatch):
    done = perform(monkeypatch)
    monkeypatch.setattr(room, "_marked", lambda: contextlib.nullcontext("another"))
    failed = room.run_tasks(TASKS, Options()).failed
    assert len(failed) == 3 and all("does not see the driver's" in line for line in failed) and not done


@pytest.mark.parametrize("device, gpus", [(None, [0.125, 1]), ("cuda", [0.125, 1]), ("cpu", [0, 0])])
def test_a_task_takes_the_share_of_a_gpu_that_its_network_needs(ray, monkeypatch, device, gpus):
    perform(monkeypatch)
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    room.run_tasks([Task(run=RUN), Task(run=Run())], Options(device=device))
    assert [options["num_gpus"] for options in ray.options] == gpus


def test_wrong_addresses_are_wrong_use(ray, root):
    def refuse(*_, **__):
        raise ConnectionError("Could not find any running Ray instance. Please give one.\nMore text")

    ray.init = refuse
    for address, says in (
        ("auto", r"no Ray cluster at 'auto' .*running Ray instance\); start one by"),
        ("a" * 70 + ":1", r"no Ray cluster at 'a+:1'"),
        ("ray://127.0.0.1:10001", "on a machine of the cluster"),
    ):
        with pytest.raises(UsageError, match=says):
            room.run_tasks(TASKS, Options(), address=address)
