"""F8: the feature space before and after recalibration."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments
from fsr.plots import readings, style, words

PANELS = (("tsne_nonrobust", "nonrobust"), ("tsne_recalibrated", "recalibrated"))


NAME_POINTS = 6.8  # size of the class names' type
PANEL_POINTS = (245.0, 222.0)  # a panel's width and height, roughly: enough to keep names apart


def apart(centres: np.ndarray, widths: np.ndarray, height: float, rounds: int = 200) -> np.ndarray:
    """Centres [n, 2] of n boxes, moved up or down as little as needed until no two overlap.

    `widths` [n] and `height` are in the units of `centres`.  Only the vertical moves: names are wide and low.
    """
    moved = centres.astype(float).copy()
    for _ in range(rounds):
        across = np.abs(moved[:, None, 0] - moved[None, :, 0]) < (widths[:, None] + widths[None, :]) / 2
        order = np.argsort(moved[:, 1], kind="stable")
        clear = True
        for place, low in enumerate(order):
            for high in order[place + 1 :]:
                missing = height - (moved[high, 1] - moved[low, 1])
                if across[low, high] and missing > 1e-9:
                    moved[low, 1] -= missing / 2
                    moved[high, 1] += missing / 2
                    clear = False
        if clear:
            break
    return moved


def _named_centres(points: np.ndarray, labels: np.ndarray, names: list[str]) -> list[tuple[int, str, np.ndarray]]:
    """(label, name, where its name goes) of at most ten classes: near their medians, not on top of each other."""
    shown = np.unique(labels)[: len(style.TEN)]
    texts = [names[int(label)] if int(label) < len(names) else str(label) for label in shown]
    centres = np.array([np.median(points[labels == label].astype(float), axis=0) for label in shown])
    unit = np.ptp(points.astype(float), axis=0) / PANEL_POINTS  # data units per point of type
    widths = np.array([0.68 * NAME_POINTS * len(text) + 4 for text in texts]) * unit[0]
    return list(zip(map(int, shown), texts, apart(centres, widths, 1.75 * NAME_POINTS * unit[1]), strict=True))


def _scatter(ax: Axes, points: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    for label in np.unique(labels)[: len(style.TEN)]:
        mine = points[labels == label].astype(float)
        colour = style.TEN[int(label) % len(style.TEN)]
        ax.scatter(mine[:, 0], mine[:, 1], s=4, color=colour, linewidths=0, alpha=0.65, rasterized=True)
    for label, name, (x, y) in _named_centres(points, labels, names):  # names last, above every point
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        ax.text(x, y, name, ha="center", va="center", fontsize=NAME_POINTS, fontweight="bold", bbox=box,
                color=style.TEN[label % len(style.TEN)])  # fmt: skip
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.grid(False)


@style.styled
def feature_space(profile: str) -> Figure:
    """F8: t-SNE of pooled f- and recalibrated f- of adversarial images, coloured and named by class.

    At most ten classes are drawn.  The embedding is part of the record: nothing is computed here.
    """
    found = readings.analysis(profile, experiments.main_pair(profile)[1], "features")
    fig, axes = style.panels(1, 2, 3.7)
    for ax, (key, stream) in zip(axes[0], PANELS, strict=True):
        ax.set_title(f"{words.STREAM_WORDS[stream]} {words.STREAMS[stream]}")
        if found is None:
            style.not_run(ax, "features of AT + FSR")
        else:
            _scatter(ax, found[1][key], found[1]["labels"], found[0].get("class_names", []))
    if found is not None:
        count = len(found[1]["labels"])
        told = f"t-SNE of {count:,} adversarial test images; distances between groups mean nothing"
        style.foot(fig, f"{style.OF_EMA}; {told}")
    return fig
