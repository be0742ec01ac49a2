"""What notebooks show of records and networks: plain functions first, the widgets of notebook 16 last."""

import html
import io
import os
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
from fsr.analyse import Inspection
from fsr.attacks import ATTACKS
from fsr.config import PROTOCOL, Analysis, Run
from fsr.data import as_float, part_of_test
from fsr.files import FSRError, MissingRecord, UsageError, choose
from fsr.tables import labels

pd.options.display.max_colwidth = 1000  # a run's module is shown whole
KINDS = ("ema", "last", "best")
STREAMS = {"f": "f", "robust": "f⁺", "nonrobust": "f⁻", "recalibrated": "f̃⁻", "output": "f̃"}


def versions() -> pd.DataFrame:
    """Python, the packages that decide results, and the device that would be used."""
    parts, origin = hardware.describe(hardware.device_named(None)), files.provenance()
    machine = {"device": parts.get("gpu", parts["device"]), "processor": f"{parts['cpu']}, {parts['cores']} cores"}
    return pd.DataFrame({"version": {"Python": origin["python"], **origin["versions"], **machine}})


def data_summary(run: Run) -> pd.DataFrame:
    """Images and their size in the training, held-out and test part."""
    data = runs.data_of(run)
    parts = {"train": data.train_x, "held out": data.held_x, "test": data.test_x}
    return pd.DataFrame([tuple(x.shape) for x in parts.values()], parts, ["images", "channels", "height", "width"])


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


def complete(profile: str, notebook: str) -> str:
    """Compute what the notebook reads and no record holds, unless FSR_COMPUTE=0; then say what is missing."""
    for task in runs.missing(profile, experiments.NEEDS[notebook]) if os.environ.get("FSR_COMPUTE") != "0" else ():
        if failed := runs.perform(task, runs.Options()):
            raise FSRError("; ".join(failed))
    return state(profile, *experiments.NEEDS[notebook])


def state(profile: str, *sets: str) -> str:
    """How many records of these sets of the plan are missing, and the command that makes them."""
    tasks = runs.tasks(profile, sets)
    if left := sum(len(task.missing()) for task in tasks):
        return f"{left} records are missing: they show as not run; type `python -m fsr run-all --profile {profile}`"
    return "every record is here" if tasks else f"profile {profile} plans none of these runs"


def plan(profile: str) -> tuple[Run, ...]:
    """Every run of a profile; UsageError for an unknown one."""
    return experiments.SETS[experiments.profile_of(profile).name]["all"]


def trained(profile: str, *, modules: bool) -> pd.DataFrame:
    """A row per planned run, without or with an inserted module: what it is, as `status` says it, and how it went."""
    rows = []
    for run in (run for run in plan(profile) if (run.module is not None) == modules):
        rows.append({"run": labels.run(profile, run), "network": labels.network(run), "epochs": "not run"})
        with suppress(MissingRecord):
            history = store.history(run)
            clean, robust = history[["held_clean_acc", "held_robust_acc"]].iloc[-1].round(3)
            rows[-1] |= {"epochs": f"{len(history)}/{run.epochs}", "clean": clean, "robust": robust}
    return pd.DataFrame(rows)


def curves(run: Run) -> Figure:
    """Loss terms and held-out accuracies of a run, epoch by epoch."""
    history, figure = store.history(run).set_index("epoch"), new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    history.filter(regex="^train_(?!adv_acc)").plot(ax=left, title=f"{labels.method(run.label)}: loss terms")
    history.filter(like="held_").plot(ax=right, title="accuracy on held-out images", ylim=(0, 1))
    return figure


def networks(profile: str) -> pd.DataFrame:
    """The profile's networks whose weights are on this machine: what they are in words, run, checkpoint."""
    pairs = [(r, kind) for r in plan(profile) for kind in KINDS if runs.has_weights(r, kind)]
    rows = [(f"{labels.run(profile, r)}, {kind}", r, kind) for r, kind in pairs]
    return pd.DataFrame(rows, columns=["name", "run", "checkpoint"])


