"""A run small enough for tests: that of the profile ci on half of its images, 96 real digits."""

from dataclasses import replace

import pandas as pd
import pytest
from torch import nn

from fsr.audit import BUDGETS
from fsr.config import FSRSpec, Run
from fsr.experiments import PROFILES
from fsr.files import Interrupted
from fsr.runs import Options


def tiny_run(**changes) -> Run:
    """Plain AT unless changed; float32, so that the CPU repeats it bit for bit."""
    return replace(PROFILES["ci"].base, **{"train_size": 96, "test_size": 40, "holdout": 20, **changes})


class Wrapped(nn.Module):
    """A network behind a function of its images and one of its logits."""

    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def stop_after(batches: int, compute, *what) -> None:
    """The call ends after so many batches, as by a signal."""
    done: list = []
    options = Options(device="cpu", interrupted=lambda: len(done) >= batches, report=lambda *_: done.append(1))
    with pytest.raises(Interrupted):
        compute(*what, options)


def results(root) -> dict:
    """Weights, outcomes and histories below a root, byte by byte, but for histories' seconds."""
    out: dict = {p.relative_to(root): pd.read_csv(p).drop(columns="seconds").to_csv() for p in root.rglob("*.csv")}
    paths = (p for p in root.rglob("*") if p.suffix in (".npz", ".safetensors") and p.stem != "state")  # has seconds
    return out | {p.relative_to(root): p.read_bytes() for p in paths}


FSR_HERE = FSRSpec(at=("layer3",))
FEW = {"steps": 12, "draws": 8, "queries": 100, "pairs": 6, "binary": 4}
FEW |= {"autoattack": {"steps": 5, "queries": 50}}
UNTESTED = ("autoattack", "autoattack-rand", "nattack", "autoattack-ci", "pgd100-restarts", "pgd100", "apgd-dlr")
BRISK = {**BUDGETS["quick"], **FEW, "untested": UNTESTED}  # an audit far below it, where only the plumbing is asked
