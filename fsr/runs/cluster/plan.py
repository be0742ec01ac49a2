"""Tasks as a cluster sees them: what comes after what, and what each needs of a node."""

from collections.abc import Iterable
from dataclasses import dataclass

from fsr import store
from fsr.config import run_id
from fsr.experiments.cost import forward_macs
from fsr.files import CorruptFile
from fsr.runs import Task
from fsr.runs.auditing import twin_of
from fsr.runs.training import has_weights

# Share of a GPU by multiply-adds of one forward pass of one image: networks this small leave most of a GPU idle.
SHARES = ((5e6, 0.125), (60e6, 0.25))


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
        for evaluation in task.evaluations:
            if not store.has_evaluation(task.run, evaluation):
                needs = {trainings.get(task.name), trainings.get(evaluation.surrogate)} - {None}
                jobs.append(Job(Task(run=task.run, evaluations=(evaluation,)), tuple(sorted(needs))))
        for analysis in task.analyses:
            if not store.has_analysis(task.run, analysis):
                twin = trainings.get(run_id(twin_of(task.run))) if analysis.kind == "audit" else None
                needs = {trainings.get(task.name), twin} - {None}
                jobs.append(Job(Task(run=task.run, analyses=(analysis,)), tuple(sorted(needs))))
    return jobs


def resources(task: Task, *, gpus: bool, cpus: int) -> dict:
    """num_gpus and num_cpus of a task, as Ray names them.

    gpus: does the cluster have any; cpus: of the smallest node. On a GPU: one core and a share by the network's
    size, or all of it where latencies are measured. Without: one core for small networks, which two threads slow down,
    else a whole node of the smallest size.
    """
    if gpus:
        macs = float("inf") if any(a.kind == "cost" for a in task.analyses) else forward_macs(task.run)
        return {"num_gpus": next((share for limit, share in SHARES if macs < limit), 1), "num_cpus": 1}
    return {"num_gpus": 0, "num_cpus": 1 if forward_macs(task.run) < SHARES[0][0] else max(1, cpus)}
