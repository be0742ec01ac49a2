"""The same tasks on a Ray cluster, which places, queues and retries them; its nodes share the results folder."""

import logging
import os
import secrets
from dataclasses import replace
from pathlib import Path

import fsr
from fsr import files
from fsr.files import UsageError
from fsr.runs.local import follow
from fsr.runs.options import Options
from fsr.runs.tasks import Task, perform

RETRIES = 5  # times that Ray starts a task again whose worker or node was lost; each resumes from the last checkpoint


def resources(task: Task, *, gpus: bool) -> dict:
    """num_gpus and num_cpus of a task: one core, and a GPU or a share of it where the cluster has any."""
    timed = any(getattr(part, "kind", "") == "cost" for part in task.parts)  # it shares nothing
    share = 1 if timed or task.run.backbone == "wideresnet34" or (task.run.width or 64) > 16 else 0.25
    return {"num_gpus": share if gpus else 0, "num_cpus": 1}


def _work(task: Task, options: Options, mark: Path) -> list[str]:
    if not mark.exists():
        line = f"its node does not see {files.results()} of the driver: give a --root DIR that every node mounts there"
        return [f"{task.name}: {line}"]
    return perform(task, replace(options, report=lambda *_: None, interrupted=lambda: mark.stat().st_size > 0))


def run_tasks(tasks: list[Task], options: Options, *, address: str = "auto") -> list[str]:
    """As `run_inline`, on the Ray cluster at address (local, auto or HOST:PORT); UsageError where none answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("Ray is not installed; type `pip install 'ray>=2.40' or -e '.[cluster]'`") from None
    origin, futures = files.provenance(), {}  # workers run this very package, in this root
    variables = {"FSR_ROOT": str(files.root()), "FSR_DATA": str(files.data()), "FSR_COMMIT": origin["commit"] or ""}
    variables["FSR_DIRTY"] = "" if origin["dirty"] is None else str(int(origin["dirty"]))
    environment = {"env_vars": variables, "py_modules": [str(Path(fsr.__file__).parent)]}
    try:
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # a node that times out raises no other kind
        first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")[:160]
        advice = "start one by `ray start --head`, or give --address HOST:PORT (with a token: RAY_AUTH_MODE=token)"
        raise UsageError(f"no Ray cluster at {address!r} that this user can use ({first}); {advice}") from None
    # a file that is there while the driver runs, by which workers know its folder, and not empty once they must stop
    mark = files.results() / ".locks" / f"{secrets.token_hex(8)}.shared"
    sent = replace(options, deadline=None, interrupted=bool, report=print)  # a worker has its own
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = any(node.get("GPU", 0) for node in nodes) if options.device is None else options.device != "cpu"
        files.write_bytes(mark, b"")
        for task in tasks:
            work = ray.remote(_work).options(name=task.name, max_retries=RETRIES, **resources(task, gpus=gpus))
            futures[work.remote(task, sent, mark).future()] = task
        return follow(futures, options, list, lambda: files.write_bytes(mark, b"stop"))
    finally:
        mark.unlink(missing_ok=True)
        ray.shutdown()
