"""Hand-written records: what a table shows is then known beforehand."""

import numpy as np
import pytest

from fsr import experiments, store
from fsr.config import Evaluation, Run
from fsr.files import run_dir, save_json, sha256


class Records:
    """Writes records of planned runs below the test's own root."""

    def __init__(self, profile: str):
        self.profile = profile

    def evaluation(self, run: Run, metric: str, correct, *, kind="whitebox", checkpoint="last", **changes):
        """Outcomes of one column: `correct` is the number of first images that are right, or the flags themselves."""
        planned = experiments.columns(self.profile, kind)[metric]
        changed = {f: getattr(planned, f) for f in ("attack", "images", "surrogate")} | {"checkpoint": checkpoint}
        flags = {k: changes.pop(k) for k in ("flags",) if k in changes}
        store.save_config(run)
        n = planned.images or 500
        right = np.arange(n) < correct if isinstance(correct, int) else np.asarray(correct)
        store.save_evaluation(run, Evaluation(**changed, **changes), np.arange(len(right)), right, **flags)

    def columns(self, run: Run, correct: int, *, only=None, **where):
        """The five columns of the authors' protocol, all with the same outcome."""
        for metric in only or experiments.COLUMNS:
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
        data = store.save_history(run, history or [{"epoch": i + 1, "seconds": per_epoch} for i in range(2)])
        digest = sha256(data)
        record = {"run_id": store.id_of(run), "history_sha256": digest, "hardware": hardware, **more}
        save_json(run_dir(store.id_of(run)) / "env.json", record)


@pytest.fixture
def records(root):
    """Records of a profile: records("demo")."""
    return Records
