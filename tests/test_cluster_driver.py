"""The decisions of `fsr.runs.ray`, with a stand-in for Ray that does a job as soon as it is asked for the result."""

import contextlib
import sys
import time
from types import SimpleNamespace

import pytest

from fsr import files
from fsr.config import Evaluation, Run, for_dataset, replace
from fsr.files import CorruptFile, Interrupted, UsageError, provenance
from fsr.runs import Options, Task
from fsr.runs import ray as room

exceptions = pytest.importorskip("ray.exceptions")

RUN = for_dataset("digits", width=4, blocks=(1, 1, 1, 1), epochs=1, precision="float32")
OTHER = replace(RUN, seed=1)
JOBS = [
    room.Job(Task(run=RUN)),
    room.Job(Task(run=OTHER)),
    room.Job(Task(run=RUN, evaluations=(Evaluation(attack="clean"),)), (0,)),
]
FIRST, SECOND = JOBS[0].task.name, JOBS[1].task.name


class FakeRay:
    """remote, wait, get in one process: `wait` does one job at a time, `get` raises what it raised."""

    exceptions = exceptions

    def __init__(self):
        self.options, self.results, self.calls = [], {}, {}

    def remote(self, thing):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._remote(thing, options)))

    def _remote(self, thing, options):
        if isinstance(thing, type):
            return lambda: SimpleNamespace(**{n: self._method(thing, n) for n in ("tell", "take")})
        self.options.append(options)
        return lambda *arguments: self._later(
            lambda: thing(*[self.get(a) if isinstance(a, str) else a for a in arguments])
        )

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
    monkeypatch.setattr(room, "ensure_weights", lambda *_: "digest")
    return fake


def perform(monkeypatch, behaviour=lambda task, options: []) -> list[Task]:
    """Replace the work by `behaviour`; returns the list that each task is added to."""
    done: list[Task] = []
    monkeypatch.setattr(room, "perform", lambda task, options: done.append(task) or behaviour(task, options))
    return done


def test_all_jobs_are_done_in_order_and_reported(ray, root, monkeypatch):
    heard, done = [], perform(monkeypatch, lambda task, options: options.report(task.name, "epoch", 3, 3) or [])
    summary = room.run_jobs(JOBS, Options(report=lambda *event: heard.append(event)))
    assert summary == room.Summary() and done == [job.task for job in JOBS]
    assert [event for event in heard if event[1] == "done"] == [(SECOND, "done", 1, 1), (FIRST, "done", 1, 1)]
    assert (FIRST, "epoch", 3, 3) in heard
    assert {(o["num_gpus"], o["num_cpus"], o["max_retries"]) for o in ray.options} == {(0, 1, room.RETRIES)}
    sent = ray.setting["runtime_env"]
    assert sent["env_vars"]["FSR_ROOT"] == str(root) and sent["env_vars"].get("FSR_COMMIT") == provenance()["commit"]
    assert not list((files.results() / ".locks").glob("*.shared"))


def lost(task, options):
    raise exceptions.WorkerCrashedError


def buggy(task, options):
    raise exceptions.RayTaskError("f", "trace", ValueError("a bug"), proctitle="f", pid=1, ip="-")


def damaged(task, options):
    raise CorruptFile("damaged")


@pytest.mark.parametrize(
    "behaviour, says",
    [
        (lambda task, options: [f"{task.name}: diverged"], "diverged"),
        (damaged, "damaged"),
        (buggy, "ValueError: a bug"),
        (lost, f"lost more than {room.RETRIES} times (WorkerCrashedError"),
    ],
)
def test_a_failed_training_is_one_line_and_leaves_the_others(ray, monkeypatch, behaviour, says):
    done = perform(monkeypatch, lambda task, options: behaviour(task, options) if task.run == RUN else [])
    failed = room.run_jobs(JOBS, Options()).failed
    assert len(failed) == 1 and failed[0].startswith(FIRST) and says in failed[0]
    assert done == [job.task for job in JOBS[:2]]  # what needs the failed one is silent


def test_a_signal_stops_the_job_that_runs_and_those_that_wait(ray, monkeypatch):
    def behaviour(task, options):
        flag.append(True)
        raise Interrupted("stopped")

    flag: list[bool] = []
    done = perform(monkeypatch, behaviour)
    monkeypatch.setattr(room, "stoppable", lambda: contextlib.nullcontext(SimpleNamespace(is_set=lambda: bool(flag))))
    assert room.run_jobs(JOBS, Options()) == room.Summary(stopped="signal") and len(done) == 1


def test_the_time_limit_stops_jobs_that_have_not_begun(ray, monkeypatch):
    done = perform(monkeypatch)
    assert room.run_jobs(JOBS, Options(deadline=time.monotonic())) == room.Summary(stopped="time") and len(done) == 1


def test_a_node_that_does_not_see_the_folder_says_so(ray, monkeypatch):
    done = perform(monkeypatch)
    monkeypatch.setattr(room, "_marked", lambda: contextlib.nullcontext("another"))
    failed = room.run_jobs(JOBS, Options()).failed
    assert len(failed) == 2 and all("does not see the driver's" in line for line in failed) and not done


@pytest.mark.parametrize("device, gpus", [(None, [0.125, 1]), ("cuda", [0.125, 1]), ("cpu", [0, 0])])
def test_a_job_takes_the_share_of_a_gpu_that_its_network_needs(ray, monkeypatch, device, gpus):
    perform(monkeypatch)
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    room.run_jobs([room.Job(Task(run=RUN)), room.Job(Task(run=Run()))], Options(device=device))
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
            room.run_jobs(JOBS, Options(), address=address)
