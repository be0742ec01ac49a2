"""F8: the feature space before and after recalibration."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsr import experiments
from fsr.plots import readings, style, words

PANELS = (("tsne_nonrobust", "nonrobust"), ("tsne_recalibrated", "recalibrated"))


def _scatter(ax: Axes, points: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    for label in np.unique(labels)[: len(style.TEN)]:
        mine = points[labels == label].astype(float)
        colour = style.TEN[int(label) % len(style.TEN)]
        ax.scatter(mine[:, 0], mine[:, 1], s=4, color=colour, linewidths=0, alpha=0.65, rasterized=True)
    for label in np.unique(labels)[: len(style.TEN)]:  # names last, above every point
        x, y = np.median(points[labels == label].astype(float), axis=0)
        name = names[int(label)] if int(label) < len(names) else str(label)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        ax.text(x, y, name, ha="center", va="center", fontsize=6.8, fontweight="bold", bbox=box,
                color=style.TEN[int(label) % len(style.TEN)])  # fmt: skip
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
        style.foot(fig, f"t-SNE of {count} adversarial test images; distances between groups mean nothing")
    return fig
