"""The driver's side: everything is handed to Ray, which places, queues and retries it."""

import contextlib
import importlib.util
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import fsr
from fsr import files
from fsr.files import UsageError
from fsr.runs import Options, Task
from fsr.runs.cluster.plan import Job, plan, resources
from fsr.runs.cluster.worker import Board, mark, work
from fsr.runs.local import Outcome, stoppable

log = logging.getLogger("fsr")

RETRIES = 5  # times that Ray starts a task again whose worker or node was lost; each goes on from the last checkpoint
TASKS_PER_WORKER = 50  # of one kind, before Ray starts a fresh GPU process; its own default, 1, imports torch each time
HEAR_SECONDS = 0.3  # how often the driver looks
PATIENCE_SECONDS = 60.0  # before the driver says that nothing has begun
HELP = (
    "start one by `ray start --head`, or give --address HOST:PORT of one (a cluster with a token also wants "
    "RAY_AUTH_MODE=token), or --address local"
)


def on_ray(tasks: Iterable[Task], options: Options, *, address: str = "auto", deterministic: bool = False) -> Outcome:
    """On a Ray cluster: every missing training, evaluation and analysis is a Ray task; this process needs no GPU.

    address: local (start one here), auto (the one of this machine, or $RAY_ADDRESS) or HOST:PORT. A task whose worker
    is lost is started again by Ray and goes on from its last checkpoint. UsageError when Ray is not installed or no
    cluster answers.
    """
    jobs = plan(tasks)
    return compute(jobs, options, address=address, deterministic=deterministic) if jobs else Outcome()


def compute(jobs: list[Job], options: Options, *, address: str = "auto", deterministic: bool = False) -> Outcome:
    """These jobs, in their order, on a Ray cluster (see `on_ray`)."""
    with _connected(address) as ray, _shared() as token, stoppable() as flag:
        driver = _Driver(ray, jobs, options, {"token": token, "deterministic": deterministic})
        return driver.watch(flag)


class _Driver:
    """Hands all jobs to Ray at once and listens until the last has come back."""

    def __init__(self, ray, jobs: list[Job], options: Options, setting: dict):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.options, self.outcome = ray, options, Outcome()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.board = ray.remote(Board).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        ).remote()  # fmt: skip
        self.refs = self._submit(jobs, setting)
        self.pending = {ref: (key, job) for key, (ref, job) in enumerate(zip(self.refs, jobs))}

    def _submit(self, jobs: list[Job], setting: dict) -> list:
        plain = replace(self.options, report=_ignore, interrupted=_never, deadline=None)  # one clock: the driver's
        gpus, cpus = _offer(self.ray, self.options.device)
        remote, refs = self.ray.remote(work), []
        for key, job in enumerate(jobs):
            need = resources(job.task, gpus=gpus, cpus=cpus)
            calls = {"max_calls": TASKS_PER_WORKER} if need["num_gpus"] else {}
            what = (job.task.evaluations + job.task.analyses) or ("train",)
            name = f"{job.task.name} {getattr(what[0], 'attack_id', getattr(what[0], 'kind', what[0]))}"
            task = remote.options(name=name, max_retries=RETRIES, retry_exceptions=False, **need, **calls)
            needed = [refs[i] for i in job.needs]
            sharing = max(plain.sharing, round(1 / (need["num_gpus"] or 1)))  # as many as the share leaves room for
            own = replace(plain, sharing=sharing)
            refs.append(task.remote(key, job, own, self.board, setting | {"threads": need["num_cpus"]}, *needed))
        return refs

    def watch(self, flag) -> Outcome:
        """Until everything is back; a signal or the deadline calls off what has not begun and stops the rest."""
        patient_until, called_off = time.monotonic() + PATIENCE_SECONDS, False
        while self.pending:
            refs = list(self.pending)
            done, _ = self.ray.wait(refs, num_returns=len(refs), timeout=HEAR_SECONDS, fetch_local=False)
            reason = "signal" if flag.is_set() else "time" if self.options.late() else None
            self.outcome.stopped = self.outcome.stopped or reason
            begun = self._hear(stopping=self.outcome.stopped is not None)
            if begun is not None and not begun and time.monotonic() > patient_until:
                log.warning("nothing has begun yet: waiting for a node with free cores or GPUs, as `ray status` shows")
                patient_until = float("inf")
            if self.outcome.stopped and begun is not None and not called_off:
                called_off = True
                for ref in [r for r in self.pending if self.pending[r][0] not in begun]:
                    self.ray.cancel(ref)
            for ref in done:
                job = self.pending.pop(ref)[1]
                self._collect(ref, job)
                left = any(other.task.name == job.task.name for _, other in self.pending.values())
                if not left and not self.outcome.stopped:
                    self.options.report(job.task.name, "done", 1, 1)
        self._hear(stopping=False)
        self.outcome.failed = list(dict.fromkeys(self.outcome.failed))
        return self.outcome

    def _hear(self, *, stopping: bool) -> set[int] | None:
        """Hand on what the board was told; returns the jobs begun, None when it does not answer."""
        try:
            news, begun = self.ray.get(self.board.hear.remote(stopping), timeout=20)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.GetTimeoutError):
            return None  # it is being started again elsewhere
        for event in news:
            self.options.report(*event)
        return begun

    def _collect(self, ref, job: Job) -> None:
        errors, name = self.ray.exceptions, job.task.name
        try:
            self.outcome.failed += self.ray.get(ref) or []
        except errors.TaskCancelledError:
            pass
        except errors.RayTaskError as error:  # a bug: kept as a line, so that one task cannot end a night's work
            log.error("%s", error)
            first = (str(error.cause).strip() or "see the log").splitlines()[0][:200]
            self.outcome.failed.append(f"{name}: {type(error.cause).__name__}: {first}")
        except errors.RayError as error:
            self.outcome.failed.append(
                f"{name}: its worker was lost more than {RETRIES} times ({type(error).__name__}: killed, or out of "
                "memory); the same command goes on from the last checkpoint"
            )


