"""Train or load, evaluate or load, analyse or load: every call can be made twice and computes once."""

from fsr.runs.evaluating import ensure_evaluated
from fsr.runs.options import Options, data_of
from fsr.runs.tasks import Task, missing, perform, seconds_left, seconds_per_epoch, status, tasks
from fsr.runs.training import ensure_trained, has_weights, import_official, load_model, state_path, weights_path
