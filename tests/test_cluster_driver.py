"""The driver's and the worker's decisions, with a stand-in for Ray that does one task at each look."""

import sys
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from fsr.config import Evaluation, Run, for_dataset, replace
from fsr.files import CorruptFile, Interrupted, provenance
from fsr.runs import Options, Task
from fsr.runs.cluster import Job, driver, worker

exceptions = pytest.importorskip("ray.exceptions")

RUN = for_dataset("digits", width=4, blocks=(1, 1, 1, 1), epochs=1, precision="float32")
OTHER = replace(RUN, seed=1)
LOOK = Evaluation(attack="clean")
JOBS = [Job(Task(run=RUN)), Job(Task(run=OTHER)), Job(Task(run=RUN, evaluations=(LOOK,)), (0,))]


class Ref:
    """Something that will be there."""

    def __init__(self, call=None, value=None):
        self.call, self.value = call, value

    def fill(self) -> None:
        if self.call is not None:
            call, self.call = self.call, None
            try:
                self.value = call()
            except Exception as error:  # as Ray does: raised again by whoever asks for it
                self.value = error

    def future(self) -> Future:
        """As Ray's: at once, because all of this happens in one process."""
        self.fill()
        future: Future = Future()
        future.set_result(self.value)
        return future


class FakeRay:
    """remote, wait, get and cancel in one process; a task's arguments are resolved before it is called."""

    def __init__(self):
        self.exceptions, self.asked, self.cancelled = exceptions, [], []

    def remote(self, thing):
        return SimpleNamespace(options=lambda **options: self._bound(thing, options))

    def _bound(self, thing, options):
        if isinstance(thing, type):
            actor = thing()
            methods = {n: self._method(actor, n) for n in ("tell", "hear")}
            return SimpleNamespace(remote=lambda: SimpleNamespace(**methods))
        self.asked.append(options)
        return SimpleNamespace(remote=lambda *arguments: Ref(lambda: self._run(thing, arguments)))

    def _method(self, actor, name):
        return SimpleNamespace(remote=lambda *arguments: Ref(value=getattr(actor, name)(*arguments)))

    def _run(self, function, arguments):
        return function(*[self.get(a) if isinstance(a, Ref) else a for a in arguments])

    def wait(self, refs, num_returns=1, timeout=None, fetch_local=True):
        waiting = [ref for ref in refs if ref.call is not None]
        if waiting:
            waiting[0].fill()
        return [ref for ref in refs if ref.call is None], []

    def get(self, ref, timeout=None):
        ref.fill()
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def cancel(self, ref):
        self.cancelled.append(ref)
        ref.call, ref.value = None, exceptions.TaskCancelledError()

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0}}]

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "0" * 56)


@pytest.fixture
def ray(root, monkeypatch):
    """The stand-in, also for `import ray`; every job is recorded and does nothing."""
    fake, done = FakeRay(), []
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(worker, "perform", lambda task, options: done.append(task) or [])
    monkeypatch.setattr(worker, "ensure_weights", lambda *_: "digest")
    monkeypatch.setattr(worker, "_see", lambda token: None)
    monkeypatch.setattr(driver, "HEAR_SECONDS", 0.0)
    fake.done = done
    return fake


def watched(ray, options=None, flag=None, jobs=JOBS):
    made = driver._Driver(ray, jobs, options or Options(), {"token": "t", "deterministic": False})
    return made.watch(flag or threading.Event())


def test_all_jobs_are_done_once_and_ask_for_what_they_need(ray):
    outcome = watched(ray)
    assert (outcome.failed, outcome.stopped) == ([], None)
    assert ray.done == [job.task for job in JOBS]
    assert [o["max_retries"] for o in ray.asked] == [driver.RETRIES] * 3
    assert {(o["num_gpus"], o["num_cpus"]) for o in ray.asked} == {(0, 1)}
    assert ray.asked[2]["name"].endswith(" clean") and ray.asked[0]["name"].endswith(" train")


def test_a_failed_training_is_one_line_and_its_evaluations_are_silent(ray, monkeypatch):
    def perform(task, options):
        ray.done.append(task)
        return [f"{task.name}: diverged"] if task.run == RUN else []

    monkeypatch.setattr(worker, "perform", perform)
    outcome = watched(ray)
    assert outcome.failed == [f"{JOBS[0].task.name}: diverged"]
    assert ray.done == [job.task for job in JOBS[:2]]


def test_an_error_of_ours_or_a_bug_in_one_task_leaves_the_others(ray, monkeypatch):
    def perform(task, options):
        bug = exceptions.RayTaskError("f", "trace", ValueError("a bug"), proctitle="f", pid=1, ip="-")
        raise CorruptFile("damaged") if task.run == RUN else bug

    monkeypatch.setattr(worker, "perform", perform)
    outcome = watched(ray)
    assert outcome.failed == [f"{JOBS[0].task.name}: damaged", f"{JOBS[1].task.name}: ValueError: a bug"]


def test_a_worker_lost_too_often_is_one_line_for_a_run(ray, monkeypatch):
    def perform(task, options):
        raise exceptions.WorkerCrashedError

    monkeypatch.setattr(worker, "perform", perform)
    lines = watched(ray).failed
    assert len(lines) == 2  # the evaluation has the error of its training
    assert all("lost more than 5 times (WorkerCrashedError" in line for line in lines)


def test_the_time_limit_calls_off_what_has_not_begun(ray):
    outcome = watched(ray, Options(deadline=time.monotonic()))
    assert (outcome.stopped, outcome.failed) == ("time", [])
    assert len(ray.cancelled) == 2 and len(ray.done) == 1  # the stand-in does one task before the first look


