"""The same tasks on a Ray cluster, which places, queues and retries them; no node needs anything but the folder."""

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import fsr
from fsr import files, hardware, store
from fsr.config import Run, run_id
from fsr.files import CorruptFile, FSRError, Interrupted, UsageError
from fsr.runs.auditing import surrogate_run
from fsr.runs.local import Summary, stoppable
from fsr.runs.options import Options, ignore, locked, never
from fsr.runs.tasks import Task, perform
from fsr.runs.training import ensure_weights, has_weights

log = logging.getLogger("fsr")
RETRIES = 5  # times that Ray starts a job again whose worker or node was lost; each resumes from the last checkpoint
TELL_SECONDS = 0.5  # between two reports of a worker
STOP_SECONDS = 300.0  # for running jobs to save their checkpoints once the command was stopped
HELP = (
    "start one by `ray start --head`, or give --address HOST:PORT of one (a cluster with a token also wants "
    "RAY_AUTH_MODE=token), or --address local"
)


@dataclass(frozen=True)
class Job:
    """One training, evaluation or analysis, and the positions of the trainings that must come before it."""

    task: Task
    needs: tuple[int, ...] = ()


def plan(tasks: Iterable[Task]) -> list[Job]:
    """Everything that is missing, each a job of its own: trainings first, then what is made of their weights."""
    tasks, jobs, trainings = list(tasks), [], {}
    for task in tasks:
        try:
            trained = store.is_trained(task.run) and (not task.missing() or has_weights(task.run, "last"))
        except CorruptFile:
            trained = True  # its own jobs say what is damaged, and the others go on
        if not trained and task.name not in trainings:
            trainings[task.name] = len(jobs)
            jobs.append(Job(Task(run=task.run)))
    for task in tasks:
        for part in task.left():
            kind = {"analyses": (part,)} if hasattr(part, "kind") else {"evaluations": (part,)}
            other = getattr(part, "surrogate", None)
            if getattr(part, "kind", None) == "audit":
                other = run_id(surrogate_run(task.run))
            needs = {trainings.get(task.name), trainings.get(other)} - {None}
            jobs.append(Job(Task(run=task.run, **kind), tuple(sorted(needs))))
    return jobs


def _gpu_share(run: Run) -> float:
    """Share of a GPU: narrow networks leave most of it idle."""
    width = run.width or 64
    return 1 if width > 16 or run.backbone == "wideresnet34" else 0.25 if width == 16 else 0.125


def resources(task: Task, *, gpus: bool, cpus: int) -> dict:
    """num_gpus and num_cpus of a task, as Ray names them.

    gpus: has the cluster any, of which a job takes a share by its network's width, or all of one where latencies are
    measured; cpus: of the smallest node, without GPUs for one network unless it is so small that two threads slow it.
    """
    share = _gpu_share(task.run)
    if gpus:
        return {"num_gpus": 1 if any(a.kind == "cost" for a in task.analyses) else share, "num_cpus": 1}
    return {"num_gpus": 0, "num_cpus": 1 if share < 0.25 else max(1, cpus)}


# --- in a worker -------------------------------------------------------------------------------------------


class Reports:
    """An actor without a core that keeps the workers' latest reports until the driver takes them."""

    def __init__(self):
        self.events: dict[tuple, tuple] = {}

    def tell(self, event: tuple) -> None:
        """(run id, what, done, of) from a worker."""
        self.events[event[:2]] = event

    def take(self) -> list[tuple]:
        """All events since the last call."""
        events, self.events = list(self.events.values()), {}
        return events


def _mark(token: str, what: str) -> Path:
    """A file in the results folder: `shared` while the driver runs, `stop` once its jobs must stop."""
    return files.results() / ".locks" / f"{token}.{what}"


def _work(job: Job, options: Options, reports, setting: dict, *needed: list[str] | None) -> list[str] | None:
    """Do one job; returns a line per failure, None when it was stopped or what it needs is not there.

    needed: what the jobs it needs returned; anything but [] is reported by them.
    """
    last = 0.0

    def report(*event) -> None:
        nonlocal last
        if event[2] >= event[3] or time.monotonic() - last > TELL_SECONDS:
            last = time.monotonic()
            reports.tell.remote(event)  # without ray.get: a job that waits in it lends its core to another

    def stopped() -> bool:
        return _mark(setting["token"], "stop").exists()

    if any(lines != [] for lines in needed) or stopped():
        return None
    torch.set_num_threads(setting["threads"])
    if setting["deterministic"]:
        hardware.make_deterministic()
    options = replace(options, report=report, interrupted=stopped)
    try:
        if not _mark(setting["token"], "shared").exists():
            raise UsageError(
                f"node {socket.gethostname()} does not see the driver's {files.results()}: give a --root DIR that "
                "every node mounts at the same place"
            )
        failed = perform(job.task, options)
        if not failed and not job.task.evaluations and not job.task.analyses:
            with locked(job.task.run, options):  # a record without weights gets them back once, before they are read
                ensure_weights(job.task.run, "last", options)
        return failed
    except Interrupted:
        return None
    except FSRError as error:
        return [f"{job.task.name}: {error}"]
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # other processes share the device


# --- in the driver -----------------------------------------------------------------------------------------


