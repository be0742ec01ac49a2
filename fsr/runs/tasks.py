"""What a profile still needs, as tasks that any executor can do in any process, and how far it is."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fsr import experiments, hardware, store
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.files import FSRError, Interrupted, MissingRecord, TimeUp
from fsr.runs.evaluating import ensure_evaluated
from fsr.runs.options import Options
from fsr.runs.training import ensure_trained, has_weights, state_path
from fsr.tables import labels

log = logging.getLogger("fsr")
COST = ("label", "dataset", "image_size", "train_size", "backbone", "width", "blocks", "batch", "precision")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run: its training, and what is evaluated and analysed on it.  Small, picklable, done twice at no cost."""

    run: Run
    parts: tuple[Evaluation | Analysis, ...] = ()

    @property
    def name(self) -> str:
        return run_id(self.run)

    def missing(self, *, gone: bool = False) -> list[str]:
        """What is missing: `train`, `<checkpoint> <attack id or kind>`; gone: `train again` if weights are lost."""
        left = [part for part in self.parts if not store.has_record(self.run, part)]
        names = [f"{p.checkpoint} {p.attack_id if isinstance(p, Evaluation) else p.kind}" for p in left]
        if not store.is_trained(self.run):
            return ["train", *names]
        again = gone and not self.run.imported and not all(has_weights(self.run, part.checkpoint) for part in left)
        return ["train again"] * again + names


def tasks(profile: str, sets: Iterable[str] = ("all",), *, train_only: bool = False) -> list[Task]:
    """Tasks of these sets in the plan's order, each run once; behind all come those that need another run's weights."""
    plan, sets = experiments.SETS[experiments.profile_of(profile).name], tuple(sets)
    kinds = () if train_only else (experiments.evaluations, experiments.analyses)
    first, later = list[Task](), list[Task]()
    for run in (run for run in plan["all"] if any(run in plan[name] for name in sets)):
        parts = dict.fromkeys(part for make in kinds for name in sets for part in make(profile, name, run))
        late = tuple(p for p in parts if (p.surrogate if isinstance(p, Evaluation) else p.kind == "audit"))
        first.append(Task(run=run, parts=tuple(part for part in parts if part not in late)))
        later += [Task(run=run, parts=late)] * bool(late)
    return first + later


def missing(profile: str, sets: Iterable[str] = ("all",)) -> list[Task]:
    """The tasks of which something is not recorded yet."""
    return [task for task in tasks(profile, sets) if task.missing()]


def failure(error: BaseException, who: str) -> str:
    """What failed, in one line; -v shows where."""
    log.debug("a task failed", exc_info=error)
    text = (str(error).strip().splitlines() or [""])[-1]
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        text = "out of memory: try a smaller batch, another precision, a narrower width or fewer --workers"
    elif not isinstance(error, FSRError):
        text = f"{type(error).__name__}: {text} (-v shows where)"
    return f"{who}: {text}"


def perform(task: Task, options: Options) -> list[str]:
    """Do what is missing of a task; one line per part that failed, the others are done.  TimeUp, Interrupted end it."""
    failed = []
    for part in (None, *task.parts):
        try:
            ensure_evaluated(task.run, part, options) if part else ensure_trained(task.run, options)
        except (TimeUp, Interrupted):
            raise
        except Exception as error:
            failed.append(failure(error, task.name))
            if part is None:
                break
    return failed


def seconds_per_epoch(device: str) -> list[tuple[Run, float]]:
    """Finished runs and their median seconds per epoch, of those trained on this kind of device (cpu, cuda)."""
    trained = [run for run in store.runs() if store.is_trained(run) and not run.imported]
    here = [run for run in trained if store.environment(run).get("hardware", {}).get("device") == device]
    return [(run, float(store.history(run)["seconds"].median())) for run in here]


def seconds_left(run: Run, measured: list[tuple[Run, float]]) -> float | None:
    """Seconds of the epochs that its history lacks, by measured runs of its method and size; None without any."""
    seconds = [s for other, s in measured if all(getattr(run, name) == getattr(other, name) for name in COST)]
    done = 0
    with suppress(MissingRecord):
        done = len(store.history(run))
    return (run.epochs - done) * float(np.median(seconds)) if seconds else None


def status(profile: str, *, device: str | None = None) -> pd.DataFrame:
    """A row per run: id, state (done, partial, missing), what is recorded, seconds of training left, next."""
    measured, rows, everything = seconds_per_epoch(hardware.device_named(device).type), [], tasks(profile)
    for run in dict.fromkeys(task.run for task in everything):
        own, trained = [task for task in everything if task.run == run], store.is_trained(run)
        left = list(dict.fromkeys(what for task in own for what in task.missing()))
        total = 1 + sum(len(task.parts) for task in own)
        state = "done" if not left else "partial" if trained or state_path(run).exists() else "missing"
        seconds = 0.0 if trained else seconds_left(run, measured)
        facts = [state, f"{total - len(left)}/{total}", seconds, next(iter(left), "")]
        rows.append([labels.run(profile, run), run_id(run), *facts])
    columns = ["run", "id", "state", "recorded", "seconds", "next"]
    return pd.DataFrame(rows, columns=columns).astype({"seconds": float})
