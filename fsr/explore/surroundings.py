"""What is here: versions, device, the plan of a profile, its data; and the module on one batch, untrained."""

import importlib.metadata
import platform

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from fsr import data as data_room
from fsr import experiments, hardware
from fsr.analyse.inspection import module_inputs
from fsr.config import Run
from fsr.explore.display import Picture
from fsr.models import count_params, gumbel_mask, model_of
from fsr.plots import style
from fsr.runs import data_of
from fsr.tables import labels as words

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "matplotlib", "seaborn", "pyautoattack")


def versions() -> pd.DataFrame:
    """Python, the packages that decide results, and the device that would be used."""
    found = {"Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    parts = hardware.describe(hardware.device_named(None))
    found |= {"device": parts.get("gpu", parts["device"]), "processor": f"{parts['cpu']}, {parts['cores']} cores"}
    return pd.DataFrame({"version": found}).rename_axis("what")


def plan(profile: str) -> pd.DataFrame:
    """The profile's two main runs and how much is planned around them."""
    sets = experiments.SETS[experiments.profile_of(profile).name]
    run, _ = experiments.main_pair(profile)
    evaluations = sum(len(experiments.evaluations(profile, "all", one)) for one in sets["all"])
    rows = {
        "data set": words.dataset(run.dataset),
        "network": words.network(run),
        "eps": f"{run.eps:.4f} = {255 * run.eps:.1f}/255",
        "epochs": str(run.epochs),
        "trainings": str(len(sets["all"])),
        "evaluations": str(evaluations),
    }
    return pd.DataFrame({profile: rows}).rename_axis("what")


def data_summary(run: Run) -> pd.DataFrame:
    """Images, size and the smallest and largest class of every part of the data."""
    data = data_of(run)
    rows = []
    parts = (
        ("train", data.train_x, data.train_y),
        ("held out", data.held_x, data.held_y),
        ("test", data.test_x, data.test_y),
    )
    for name, x, y in parts:
        counts = torch.bincount(y, minlength=data.classes)
        shape = " x ".join(str(n) for n in x.shape[1:])
        rows.append([name, len(y), shape, int(counts.min()), int(counts.max())])
    names = ["part", "images", "channels x height x width", "smallest class", "largest class"]
    return pd.DataFrame(rows, columns=names).set_index("part")


@style.styled
def _grid(images: np.ndarray, titles: list[str], columns: int) -> Figure:
    rows = -(-len(images) // columns)
    fig, axes = style.panels(rows, columns, 0.95 * rows + 0.1)
    flat = [ax for line in axes for ax in line]
    for ax in flat:
        style.blank(ax)
    for ax, image, title in zip(flat, images, titles, strict=False):
        ax.imshow(np.moveaxis(image, 0, -1), interpolation="nearest")
        ax.set_title(title, loc="center", fontsize=7, fontweight="normal", pad=2)
    return fig


def sample_grid(run: Run, *, noise: bool = False, images: int = 20) -> Picture:
    """The first test images of the fixed order with their classes; noise adds plus or minus eps at random per pixel."""
    data = data_of(run)
    x, y, _ = data_room.part_of_test(data, min(images, len(data.test_y)))
    if noise:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
        x = ((data_room.as_float(x) + run.eps * signs).clamp(0, 1) * 255).round().to(torch.uint8)
    titles = [data.class_names[int(label)] for label in y]
    return Picture.of(_grid(x.cpu().numpy(), titles, columns=10), "test images" + (" with noise" if noise else ""))


def module_summary(profile: str, images: int = 64) -> pd.DataFrame:
    """One batch through the untrained network with FSR, in test mode: every tensor's shape, mean and spread.

    The last row is the largest difference between the output and robust + recalibrated: rounding only.
    """
    _, run = experiments.main_pair(profile)
    data = data_of(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = model_of(run, num_classes=data.classes).eval()
    x, _, _ = data_room.part_of_test(data, min(images, len(data.test_y)))
    with torch.no_grad(), module_inputs(model) as given:
        logits, (streams, *_) = model.trace(data_room.as_float(x))
    named = {
        "f, the input": given[0], "mask m": streams.mask, "robust f+": streams.robust,
        "non-robust f-": streams.nonrobust, "recalibrated": streams.recalibrated, "output": streams.features,
        "logits": logits,
    }  # fmt: skip
    rows = {name: [tuple(t.shape), float(t.mean()), float(t.std())] for name, t in named.items()}
    gap = (streams.features - streams.robust - streams.recalibrated).abs().max()
    rows["output - (robust + recalibrated)"] = [tuple(streams.features.shape), float(gap), 0.0]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["shape", "mean", "spread"]).rename_axis("tensor")
    frame.attrs["parameters"] = count_params(model)
    return frame.round(4)


def mask_slope(tau: float = 0.1) -> pd.DataFrame:
    """The mask without noise, and the gradient it passes, for scores from 0 (undecided) upwards."""
    score = torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    mask = gumbel_mask(score, tau, noisy=False)
    (slope,) = torch.autograd.grad(mask.sum(), score)
    frame = pd.DataFrame(
        {"mask m": mask.detach().numpy(), "gradient dm/dr": slope.numpy()}, index=score.detach().numpy()
    )
    return frame.rename_axis("score r").map(lambda value: f"{value:.3g}")
