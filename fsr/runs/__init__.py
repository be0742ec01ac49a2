"""Train or load, evaluate or load, analyse or load: every arrow can be asked for twice and computes once."""

from fsr.runs.base import Options, data_of, locked
from fsr.runs.checkpoints import state_path, weights_path
from fsr.runs.evaluating import ensure_analysed, ensure_evaluated
from fsr.runs.tasks import Task, ensure, missing, perform, status, tasks
from fsr.runs.training import ensure_trained, has_weights, load_model

__all__ = [
    "Options",
    "Task",
    "data_of",
    "ensure",
    "ensure_analysed",
    "ensure_evaluated",
    "ensure_trained",
    "has_weights",
    "load_model",
    "locked",
    "missing",
    "perform",
    "state_path",
    "status",
    "tasks",
    "weights_path",
]
