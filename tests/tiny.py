"""What tests share: a run small enough for them, networks, stored answers of other code, and what a call left."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fsr.audit import BUDGETS
from fsr.config import FSRSpec, Run
from fsr.experiments import PROFILES
from fsr.files import Interrupted
from fsr.runs import Options


def tiny_run(**changes) -> Run:
    """The profile ci's on half of its images, 96 real digits; float32, so that the CPU repeats it bit for bit."""
    return replace(PROFILES["ci"].base, **{"train_size": 96, "test_size": 40, "holdout": 20, **changes})


class Wrapped(nn.Module):
    """A network behind a function of its images and one of its logits."""

    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class Linear(nn.Module):
    """Logits W x of K classes over flattened pixels, float64; with two classes the worst point in the ball is known."""

    def __init__(self, classes=2, pixels=48, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(classes, pixels, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) @ self.w.T


class Net(nn.Module):
    """Convolution, BatchNorm, dropout and a head, in eval mode: what a mode, a neighbour or a pass could disturb."""

    def __init__(self, classes=6, seed=3):
        super().__init__()
        torch.manual_seed(seed)
        head = nn.Dropout(0.5), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *head)
        self.eval()
        with torch.no_grad():  # every class is somebody's
            self.layers[-1].bias -= self.layers(torch.rand(200, 3, 8, 8)).mean(0)

    def forward(self, x):
        return 20 * self.layers(x)

    def trace(self, x):
        """As fsr.models.Classifier.trace: logits, and a stream with one auxiliary head."""
        logits = self(x)
        return logits, [SimpleNamespace(aux={"probe": logits.flip(1)})]


def parity(name: str) -> dict[str, torch.Tensor]:
    """The arrays of tests/parity/<name>.npz: what the authors' code, or another library, answered."""
    with np.load(Path(__file__).parent / "parity" / f"{name}.npz") as stored:
        return {key: torch.from_numpy(value) for key, value in stored.items() if value.dtype.kind != "U"}


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
