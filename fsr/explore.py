"""What notebooks show of records and networks: plain functions first, the widgets of notebook 16 last."""

import html
import importlib.metadata
import io
import os
import platform
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments, files, hardware, runs, store
from fsr.analyse import module_inputs
from fsr.attacks import attack_named
from fsr.config import BACKBONES, Run, diff
from fsr.data import as_float, part_of_test
from fsr.files import FSRError, MissingRecord, UsageError
from fsr.models.modes import eval_mode
from fsr.tables import labels

pd.options.display.max_colwidth = 1000  # a run's module is shown whole
ATTACKS = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # quick enough to wait for
KINDS = ("ema", "last", "best")
STREAMS = {"f": "f", "robust": "f⁺", "nonrobust": "f⁻", "recalibrated": "f̃⁻", "features": "f̃"}


def versions() -> pd.DataFrame:
    """Python, the packages that decide results, and the device that would be used."""
    parts = hardware.describe(hardware.device_named(None))
    rows = {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in files.PACKAGES}
    rows |= {"device": parts.get("gpu", parts["device"]), "processor": f"{parts['cpu']}, {parts['cores']} cores"}
    return pd.DataFrame({"version": rows})


def plan(profile: str) -> pd.DataFrame:
    """The profile's main network, and how many trainings and evaluations are planned around it."""
    run, planned = experiments.main_pair(profile)[0], experiments.SETS[profile]["all"]
    rows: dict = {"data set": labels.dataset(run.dataset), "network": labels.network(run)}
    rows |= {"eps": f"{255 * run.eps:.1f}/255", "epochs": run.epochs, "trainings": len(planned)}
    rows["evaluations"] = sum(len(experiments.evaluations(profile, "all", one)) for one in planned)
    return pd.DataFrame({profile: rows})


