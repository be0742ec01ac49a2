"""A look at one image as a figure, and two looks side by side."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from fsr.explore.display import Picture
from fsr.explore.looking import Look
from fsr.explore.records import Prose
from fsr.files import UsageError
from fsr.plots import style
from fsr.plots.inside import overlay
from fsr.tables import labels as words

TOP = 10  # classes shown as bars
ABSENT = Prose("The weights of this network are not here; `python -m fsr train SET --profile NAME` makes them.")


def _image(ax: Axes, image: np.ndarray, title: str, good: bool | None = None) -> None:
    style.blank(ax)
    ax.imshow(np.moveaxis(image, 0, -1).clip(0, 1), interpolation="nearest")
    colour = "black" if good is None else style.GREEN if good else style.VERMILION
    ax.set_title(title, loc="center", fontsize=7.5, fontweight="normal", color=colour)


def _bars(ax: Axes, seen: Look) -> None:
    """Confidence per class before and after; the true class in bold."""
    order = np.sort(np.argsort(np.maximum(seen.prob_clean, seen.prob_attacked))[::-1][:TOP])
    places = np.arange(len(order))
    ax.barh(places - 0.2, seen.prob_clean[order], 0.38, color=style.CLEAN, label="natural")
    ax.barh(places + 0.2, seen.prob_attacked[order], 0.38, color=style.ATTACKED, label="attacked")
    ax.set_yticks(places, [seen.class_names[i] for i in order])
    for tick, which in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_fontweight("bold" if which == seen.label else "normal")
    ax.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.5), xlabel="confidence")
    ax.grid(axis="y", visible=False)
    style.percent_axis(ax, "x")
    ax.legend(loc="lower right", fontsize=6.5)


def _mask(ax: Axes, seen: Look) -> None:
    if seen.mask is None:
        ax.text(0.5, 0.5, "no mask\nin this network", ha="center", va="center", transform=ax.transAxes)
        style.blank(ax)
        return
    ax.hist(seen.mask, bins=np.linspace(0, 1, 21).tolist(), color=style.GREY)
    ax.set(xlim=(0, 1), xlabel="mask value m", ylabel="activations")


def _draw(fig: SubFigure | Figure, seen: Look) -> None:
    grid = fig.add_gridspec(3, 5, height_ratios=[1, 1.25, 1])
    top = [fig.add_subplot(grid[0, i]) for i in range(3)]
    before, after = seen.answer(seen.prob_clean), seen.answer(seen.prob_attacked)
    truth = seen.class_names[seen.label]
    _image(top[0], seen.clean, f"natural\nanswer: {before}", before == truth)
    _image(top[1], 0.5 + seen.perturbation / (2 * seen.eps), f"perturbation\n{words.metric(seen.attack)}")
    _image(top[2], seen.attacked, f"attacked\nanswer: {after}", after == truth)
    _bars(fig.add_subplot(grid[1, :3]), seen)
    _mask(fig.add_subplot(grid[1, 3:]), seen)
    text = fig.add_subplot(grid[0, 3:])
    style.blank(text)
    facts = f"true class: {truth}\ntest image {seen.index}\neps {seen.eps:.3g}\nmaps at {seen.place}"
    text.text(0, 0.5, facts, va="center", fontsize=7.5)
    for i, (name, title) in enumerate(style.STREAMS.items()):
        ax = fig.add_subplot(grid[2, i])
        style.blank(ax)
        if name in seen.maps:
            image = (255 * seen.attacked).round().astype(np.uint8)
            ax.imshow(overlay(image, seen.maps[name]), interpolation="none")
        else:
            ax.text(0.5, 0.5, "none", ha="center", va="center", color="#666666", transform=ax.transAxes)
        says = f"\nhead: {seen.heads[name]}" if name in seen.heads else "\n"
        ax.set_title(f"{title}{says}", loc="center", fontsize=7.5, fontweight="normal")
    fig.suptitle(seen.choice.name, fontsize=8, fontweight="bold")


@style.styled
def _one(seen: Look) -> Figure:
    fig = Figure(figsize=(style.WIDTH, 5.6), layout="constrained")
    _draw(fig, seen)
    return fig


@style.styled
def _two(left: Look, right: Look) -> Figure:
    fig = Figure(figsize=(12.6, 5.2), layout="constrained")
    parts: Any = fig.subfigures(1, 2, wspace=0.03)
    for part, seen in zip(parts, (left, right), strict=True):
        _draw(part, seen)
    return fig


def picture(seen: Look | None) -> Picture | Prose:
    """One look: image, perturbation, attacked image, confidences, mask and the maps of the streams."""
    if seen is None:
        return ABSENT
    return Picture.of(_one(seen), f"{seen.choice.name}: test image {seen.index} under {seen.attack}")


def compare(left: Look | None, right: Look | None) -> Picture | Prose:
    """Two looks side by side: each network with its own attack on the same image.

    UsageError for networks of two data sets, which share no image.
    """
    if left is None or right is None:
        return ABSENT
    if left.choice.run.dataset != right.choice.run.dataset:
        raise UsageError("the two networks are of different data sets; choose two of one")
    return Picture.of(_two(left, right), f"{left.choice.name} beside {right.choice.name}: test image {left.index}")