def run_tasks(
    tasks: Iterable[Task], options: Options, *, address: str = "auto", deterministic: bool = False
) -> Summary:
    """On a Ray cluster: every missing training, evaluation and analysis is a Ray task; this process needs no GPU.

    address: local (start one here), auto (the one of this machine, or $RAY_ADDRESS) or HOST:PORT. A task whose worker
    is lost is started again by Ray and resumes from its last checkpoint. UsageError when Ray is not installed or no
    cluster answers.
    """
    jobs = plan(tasks)
    return run_jobs(jobs, options, address=address, deterministic=deterministic) if jobs else Summary()


def run_jobs(jobs: list[Job], options: Options, *, address: str = "auto", deterministic: bool = False) -> Summary:
    """These jobs on a Ray cluster, see `run_tasks`."""
    with _connected(address) as ray, _marked() as token, stoppable() as flag:
        reports = ray.remote(Reports).options(num_cpus=0, max_restarts=-1).remote()
        refs = _submit(ray, jobs, options, reports, {"token": token, "deterministic": deterministic})
        return _watch(ray, dict(zip(refs, jobs)), options, reports, flag.is_set, _mark(token, "stop"))


def _submit(ray, jobs: list[Job], options: Options, reports, setting: dict) -> list:
    """Hand all jobs to Ray at once."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = any(node.get("GPU", 0) for node in nodes) if options.device is None else options.device != "cpu"
    cpus = int(min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=1))
    sent, refs = replace(options, report=ignore, interrupted=never, deadline=None), []  # one clock: the driver's
    for job in jobs:
        need = resources(job.task, gpus=gpus, cpus=cpus)
        what = (job.task.missing() or ["weights"])[0]
        more = {"name": f"{job.task.name} {what}", "max_retries": RETRIES, "retry_exceptions": False}
        if gpus:
            more["max_calls"] = (
                50  # before Ray starts a fresh process; its default for GPUs, 1, imports torch each time
            )
        task = ray.remote(_work).options(**need, **more)
        needed = [refs[i] for i in job.needs]
        refs.append(task.remote(job, sent, reports, setting | {"threads": need["num_cpus"]}, *needed))
    return refs


def _watch(ray, pending: dict, options: Options, reports, interrupted, stop: Path) -> Summary:
    """Until everything is back; a signal or the deadline stops what runs and what has not begun."""
    total, warn, end = Summary(), time.monotonic() + 60, float("inf")
    while pending and time.monotonic() < end:
        done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0.3, fetch_local=False)
        with contextlib.suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):  # it is restarted
            for event in ray.get(reports.take.remote(), timeout=20):
                options.report(*event)
                warn = float("inf")
        for ref in done:
            job, warn = pending.pop(ref), float("inf")
            total.failed += _lines(ray, ref, job)
            if all(other.task.name != job.task.name for other in pending.values()) and not total.stopped:
                options.report(job.task.name, "done", 1, 1)
        if time.monotonic() > warn:
            log.warning("nothing has begun yet: waiting for a node with free cores or GPUs, as `ray status` shows")
            warn = float("inf")
        if not total.stopped and (interrupted() or options.late()):
            total.stopped, end = "signal" if interrupted() else "time", time.monotonic() + STOP_SECONDS
            files.write_bytes(stop, b"")
    return Summary(list(dict.fromkeys(total.failed)), total.stopped)


def _lines(ray, ref, job: Job) -> list[str]:
    """A line for each failure of a job that is back."""
    try:
        return ray.get(ref) or []
    except ray.exceptions.RayTaskError as error:  # a bug: kept as a line, so that one task cannot end a night's work
        log.error("%s", error)
        first = (str(error.cause).strip() or "see the log").splitlines()[0][:200]
        return [f"{job.task.name}: {type(error.cause).__name__}: {first}"]
    except ray.exceptions.RayError as error:
        return [
            f"{job.task.name}: its worker was lost more than {RETRIES} times ({type(error).__name__}: killed, or out "
            "of memory); the same command goes on from the last checkpoint"
        ]


@contextlib.contextmanager
def _marked() -> Iterator[str]:
    """A token whose mark lies in the results folder, by which every worker knows that it sees the same folder."""
    token = secrets.token_hex(8)
    files.write_bytes(_mark(token, "shared").parent / ".gitignore", b"*\n")
    files.write_bytes(_mark(token, "shared"), b"")
    try:
        yield token
    finally:
        for what in ("shared", "stop"):
            _mark(token, what).unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(address: str):
    """Ray, connected; workers run this very package, in this root, whatever is installed on their node."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(
            "Ray is not installed; type `pip install 'ray>=2.40'`, or `pip install -e '.[cluster]'`"
        ) from None
    origin = files.provenance()
    variables = {"FSR_ROOT": str(files.root()), "FSR_DATA": str(files.data()), "FSR_COMMIT": origin["commit"]}
    variables["FSR_DIRTY"] = None if origin["dirty"] is None else str(int(origin["dirty"]))
    environment = {"env_vars": {name: value for name, value in variables.items() if value is not None}}
    environment["py_modules"] = [str(Path(fsr.__file__).parent)]
    more = {"include_dashboard": False} if address == "local" else {}
    try:
        _reach(address)
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.WARNING, **more)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")[:160]
        raise UsageError(f"no Ray cluster at {address!r} that this user can use ({first}); {HELP}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise at once where Ray itself would wait for a minute."""
    if "://" in address:
        raise UsageError(f"--address {address}: type the command on a machine of the cluster, with HOST:PORT or auto")
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
