"""What is here and how it went: versions, plan, data, trainings, networks with weights."""

import importlib.metadata
import os
import platform

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments, hardware, runs, store
from fsr.config import Run, diff
from fsr.data import as_float, part_of_test
from fsr.files import MissingRecord
from fsr.tables import labels

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "matplotlib", "seaborn", "pyautoattack")


def versions() -> pd.DataFrame:
    """Python, the packages that decide results, and the device that would be used."""
    parts = hardware.describe(hardware.device_named(None))
    rows = {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    rows |= {"device": parts.get("gpu", parts["device"]), "processor": f"{parts['cpu']}, {parts['cores']} cores"}
    return pd.DataFrame({"version": rows})


def plan(profile: str) -> pd.DataFrame:
    """The profile's main network, and how many trainings and evaluations are planned around it."""
    run, _ = experiments.main_pair(profile)
    planned = experiments.SETS[profile]["all"]
    rows = {
        "data set": labels.dataset(run.dataset),
        "network": labels.network(run),
        "eps": f"{255 * run.eps:.1f}/255",
        "epochs": run.epochs,
        "trainings": len(planned),
        "evaluations": sum(len(experiments.evaluations(profile, "all", one)) for one in planned),
    }
    return pd.DataFrame({profile: rows})


def data_summary(run: Run) -> pd.DataFrame:
    """Images, size and class balance of the training, held-out and test part."""
    data = runs.data_of(run)
    rows = {}
    for name, x, y in (
        ("train", data.train_x, data.train_y),
        ("held out", data.held_x, data.held_y),
        ("test", data.test_x, data.test_y),
    ):
        counts = torch.bincount(y, minlength=data.classes)
        rows[name] = [len(y), " x ".join(map(str, x.shape[1:])), int(counts.min()), int(counts.max())]
    columns = ["images", "channels x height x width", "smallest class", "largest class"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches, closed in pyplot so that a notebook shows it once."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure


def show_image(ax: Axes, image: np.ndarray, title: str) -> None:
    """One picture (3, H, W) in [0, 1] without axes."""
    ax.imshow(np.moveaxis(image, 0, -1).clip(0, 1), interpolation="nearest")
    ax.set_title(title, fontsize=8)
    ax.axis("off")


def sample_grid(run: Run, *, noise: bool = False, images: int = 20) -> Figure:
    """The first test images of the fixed order; noise adds plus or minus eps at random to every pixel."""
    data = runs.data_of(run)
    x, y, _ = part_of_test(data, images)
    x = as_float(x)
    if noise:
        x = x + run.eps * torch.sign(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    figure = new_figure(10, 1.1 * -(-images // 10))
    for ax, image, label in zip(figure.subplots(-(-images // 10), 10).flat, x.numpy(), y.tolist()):
        show_image(ax, image, data.class_names[label])
    return figure


def complete(profile: str, notebook: str, device: str | None = None) -> str:
    """Compute what the notebook reads and no record holds; with FSR_COMPUTE=0 only count what is missing."""
    if os.environ.get("FSR_COMPUTE") != "0":
        runs.ensure(profile, notebook, runs.Options(device=device))
    left = sum(len(task.missing()) for task in runs.missing(profile, experiments.NEEDS[notebook]))
    return (
        f"{left} records are missing: they show as not run" if left else "every record that this notebook reads is here"
    )


def trained(profile: str, *, modules: bool) -> pd.DataFrame:
    """A row per planned run, without or with an inserted module: how it differs from plain AT, and how it went."""
    base, rows = experiments.main_pair(profile)[0], []
    for run in experiments.SETS[profile]["all"]:
        if (run.module is not None) == modules:
            changed = {
                name: new for name, (_, new) in diff(base, run).items() if name not in ("method", "seed", "module")
            }
            row = {"method": labels.method(run.label), "seed": run.seed, "network": labels.network(run)}
            row["differs in"] = ", ".join(f"{name} = {value}" for name, value in changed.items())
            rows.append(row | _progress(run))
    return pd.DataFrame(rows)


def _progress(run: Run) -> dict:
    """Epochs done, held-out accuracies at the end, and the epoch with the highest robust one."""
    try:
        history = store.history(run).set_index("epoch")
    except MissingRecord:
        return {"epochs": "not run"}
    clean, robust = history[["held_clean_acc", "held_robust_acc"]].iloc[-1].round(3)
    best = history["held_robust_acc"].fillna(-1).idxmax() if run.holdout else None
    return {"epochs": f"{len(history)}/{run.epochs}", "clean": clean, "robust": robust, "best epoch": best}


def differences(before: Run, after: Run) -> pd.DataFrame:
    """The fields in which two runs differ, with both values."""
    return pd.DataFrame.from_dict(diff(before, after), orient="index", columns=["before", "after"])


def curves(run: Run) -> Figure:
    """Loss terms and held-out accuracies of a run, epoch by epoch."""
    history = store.history(run).set_index("epoch")
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    history.filter(regex="^train_(?!adv_acc)").plot(ax=left, title=f"{labels.method(run.label)}: loss terms")
    history.filter(like="held_").plot(ax=right, title="accuracy on held-out images", ylim=(0, 1))
    return figure


def networks(profile: str) -> pd.DataFrame:
    """The profile's networks whose weights are on this machine: method, seed, weights, run and checkpoint."""
    rows = [
        {"name": f"{labels.method(run.label)}, seed {run.seed}, {kind}", "run": run, "checkpoint": kind}
        for run in experiments.SETS[profile]["all"]
        for kind in ("ema", "last", "best")
        if runs.has_weights(run, kind)
    ]
    return pd.DataFrame(rows, columns=["name", "run", "checkpoint"])


def example(profile: str, label: str) -> tuple[Run, str]:
    """(run, checkpoint) of seed 0 with this label whose weights are here; else demo's, which trains in seconds."""
    run = experiments.named(profile)[label]
    here = [kind for kind in ("ema", "last", "best") if runs.has_weights(run, kind)]
    return (run, here[0]) if here else (experiments.named("demo")[label], "ema")