def _offer(ray, device: str | None) -> tuple[bool, int]:
    """(are there GPUs to use, cores of the smallest node that has any)."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    gpus = any(n.get("GPU", 0) for n in nodes)
    if device is not None:  # asked for by name: an autoscaling cluster may have none yet
        gpus = device != "cpu"
    return gpus, int(min((n["CPU"] for n in nodes if n.get("CPU", 0) >= 1), default=1))


@contextlib.contextmanager
def _shared() -> Iterator[str]:
    """A mark in the results folder, by whose token every worker knows that it sees the same folder."""
    token = secrets.token_hex(8)
    files.write_bytes(mark(token).parent / ".gitignore", b"*\n")
    files.write_bytes(mark(token), b"")
    try:
        yield token
    finally:
        mark(token).unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(address: str):
    """Ray, connected; workers run this very package, in this root, whatever is installed on their node."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed; type `pip install 'ray>=2.40'` (or `pip install -e '.[cluster]'`)")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    origin = files.provenance()
    variables = {"FSR_ROOT": str(files.root()), "FSR_DATA": str(files.data())}
    if origin["commit"] is not None:
        variables["FSR_COMMIT"] = origin["commit"]
    if origin["dirty"] is not None:
        variables["FSR_DIRTY"] = str(int(origin["dirty"]))
    package = str(Path(fsr.__file__).parent)
    local = {"include_dashboard": False} if address == "local" else {}
    _answers(address)
    try:
        ray.init(
            address, runtime_env={"env_vars": variables, "py_modules": [package]}, log_to_driver=False,
            logging_level=logging.WARNING, **local,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")[:160]
        raise UsageError(f"no Ray cluster at {address!r} that this user can use ({first}); {HELP}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Fail in seconds where Ray itself would wait for a minute."""
    if "://" in address:
        raise UsageError(f"--address {address}: type the command on a machine of the cluster, with HOST:PORT or auto")
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a machine can look like this
        first = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"no Ray cluster at {address!r} ({first}); {HELP}") from None


def _ignore(*_) -> None:
    pass


def _never() -> bool:
    return False