def example(profile: str, label: str) -> tuple[Run, str]:
    """(run, checkpoint) of seed 0 with this label whose weights are here; else demo's, which trains in seconds."""
    run, other = (choose("network", label, {r.label: r for r in reversed(plan(name))}) for name in (profile, "demo"))
    return next(((run, kind) for kind in KINDS if runs.has_weights(run, kind)), (other, "ema"))


def on_photographs(profile: str) -> str:
    """mini for demo where a person opened it, CIFAR-10 is at hand and mini's pair has weights; else profile."""
    by_hand = os.environ.get("FSR_COMPUTE") != "0" and (files.data() / "cifar-10-batches-py").is_dir()
    there = by_hand and all(runs.has_weights(run, "ema") for run in experiments.main_pair("mini"))
    return "mini" if profile == "demo" and there else profile


def inspect(run: Run, checkpoint: str = "ema", *, attack: str = "pgd20", image: int = 0) -> SimpleNamespace:
    """Attack one test image on the CPU, and see the streams and the answers of the heads at FSR's place.

    images: clean, attacked (2, 3, H, W); probabilities (2, K); maps: stream to mean |f| (h, w); mask (2, C, h, w).
    """
    data = runs.data_of(run)
    if not 0 <= image < len(data.test_y):
        raise UsageError(f"no image {image}; choose one of 0..{len(data.test_y) - 1}")
    model = runs.load_model(run, checkpoint, runs.Options(device="cpu"))
    job = Inspection(model, run, Analysis(kind="maps", images=image + 1), data)
    bases = {(plan.base.dataset, plan.base.backbone): plan.place for plan in experiments.PROFILES.values()}
    job.place = (*bases.get((run.dataset, run.backbone), ()), job.place)[0]  # AT is seen where FSR would sit
    x, y, index = as_float(job.x[image:]), job.y[image:], job.index[image:]
    x = torch.cat([x, choose("attack", attack, ATTACKS)(model, x, y, eps=run.eps, seed=0, indices=index)])
    at_fsr, streams = job.see(x), cast(Any, model.trace(x)[1])
    heads = streams[-1].aux if at_fsr.mask is not None else {}
    method = f"{labels.method(run.label)}, seed {run.seed}, {checkpoint}"
    title = f"{labels.dataset(run.dataset)}, {method}: image {int(index)} under {labels.metric(attack)}"
    seen = {"title": title, "eps": run.eps, "label": int(y), "class_names": data.class_names, "images": x.numpy()}
    seen |= {"maps": {name: f[1].abs().mean(0).numpy() for name, f in at_fsr.maps.items()}}
    seen["heads"] = {name: data.class_names[int(aux[1].argmax())] for name, aux in heads.items()}
    return SimpleNamespace(**seen, mask=at_fsr.mask, probabilities=at_fsr.logits.softmax(1).numpy())


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
            part.add_subplot(grid[1, 3:], title="mask").hist(one.mask[1].flatten(), bins=20, range=(0, 1), color="grey")
        part.suptitle(one.title, fontsize=9)
    return figure


def app(profile: str) -> widgets.Widget:
    """Menus for one or two networks, an attack and an image; every change draws again or says what is wrong."""
    menu = [(name, (run, checkpoint)) for name, run, checkpoint in networks(profile).itertuples(index=False)]
    if not menu:
        return widgets.HTML(f"No weights are here; type <code>python -m fsr train --profile {profile}</code>.")
    choices: dict = {"network": menu, "beside it": [("(none)", None), *menu], "attack": PROTOCOL}
    controls: list = [widgets.Dropdown(options=options, description=name) for name, options in choices.items()]
    controls.append(widgets.BoundedIntText(max=10**6, description="image"))
    picture, message = widgets.Image(format="png"), widgets.HTML()  # an Output widget can block papermill's kernel

    def refresh(_change=None) -> None:
        *chosen, attack, image = (control.value for control in controls)
        buffer = io.BytesIO()
        try:
            draw(*(inspect(*one, attack=attack, image=image) for one in chosen if one)).savefig(buffer)
            picture.value, message.value = buffer.getvalue(), ""
        except FSRError as error:
            message.value = html.escape(str(error))

    for control in controls:
        control.observe(refresh, names="value")
    controls[2].value = "pgd20"  # which draws
    return widgets.VBox([*controls, message, picture])
