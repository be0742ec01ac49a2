"""One image in one network, attacked: everything inside it as a picture, and the widgets of notebook 16."""

import html
import io
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fsr import experiments, runs
from fsr.attacks import attack_named
from fsr.config import BACKBONES, Run
from fsr.data import as_float, part_of_test
from fsr.explore.records import networks, new_figure, show_image
from fsr.files import FSRError, UsageError
from fsr.models.modes import eval_mode
from fsr.tables import labels

ATTACKS = ("clean", "fgsm", "pgd20", "pgd100", "cw")  # quick enough to wait for
STREAMS = {"f": "f", "robust": "f⁺", "nonrobust": "f⁻", "recalibrated": "f̃⁻", "features": "f̃"}


@dataclass(frozen=True)
class Inspection:
    """One image in one network, clean and attacked.

    images: clean and attacked (2, 3, H, W) in [0, 1]; probabilities: (2, K); maps: stream -> mean |feature| (h, w);
    heads: stream -> class that the auxiliary head sees; mask: values in [0, 1], None without a mask.
    """

    title: str
    eps: float
    label: int
    class_names: tuple[str, ...]
    images: np.ndarray
    probabilities: np.ndarray
    maps: dict[str, np.ndarray]
    heads: dict[str, str]
    mask: np.ndarray | None


def _place(run: Run) -> str:
    """Where the plan puts FSR into this network on this data set."""
    planned = (other for sets in experiments.SETS.values() for other in sets["all"])
    alike = (other.fsr for other in planned if (other.dataset, other.backbone) == (run.dataset, run.backbone))
    return next((spec.at[-1] for spec in alike if spec and spec.at), BACKBONES[run.backbone].fsr_stage)


@torch.no_grad()
def _inside(model, place: str, x: Tensor, class_names: tuple[str, ...]) -> dict:
    """Maps, heads and mask of one image (1, 3, H, W) at the last FSR module, else the map of f after `place`."""
    maps, heads, mask = {}, {}, None
    streams = model.trace(x)[1]
    if streams and getattr(streams[-1], "nonrobust", None) is not None:
        last = streams[-1]
        maps["f"] = last.robust if last.mask is None else last.robust + last.nonrobust
        maps |= {name: f for name in STREAMS if (f := getattr(last, name, None)) is not None}
        heads = {name: class_names[int(logits.argmax(1))] for name, logits in last.aux.items()}
        mask = None if last.mask is None else last.mask[0].flatten().numpy()
    else:
        hook = model.net.get_submodule(place).register_forward_hook(lambda *call: maps.update(f=call[2]))
        try:
            model(x)
        finally:
            hook.remove()
    return {"maps": {name: f[0].abs().mean(0).numpy() for name, f in maps.items()}, "heads": heads, "mask": mask}


def inspect(run: Run, checkpoint: str = "ema", *, attack: str = "pgd20", image: int = 0) -> Inspection:
    """Attack one test image, by its place in the fixed order, and keep all that there is to see; on the CPU."""
    if attack not in ATTACKS:
        raise UsageError(f"unknown attack {attack!r}; choose one of {', '.join(ATTACKS)}")
    data = runs.data_of(run)
    if not 0 <= image < len(data.test_y):
        raise UsageError(f"image must lie in 0..{len(data.test_y) - 1}, not {image}")
    x, y, index = (part[image : image + 1] for part in part_of_test(data, len(data.test_y)))
    x, model = as_float(x), runs.load_model(run, checkpoint, runs.Options(device="cpu"))
    with eval_mode(model):
        x_adv = attack_named(attack)(model, x, y, eps=run.eps, seed=0, indices=index)
        with torch.no_grad():
            probabilities = model(torch.cat([x, x_adv])).softmax(1).numpy()
        inside = _inside(model, _place(run), x_adv, data.class_names)
    method = f"{labels.method(run.label)}, seed {run.seed}, {checkpoint}"
    title, images = f"{method}: test image {int(index)} under {labels.metric(attack)}", torch.cat([x, x_adv]).numpy()
    return Inspection(title, run.eps, int(y), data.class_names, images, probabilities, **inside)


def _draw(figure, seen: Inspection) -> None:
    """Images on top, confidences and mask below them, and the maps of the streams at the bottom."""
    grid, truth = figure.add_gridspec(3, 5), seen.class_names[seen.label]
    clean, attacked = (seen.class_names[int(answer.argmax())] for answer in seen.probabilities)
    noise = 0.5 + (seen.images[1] - seen.images[0]) / (2 * seen.eps)
    titles = (f"natural: {clean}", "perturbation", f"attacked: {attacked}")
    for place, (image, title) in enumerate(zip((seen.images[0], noise, seen.images[1]), titles)):
        show_image(figure.add_subplot(grid[0, place]), image, title)
    frame = pd.DataFrame(seen.probabilities.T, index=seen.class_names, columns=["natural", "attacked"])
    frame = frame.loc[frame.max(axis=1).nlargest(10).index].sort_index()
    frame.plot.barh(ax=figure.add_subplot(grid[1, :3]), xlim=(0, 1), title=f"confidence (true class: {truth})")
    if seen.mask is not None:
        ax = figure.add_subplot(grid[1, 3:], title="mask m")
        ax.hist(seen.mask, bins=20, range=(0, 1), color="grey")
    for place, name in enumerate(name for name in STREAMS if name in seen.maps):
        ax = figure.add_subplot(grid[2, place])
        ax.imshow(seen.maps[name], cmap="viridis")
        ax.set_title(f"{STREAMS[name]}  {seen.heads.get(name, '')}", fontsize=8)
        ax.axis("off")
    figure.suptitle(seen.title, fontsize=9)


def draw(*seen: Inspection) -> Figure:
    """One inspection, or several side by side."""
    figure = new_figure(6.5 * len(seen), 5.2)
    for part, each in zip(figure.subfigures(1, len(seen), squeeze=False)[0], seen):
        _draw(part, each)
    return figure


def app(profile: str) -> widgets.Widget:
    """Menus for one or two networks, an attack and an image; every change draws again or says what is wrong."""
    known = networks(profile)
    if known.empty:
        return widgets.HTML(f"No weights are here; type <code>python -m fsr train --profile {profile}</code>.")
    menu = list(zip(known["name"], known.index))
    controls = [
        widgets.Dropdown(options=menu, description="network"),
        widgets.Dropdown(options=[("(none)", None), *menu], description="beside it"),
        widgets.Dropdown(options=[(labels.metric(a), a) for a in ATTACKS], value="pgd20", description="attack"),
        widgets.BoundedIntText(value=0, min=0, max=10**6, description="image"),
    ]
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