def data_summary(run: Run) -> pd.DataFrame:
    """Images, size and class balance of the training, held-out and test part."""
    data, rows = runs.data_of(run), {}
    for name, part in {"train": "train", "held out": "held", "test": "test"}.items():
        shape, y = getattr(data, f"{part}_x").shape, getattr(data, f"{part}_y")
        counts = torch.bincount(y, minlength=data.classes)
        rows[name] = [len(y), " x ".join(map(str, shape[1:])), int(counts.min()), int(counts.max())]
    columns = ["images", "channels x height x width", "smallest class", "largest class"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches, closed in pyplot so that a notebook shows it once."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure


def show_image(ax: Axes, image: np.ndarray, title: str) -> None:
    """One picture, (3, H, W) in [0, 1] or one map (h, w), without axes."""
    ax.imshow(np.moveaxis(image, 0, -1).clip(0, 1) if image.ndim == 3 else image, interpolation="nearest")
    ax.set_title(title, fontsize=8)
    ax.axis("off")


def sample_grid(run: Run, *, noise: bool = False, images: int = 20) -> Figure:
    """The first test images of the fixed order; noise adds plus or minus eps at random to every pixel."""
    data = runs.data_of(run)
    x, y, _ = part_of_test(data, images)
    signs = torch.sign(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    x, figure = as_float(x) + run.eps * signs * noise, new_figure(10, 1.1 * -(-images // 10))
    for ax, image, label in zip(figure.subplots(-(-images // 10), 10).flat, x.numpy(), y.tolist()):
        show_image(ax, image, data.class_names[label])
    return figure


def complete(profile: str, notebook: str, device: str | None = None) -> str:
    """Compute what the notebook reads and no record holds; with FSR_COMPUTE=0 only count what is missing."""
    if os.environ.get("FSR_COMPUTE") != "0":
        runs.ensure(profile, notebook, runs.Options(device=device))
    left = sum(len(task.missing()) for task in runs.missing(profile, experiments.NEEDS[notebook]))
    missing = f"{left} records are missing: they show as not run"
    return missing if left else "every record that this notebook reads is here"


def trained(profile: str, *, modules: bool) -> pd.DataFrame:
    """A row per planned run, without or with an inserted module: what it is, as `status` says it, and how it went."""
    rows = []
    for run in (run for run in experiments.SETS[profile]["all"] if (run.module is not None) == modules):
        row: dict = {"run": labels.run(profile, run), "network": labels.network(run), "epochs": "not run"}
        with suppress(MissingRecord):
            history = store.history(run).set_index("epoch")
            row["epochs"] = f"{len(history)}/{run.epochs}"
            row["clean"], row["robust"] = history[["held_clean_acc", "held_robust_acc"]].iloc[-1].round(3)
            row["best epoch"] = history["held_robust_acc"].fillna(-1).idxmax() if run.holdout else None
        rows.append(row)
    return pd.DataFrame(rows)


def differences(before: Run, after: Run) -> pd.DataFrame:
    """The fields in which two runs differ, with both values."""
    return pd.DataFrame.from_dict(diff(before, after), orient="index", columns=["before", "after"])


def curves(run: Run) -> Figure:
    """Loss terms and held-out accuracies of a run, epoch by epoch."""
    history, figure = store.history(run).set_index("epoch"), new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    history.filter(regex="^train_(?!adv_acc)").plot(ax=left, title=f"{labels.method(run.label)}: loss terms")
    history.filter(like="held_").plot(ax=right, title="accuracy on held-out images", ylim=(0, 1))
    return figure


def networks(profile: str) -> pd.DataFrame:
    """The profile's networks whose weights are on this machine: what they are in words, run, checkpoint."""
    kept = [(r, kind) for r in experiments.SETS[profile]["all"] for kind in KINDS if runs.has_weights(r, kind)]
    rows = [(f"{labels.run(profile, r)}, {kind}", r, kind) for r, kind in kept]
    return pd.DataFrame(rows, columns=["name", "run", "checkpoint"])


def example(profile: str, label: str) -> tuple[Run, str]:
    """(run, checkpoint) of seed 0 with this label whose weights are here; else demo's, which trains in seconds."""
    plans = (experiments.SETS[name]["all"] for name in (profile, "demo"))
    run, other = (next(run for run in plan if run.label == label) for plan in plans)
    here = [kind for kind in KINDS if runs.has_weights(run, kind)]
    return (run, here[0]) if here else (other, "ema")


def inspect(run: Run, checkpoint: str = "ema", *, attack: str = "pgd20", image: int = 0) -> SimpleNamespace:
    """Attack one test image on the CPU; of the attacked one at FSR's place: maps, classes of the heads and mask.

    images: clean and attacked (2, 3, H, W) in [0, 1]; probabilities: (2, K); maps: stream to mean |feature| (h, w).
    """
    data = runs.data_of(run)
    if attack not in ATTACKS or not 0 <= image < len(data.test_y):
        choices = f"choose one of {', '.join(ATTACKS)}, and an image in 0..{len(data.test_y) - 1}"
        raise UsageError(f"no attack {attack!r} on image {image}: {choices}")
    x, y, index = (part[image : image + 1] for part in part_of_test(data, len(data.test_y)))
    x, model = as_float(x), runs.load_model(run, checkpoint, runs.Options(device="cpu"))
    planned = (other for sets in experiments.SETS.values() for other in sets["all"])
    alike = (other.fsr for other in planned if (other.dataset, other.backbone) == (run.dataset, run.backbone))
    place = next((spec.at[-1] for spec in alike if spec and spec.at), BACKBONES[run.backbone].fsr_stage)
    with eval_mode(model):
        x = torch.cat([x, attack_named(attack)(model, x, y, eps=run.eps, seed=0, indices=index)])
        with torch.no_grad(), module_inputs(model, place) as inputs:
            logits, streams = model.trace(x)
    maps, heads, mask, last = {"f": inputs[-1]}, {}, None, cast(Any, streams[-1] if streams else None)
    if getattr(last, "nonrobust", None) is not None:
        maps |= {name: f for name in STREAMS if (f := getattr(last, name, None)) is not None}
        heads = {name: data.class_names[int(aux[1].argmax())] for name, aux in last.aux.items()}
        mask = None if last.mask is None else last.mask[1].flatten().numpy()
    method = f"{labels.method(run.label)}, seed {run.seed}, {checkpoint}"
    title = f"{method}: test image {int(index)} under {labels.metric(attack)}"
    seen = {"title": title, "eps": run.eps, "label": int(y), "class_names": data.class_names, "images": x.numpy()}
    seen |= {"maps": {name: f[1].abs().mean(0).numpy() for name, f in maps.items()}, "heads": heads, "mask": mask}
    return SimpleNamespace(**seen, probabilities=logits.softmax(1).numpy())


def draw(*seen: SimpleNamespace) -> Figure:
    """One inspection, or several side by side: images, then confidences and mask, then the maps of the streams."""
    figure = new_figure(6.5 * len(seen), 5.2)
    for part, one in zip(figure.subfigures(1, len(seen), squeeze=False)[0], seen):
        grid, truth, (x, x_adv) = part.add_gridspec(3, 5), one.class_names[one.label], one.images
        clean, attacked = (one.class_names[int(answer.argmax())] for answer in one.probabilities)
        noise = 0.5 + (x_adv - x) / (2 * one.eps)
        top = {f"natural: {clean}": x, "perturbation": noise, f"attacked: {attacked}": x_adv}
        maps = {f"{STREAMS[name]}  {one.heads.get(name, '')}": one.maps[name] for name in STREAMS if name in one.maps}
        for row, pictures in ((0, top), (2, maps)):
            for place, (title, picture) in enumerate(pictures.items()):
                show_image(part.add_subplot(grid[row, place]), picture, title)
        frame = pd.DataFrame(one.probabilities.T, index=one.class_names, columns=["natural", "attacked"])
        frame = frame.loc[frame.max(axis=1).nlargest(10).index].sort_index()
        frame.plot.barh(ax=part.add_subplot(grid[1, :3]), xlim=(0, 1), title=f"confidence (true class: {truth})")
        if one.mask is not None:
            part.add_subplot(grid[1, 3:], title="mask m").hist(one.mask, bins=20, range=(0, 1), color="grey")
        part.suptitle(one.title, fontsize=9)
    return figure


def app(profile: str) -> widgets.Widget:
    """Menus for one or two networks, an attack and an image; every change draws again or says what is wrong."""
    known = networks(profile)
    if known.empty:
        return widgets.HTML(f"No weights are here; type <code>python -m fsr train --profile {profile}</code>.")
    menu, attacks = list(zip(known["name"], known.index)), [(labels.metric(name), name) for name in ATTACKS]
    choices = (("network", menu), ("beside it", [("(none)", None), *menu]), ("attack", attacks))
    controls: list = [widgets.Dropdown(options=options, description=name) for name, options in choices]
    controls[2].value = "pgd20"
    controls.append(widgets.BoundedIntText(value=0, min=0, max=10**6, description="image"))
    picture, message = widgets.Image(format="png"), widgets.HTML()  # an Output widget can block papermill's kernel

    def refresh(_change=None) -> None:
        *chosen, attack, image = (control.value for control in controls)
        rows = [known.loc[place] for place in chosen if place is not None]
        buffer = io.BytesIO()
        try:
            draw(*(inspect(row["run"], row["checkpoint"], attack=attack, image=image) for row in rows)).savefig(buffer)
            picture.value, message.value = buffer.getvalue(), ""
        except FSRError as error:
            message.value = html.escape(str(error))

    for control in controls:
        control.observe(refresh, names="value")
    refresh()
    return widgets.VBox([*controls, message, picture])
