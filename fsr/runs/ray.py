"""The same tasks on a Ray cluster, which places, queues and retries them; its nodes share the results folder."""

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

import fsr
from fsr import files, hardware
from fsr.files import UsageError
from fsr.runs.local import Summary, attempt, follow
from fsr.runs.options import Options
from fsr.runs.tasks import Task

RETRIES = 5  # times that Ray starts a task again whose worker or node was lost; each resumes from the last checkpoint
TELL_SECONDS = 0.5  # between two reports of a worker
HELP = "start one by `ray start --head`, or give --address HOST:PORT (with a token: RAY_AUTH_MODE=token) or local"


def resources(task: Task, *, gpus: bool, cpus: int) -> dict:
    """num_gpus and num_cpus of a task: a share of a GPU where the cluster has any, else the smallest node's cores."""
    width = 64 if task.run.backbone == "wideresnet34" else task.run.width or 64
    if not gpus:
        return {"num_gpus": 0, "num_cpus": 1 if width < 16 else max(1, cpus)}
    share = 1 if width > 16 or any(a.kind == "cost" for a in task.analyses) else 0.25 if width == 16 else 0.125
    return {"num_gpus": share, "num_cpus": 1}


class Reports:
    """An actor without a core that keeps the workers' latest (run id, what, done, of) until the driver takes them."""

    def __init__(self):
        self.events: dict[tuple, tuple] = {}

    def tell(self, event: tuple) -> None:
        self.events[event[:2]] = event

    def take(self) -> list[tuple]:
        events, self.events = list(self.events.values()), {}
        return events


def _work(task: Task, options: Options, reports, mark: Path, threads: int, deterministic: bool) -> Summary:
    last = 0.0

    def report(*event) -> None:
        nonlocal last
        if event[2] >= event[3] or time.monotonic() - last > TELL_SECONDS:
            last = time.monotonic()
            reports.tell.remote(event)  # without ray.get: a task that waits in it lends its core to another

    if not mark.exists():
        line = f"does not see the driver's {files.results()}: give a --root DIR that every node mounts there"
        return Summary([f"{task.name}: node {socket.gethostname()} {line}"])
    torch.set_num_threads(threads)
    if deterministic:
        hardware.make_deterministic()
    summary = attempt(task, replace(options, report=report, interrupted=lambda: mark.stat().st_size > 0))
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # other processes share the device
    return summary


def run_tasks(
    tasks: Iterable[Task], options: Options, *, address: str = "auto", deterministic: bool = False
) -> Summary:
    """On the Ray cluster at address (local, auto or HOST:PORT), a Ray task for each; UsageError where none answers."""
    if not (tasks := list(tasks)):
        return Summary()
    # a file that is there while the driver runs, by which workers know its folder, and not empty once they must stop
    mark = files.results() / ".locks" / f"{secrets.token_hex(8)}.shared"
    with _connected(address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = any(node.get("GPU", 0) for node in nodes) if options.device is None else options.device != "cpu"
        cpus = int(min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=1))
        reports = ray.remote(Reports).options(num_cpus=0, max_restarts=-1).remote()
        sent = Options(device=options.device, tensorboard=options.tensorboard)  # one clock: the driver's
        more = {"max_retries": RETRIES, "retry_exceptions": False}
        more |= {"max_calls": 50} if gpus else {}  # of a GPU process; Ray's default, 1, imports torch for each task

        def start(task: Task) -> Future:
            need = resources(task, gpus=gpus, cpus=cpus)
            work = ray.remote(_work).options(name=task.name, **need, **more)
            return work.remote(task, sent, reports, mark, need["num_cpus"], deterministic).future()

        def hear() -> list[tuple]:
            with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):  # it is restarted
                return ray.get(reports.take.remote(), timeout=20)
            return []

        files.write_bytes(mark, b"")
        try:
            return follow(tasks, options, start, hear, lambda: files.write_bytes(mark, b"stop"))
        finally:
            mark.unlink(missing_ok=True)


@contextmanager
def _connected(address: str):
    """Ray, connected; workers run this very package, in this root, whatever is installed on their node."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("Ray is not installed; type `pip install 'ray>=2.40' or -e '.[cluster]'`") from None
    origin = files.provenance()
    variables = {"FSR_ROOT": str(files.root()), "FSR_DATA": str(files.data()), "FSR_COMMIT": origin["commit"] or ""}
    variables["FSR_DIRTY"] = "" if origin["dirty"] is None else str(int(origin["dirty"]))
    environment = {"env_vars": variables, "py_modules": [str(Path(fsr.__file__).parent)]}
    more = {"include_dashboard": False} if address == "local" else {}
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # fail at once where Ray itself would wait for a minute
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.WARNING, **more)
    except Exception as error:  # a node that times out raises no other kind
        first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")[:160]
        raise UsageError(f"no Ray cluster at {address!r} that this user can use ({first}); {HELP}") from None
    try:
        yield ray
    finally:
        ray.shutdown()
