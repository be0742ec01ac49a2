"""What a profile still needs, as tasks that any executor can do in any process, and how far it is."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fsr import experiments, hardware, store
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.files import FSRError, Interrupted, MissingRecord, TimeUp, UsageError
from fsr.runs.evaluating import ensure_recorded
from fsr.runs.options import Options
from fsr.runs.training import ensure_trained, has_weights, state_path
from fsr.tables import labels

COST = ("dataset", "image_size", "train_size", "backbone", "width", "blocks", "batch", "precision")  # of an epoch


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run: its training, and what is evaluated and analysed on it.  Small, picklable, done twice at no cost."""

    run: Run
    evaluations: tuple[Evaluation, ...] = ()
    analyses: tuple[Analysis, ...] = ()

    @property
    def name(self) -> str:
        return run_id(self.run)

    def left(self) -> list[Evaluation | Analysis]:
        parts: list[Evaluation | Analysis] = [*self.evaluations, *self.analyses]
        return [part for part in parts if not store.has_record(self.run, part)]

    def missing(self) -> list[str]:
        """What is not recorded yet: `train`, `<checkpoint> <attack id or kind>`."""
        parts = [f"{p.checkpoint} {p.attack_id if isinstance(p, Evaluation) else p.kind}" for p in self.left()]
        return ["train"] * (not store.is_trained(self.run)) + parts

    def trains(self) -> str:
        """`new` where it was never trained, `again` where what is missing needs weights that are gone, else ""."""
        gone = self.run.imported is None and not all(has_weights(self.run, part.checkpoint) for part in self.left())
        return ("again" if gone else "") if store.is_trained(self.run) else "new"


def tasks(profile: str, sets: Iterable[str] = ("all",), *, train_only: bool = False) -> list[Task]:
    """Tasks of these sets in the plan's order, each run once; behind all come those that need another run's weights."""
    experiments.profile_of(profile)
    plan, sets, rounds = experiments.SETS[profile], tuple(sets), (list[Task](), list[Task]())
    chosen = dict.fromkeys(run for name in sets for run in plan[name])
    for run in dict.fromkeys([*(run for run in plan["all"] if run in chosen), *chosen]):
        evaluations = dict.fromkeys(e for name in sets for e in experiments.evaluations(profile, name, run))
        analyses = dict.fromkeys(a for name in sets for a in experiments.analyses(profile, name, run))
        for later, out in enumerate(rounds):
            own = tuple(e for e in evaluations if (e.surrogate is not None) == later and not train_only)
            kinds = tuple(a for a in analyses if (a.kind == "audit") == later and not train_only)
            if own or kinds or not later:
                out.append(Task(run=run, evaluations=own, analyses=kinds))
    return rounds[0] + rounds[1]


def missing(profile: str, sets: Iterable[str] = ("all",), *, train_only: bool = False) -> list[Task]:
    """The tasks of which something is not recorded yet."""
    return [task for task in tasks(profile, sets, train_only=train_only) if task.missing()]


def perform(task: Task, options: Options) -> list[str]:
    """Do what is missing of a task; one line per part that failed, the others are done.  TimeUp, Interrupted end it."""
    failed, run = [], task.run
    for part in (None, *task.evaluations, *task.analyses):
        try:
            ensure_recorded(run, part, options) if part else ensure_trained(run, options)
        except (TimeUp, Interrupted):
            raise
        except (FSRError, MemoryError, RuntimeError) as error:
            text = str(error).strip()
            if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
                advice = f"a smaller batch than {run.batch}, another precision than {run.precision}, a narrower width"
                text = f"out of memory: try {advice} or fewer --workers ({text[:80]})"
            elif not isinstance(error, FSRError):
                raise
            failed.append(f"{task.name}: {text}")
            if part is None:
                break
    return failed


def ensure(profile: str, notebook: str, options: Options | None = None) -> None:
    """Everything a notebook reads is recorded when this returns; computes in this process what is missing."""
    if notebook not in experiments.NEEDS:
        raise UsageError(f"unknown notebook {notebook!r}; choose one of {', '.join(experiments.NEEDS)}")
    for task in missing(profile, experiments.NEEDS[notebook]):
        if failed := perform(task, options or Options()):
            raise FSRError("; ".join(failed))


def seconds_per_epoch(device: str) -> list[tuple[Run, float]]:
    """Finished runs and their median seconds per epoch, of those trained on this kind of device (cpu, cuda)."""
    here = [run for run, record in store.finished() if (record.get("hardware") or {}).get("device") == device]
    return [(run, float(store.history(run)["seconds"].median())) for run in here]


def seconds_left(run: Run, measured: list[tuple[Run, float]], *, epochs: int | None = None) -> float | None:
    """Seconds of the epochs left (None: those not in its history), by measured runs of its size, best of its method."""
    alike = [(other, s) for other, s in measured if all(getattr(run, f) == getattr(other, f) for f in COST)]
    seconds = [s for other, s in alike if other.label == run.label] or [s for _, s in alike]
    with suppress(MissingRecord):
        epochs = run.epochs - len(store.history(run)) if epochs is None else epochs
    return (run.epochs if epochs is None else epochs) * float(np.median(seconds)) if seconds else None


def status(profile: str, sets: Iterable[str] = ("all",), *, device: str | None = None) -> pd.DataFrame:
    """A row per run: id, state (done, partial, missing, damaged), what is recorded, seconds of training left, next."""
    measured, rows, everything = seconds_per_epoch(hardware.device_named(device).type), [], tasks(profile, sets)
    for run in dict.fromkeys(task.run for task in everything):
        own, trained, damage = [t for t in everything if t.run == run], store.is_trained(run), store.damage(run)
        left = ["train"] * (not trained) + [what for task in own for what in task.missing() if what != "train"]
        total = 1 + sum(len(task.evaluations) + len(task.analyses) for task in own)
        begun = "partial" if trained or state_path(run).exists() else "missing"
        state = "damaged" if damage else begun if left else "done"
        seconds = 0.0 if trained or damage else seconds_left(run, measured)
        recorded, then = f"{total - len(left)}/{total}", damage or next(iter(left), "")
        rows.append([labels.run(profile, run), run_id(run), state, recorded, seconds, then])
    columns = ["run", "id", "state", "recorded", "seconds", "next"]
    return pd.DataFrame(rows, columns=columns).astype({"seconds": float})
