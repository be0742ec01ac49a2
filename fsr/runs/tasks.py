"""What a profile still needs, cut into tasks that any executor can do in any process."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from fsr import experiments, store
from fsr.config import Analysis, Evaluation, Run, run_id
from fsr.files import FSRError, Interrupted, TimeUp, UsageError
from fsr.runs.base import Options
from fsr.runs.checkpoints import state_path
from fsr.runs.evaluating import ensure_analysed, ensure_evaluated
from fsr.runs.training import ensure_trained, has_weights


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run: its training, and what is evaluated and analysed on it.  Small, picklable, done twice at no cost."""

    run: Run
    evaluations: tuple[Evaluation, ...] = ()
    analyses: tuple[Analysis, ...] = ()

    @property
    def name(self) -> str:
        """The run's id."""
        return run_id(self.run)

    def missing(self) -> list[str]:
        """What is not recorded yet: `train`, `<checkpoint> <attack id>`, `<checkpoint> <kind>`."""
        out = [] if store.is_trained(self.run) else ["train"]
        out += [f"{e.checkpoint} {e.attack_id}" for e in self.evaluations if not store.has_evaluation(self.run, e)]
        return out + [f"{a.checkpoint} {a.kind}" for a in self.analyses if not store.has_analysis(self.run, a)]

    def trains(self) -> str:
        """`new` where it was never trained, `again` where what is missing needs weights that are gone, else ""."""
        if not store.is_trained(self.run):
            return "new"
        wanted = {e.checkpoint for e in self.evaluations if not store.has_evaluation(self.run, e)}
        wanted |= {a.checkpoint for a in self.analyses if not store.has_analysis(self.run, a)}
        gone = self.run.imported is None and not all(has_weights(self.run, kind) for kind in wanted)
        return "again" if gone else ""


def tasks(profile: str, sets: Iterable[str] = ("all",), *, train_only: bool = False) -> list[Task]:
    """Tasks of these sets in the plan's order, each run once; transfers and audits come in a second round.

    Both need another run's weights, so they are a task of their own behind all trainings.
    """
    sets = tuple(sets)
    experiments.profile_of(profile)
    wanted = {run: None for name in sets for run in experiments.SETS[profile][name]}
    order = [run for run in experiments.SETS[profile]["all"] if run in wanted]
    order += [run for run in wanted if run not in set(order)]
    first, second = [], []
    for run in order:
        evaluations = dict.fromkeys(e for name in sets for e in experiments.evaluations(profile, name, run))
        analyses = dict.fromkeys(a for name in sets for a in experiments.analyses(profile, name, run))
        own = tuple(e for e in evaluations if e.surrogate is None)
        foreign = tuple(e for e in evaluations if e.surrogate is not None)
        looks = tuple(a for a in analyses if a.kind != "audit")
        audits = tuple(a for a in analyses if a.kind == "audit")
        first.append(Task(run=run) if train_only else Task(run=run, evaluations=own, analyses=looks))
        if (foreign or audits) and not train_only:
            second.append(Task(run=run, evaluations=foreign, analyses=audits))
    return first + second


def missing(profile: str, sets: Iterable[str] = ("all",), *, train_only: bool = False) -> list[Task]:
    """The tasks of which something is not recorded yet."""
    return [task for task in tasks(profile, sets, train_only=train_only) if task.missing()]


def perform(task: Task, options: Options) -> list[str]:
    """Do what is missing of a task; returns one line per part that failed, and goes on with the others.

    TimeUp and Interrupted end it at once: what is done is recorded, the rest resumes.
    """
    failed = []

    def attempt(function, *arguments) -> bool:
        try:
            function(*arguments, options)
        except (TimeUp, Interrupted):
            raise
        except FSRError as error:
            failed.append(f"{task.name}: {error}")
            return False
        return True

    if not attempt(ensure_trained, task.run):
        return failed
    for evaluation in task.evaluations:
        attempt(ensure_evaluated, task.run, evaluation)
    for analysis in task.analyses:
        attempt(ensure_analysed, task.run, analysis)
    return failed


def ensure(profile: str, notebook: str, options: Options | None = None) -> None:
    """Everything a notebook reads is recorded when this returns; computes in this process what is missing."""
    if notebook not in experiments.NEEDS:
        raise UsageError(f"unknown notebook {notebook!r}; choose one of {', '.join(experiments.NEEDS)}")
    for task in missing(profile, experiments.NEEDS[notebook]):
        failed = perform(task, options or Options())
        if failed:
            raise FSRError("; ".join(failed))


def _state(task: Task, left: list[str]) -> str:
    if not left:
        return "done"
    started = store.is_trained(task.run) or state_path(task.run).exists()
    return "partial" if started else "missing"


def status(profile: str, sets: Iterable[str] = ("all",)) -> pd.DataFrame:
    """One row per run: state (done, partial, missing, damaged), what is recorded of what is planned, and what is next.

    Damaged is a run whose config.json or env.json is not what was written; `next` then says which, and what to do.
    """
    whole: dict[Run, Task] = {}
    for task in tasks(profile, sets):
        known = whole.get(task.run)
        both = (known.evaluations if known else ()) + task.evaluations
        whole[task.run] = Task(
            run=task.run, evaluations=both, analyses=task.analyses or (known.analyses if known else ())
        )
    rows = []
    for task in whole.values():
        left = task.missing()
        of = 1 + len(task.evaluations) + len(task.analyses)
        wrong = store.damage(task.run)
        state, then = ("damaged", wrong) if wrong else (_state(task, left), left[0] if left else "")
        rows.append([task.name, state, f"{of - len(left)}/{of}", then])
    return pd.DataFrame(rows, columns=["run", "state", "recorded", "next"])
