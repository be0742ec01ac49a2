"""Hand-written records: what a table shows is then known beforehand."""

import numpy as np
import pytest
from synthetic_records import write_training

from fsr import experiments, store, tables
from fsr.config import Evaluation, Run


class Records:
    """Writes records of planned runs of a profile below the test's own root."""

    def __init__(self, profile: str):
        self.profile = profile

    def evaluation(self, run: Run, metric: str, correct, *, kind="whitebox", checkpoint="last", flags=None, **changes):
        """Outcomes of one column: `correct` is the number of first images that are right, or the flags themselves."""
        planned = experiments.columns(self.profile, kind)[metric]
        changes |= {name: getattr(planned, name) for name in ("attack", "images", "surrogate")}
        right = np.arange(planned.images or 500) < correct if isinstance(correct, int) else np.asarray(correct)
        more = {} if flags is None else {"flags": flags}
        store.save_config(run)
        store.save_evaluation(run, Evaluation(checkpoint=checkpoint, **changes), np.arange(len(right)), right, **more)

    def columns(self, run: Run, correct: int, **where):
        """The five columns of the authors' protocol, all with the same outcome."""
        for metric in experiments.PROTOCOL:
            self.evaluation(run, metric, correct, **where)

    def analysis(self, run: Run, kind: str, record: dict, checkpoint: str | None = None):
        """A planned analysis."""
        store.save_config(run)
        for planned in experiments.analyses(self.profile, "all", run):
            if planned.kind == kind and checkpoint in (None, planned.checkpoint):
                store.save_analysis(run, planned, record)

    def trained(self, run: Run, per_epoch: float, hardware: dict, history: list[dict] | None = None, **more):
        """A finished training of two epochs, or with this history."""
        store.save_config(run)
        history = history or [{"epoch": i + 1, "seconds": per_epoch} for i in range(2)]
        write_training(run, history, hardware=hardware, **more)


@pytest.fixture
def records(root):
    """Records of a profile: records("demo")."""
    return Records


@pytest.fixture
def shown(root):
    """One row of a table as a reader sees it, by its method and weights."""

    def row(method: str, name: str = "T1", profile: str = "demo", weights: str = "last"):
        frame = tables.wide(tables.table(profile, name))
        return frame[(frame["method"] == method) & (frame.get("weights", weights) == weights)].iloc[0]

    return row


@pytest.fixture
def typed(root):
    """Writes results/paper_values.csv with these lines."""

    def write(*lines: str):
        (root / "results").mkdir(exist_ok=True)
        head = "table,dataset,backbone,row,metric,value,unit,note"
        (root / "results" / "paper_values.csv").write_text("\n".join([head, *lines, ""]))

    return write