def test_a_cluster_without_free_nodes_is_said_once(ray, monkeypatch, caplog):
    looks = []
    wait = ray.wait

    def busy(refs, **more):
        looks.append(refs)
        return wait(refs, **more) if len(looks) > 3 else ([], refs)

    monkeypatch.setattr(ray, "wait", busy)
    monkeypatch.setattr(driver, "PATIENCE_SECONDS", 0.0)
    watched(ray)
    assert caplog.text.count("waiting for a node with free cores or GPUs") == 1


def test_a_signal_reaches_the_task_that_has_begun(ray, monkeypatch):
    flag, asked = threading.Event(), []

    def perform(task, options):
        asked.append(options.interrupted())
        flag.set()
        raise Interrupted("stopped")

    monkeypatch.setattr(worker, "perform", perform)
    outcome = watched(ray, flag=flag)
    assert (outcome.stopped, outcome.failed) == ("signal", [])
    assert asked == [False] and len(ray.cancelled) == 2


def test_a_line_hands_on_the_stop_and_reports_the_last_step_always(ray, monkeypatch):
    board = worker.Board()
    line = worker.Line(SimpleNamespace(tell=ray._method(board, "tell")), 7)
    assert line.begin() is False
    line.report("run", "epoch 1/2", 1, 4)  # too soon after the beginning
    line.report("run", "epoch 2/2", 4, 4)
    assert board.hear(stopping=True) == ([("run", "epoch 2/2", 4, 4)], {7})
    assert line.stopped() is False  # not asked yet
    monkeypatch.setattr(line, "told", 0.0)
    assert line.stopped() is True


def test_reports_reach_the_driver(ray, monkeypatch):
    heard = []
    monkeypatch.setattr(worker, "perform", lambda task, options: options.report(task.name, "epoch 1/1", 3, 3) or [])
    watched(ray, Options(report=lambda *event: heard.append(event)), jobs=JOBS[:1])
    assert heard == [(JOBS[0].task.name, "epoch 1/1", 3, 3), (JOBS[0].task.name, "done", 1, 1)]


def test_a_run_is_done_when_none_of_its_jobs_is_pending(ray):
    heard = []
    watched(ray, Options(report=lambda *event: heard.append((event, len(ray.done)))))
    first, second = JOBS[0].task.name, JOBS[1].task.name  # the third job is an evaluation of the first run
    assert heard == [((second, "done", 1, 1), 2), ((first, "done", 1, 1), 3)]


def test_nothing_is_called_off_before_the_board_has_answered(ray, monkeypatch):
    flag, looks = threading.Event(), []
    flag.set()

    class Board(worker.Board):
        def hear(self, stopping):
            looks.append((stopping, len(ray.cancelled)))
            if len(looks) == 1:
                raise exceptions.GetTimeoutError
            return super().hear(stopping)

    monkeypatch.setattr(driver, "Board", Board)
    outcome = watched(ray, flag=flag)
    assert (outcome.stopped, outcome.failed) == ("signal", [])
    assert looks[:2] == [(True, 0), (True, 0)]  # the first look got no answer
    # the stand-in does a job at each look: two had begun when the answer came, and only the third is called off
    assert ray.done == [job.task for job in JOBS[:2]] and len(ray.cancelled) == 1


def test_the_mark_is_there_for_the_time_of_the_command(root):
    with driver._shared() as token:
        worker._see(token)
    with pytest.raises(worker.UsageError, match="does not see the driver's"):
        worker._see(token)


def test_gpus_are_asked_for_when_there_are_some_or_by_name(ray):
    assert driver._offer(ray, None) == (False, 2)
    assert driver._offer(ray, "cuda") == (True, 2)
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    assert driver._offer(ray, None) == (True, 4)
    assert driver._offer(ray, "cpu") == (False, 4)


def test_a_task_knows_how_many_its_share_of_a_gpu_leaves_room_for(ray, monkeypatch):
    """Eight networks of width 4 fit on one, a ResNet-18 at full width has it for itself."""
    heard = []
    monkeypatch.setattr(worker, "perform", lambda task, options: heard.append(options.sharing) or [])
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    jobs = [Job(Task(run=RUN)), Job(Task(run=Run()))]
    assert watched(ray, jobs=jobs).failed == [] and heard == [8, 1]
    assert watched(ray, Options(sharing=2), jobs=jobs).failed == [] and heard[2:] == [8, 2]
    assert watched(ray, Options(device="cpu"), jobs=jobs).failed == [] and heard[4:] == [1, 1]


def test_wrong_addresses_are_wrong_use(root, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Could not find any running Ray instance. Please give one.\nMore text")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=refuse, exceptions=exceptions))
    monkeypatch.setattr(driver.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(worker.UsageError, match=r"no Ray cluster at 'auto' .*running Ray instance\); start one by"):
        with driver._connected("auto"):
            pass
    with pytest.raises(worker.UsageError, match=r"no Ray cluster at 'a+:1'"):
        with driver._connected("a" * 70 + ":1"):  # too long for a name of a machine
            pass
    with pytest.raises(worker.UsageError, match="on a machine of the cluster"):
        with driver._connected("ray://127.0.0.1:10001"):
            pass


def test_workers_get_the_drivers_root_code_and_commit(root, monkeypatch):
    seen = {}
    fake = SimpleNamespace(init=lambda *a, **k: seen.update(k), shutdown=lambda: None, exceptions=exceptions)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(driver.importlib.util, "find_spec", lambda name: True)
    with driver._connected("local"):
        pass
    sent = seen["runtime_env"]
    assert sent["env_vars"]["FSR_ROOT"] == str(root)
    assert sent["env_vars"].get("FSR_COMMIT") == provenance()["commit"]
    assert sent["py_modules"] == [str(driver.Path(driver.fsr.__file__).parent)]
    assert seen["include_dashboard"] is False
