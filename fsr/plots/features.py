"""F8: the features before and after recalibration, as t-SNE."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.linalg import orthogonal_procrustes

from fsr import experiments
from fsr.files import MissingRecord
from fsr.plots import records, style

PANELS = {"tsne_nonrobust": "nonrobust", "tsne_recalibrated": "recalibrated"}
NEAR = 15  # neighbours of its own class that say how dense a cluster is at a point


def aligned(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """points (n, 2) moved, turned or mirrored to lie as near as possible to target (n, 2): Procrustes without scale."""
    points, target = points.astype(float), target.astype(float)
    centred = points - points.mean(axis=0)
    rotation, _ = orthogonal_procrustes(centred, target - target.mean(axis=0))
    return centred @ rotation + target.mean(axis=0)


def densest(points: np.ndarray, taken: list[np.ndarray], apart: np.ndarray) -> np.ndarray:
    """The point (2,) where points (n, 2) lie densest, outside boxes `apart` (2,) around the taken places if any is."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    order = np.sort(distances, axis=1)[:, : NEAR + 1].mean(axis=1).argsort(kind="stable")
    free = [i for i in order if all((np.abs(points[i] - other) >= apart).any() for other in taken)]
    return points[(free or list(order))[0]]


def _scatter(ax: Axes, points: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
    taken: list[np.ndarray] = []
    for label in np.unique(labels)[: len(style.CLASSES)]:
        part, colour = points[labels == label], style.CLASSES[label]
        ax.scatter(part[:, 0], part[:, 1], s=4, color=colour, linewidths=0, alpha=0.65, rasterized=True)
        taken.append(densest(part, taken, np.ptp(points, axis=0) * (0.2, 0.06)))
        options: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5, "fontweight": "bold", "zorder": 5}
        ax.text(taken[-1][0], taken[-1][1], classes[label], color=colour,
                path_effects=[withStroke(linewidth=2.5, foreground="white")], **options)  # fmt: skip
    ax.set(xticks=[], yticks=[])
    ax.margins(0.09)
    ax.spines[:].set_visible(True)


def _neighbours(profile: str, stream: str) -> str:
    """Accuracy of the nearest neighbours on this stream under attack, EMA weights, seed 0; empty when not run."""
    try:
        cells = records.frame(profile, "T7", attack="pgd20", checkpoint="ema", probe="knn", stream=stream, seed=0)
        return f": {100 * cells['accuracy'].iloc[0]:.1f} % by nearest neighbours"
    except (MissingRecord, IndexError):
        return ""


@style.styled
def feature_space(profile: str) -> Figure:
    """F8: t-SNE of pooled f- and recalibrated f- of adversarial images, the second turned onto the first."""
    record, arrays = records.analysis(profile, experiments.main_pair(profile)[1], "features")
    figure, (axes,) = style.panels(1, 2, 3.9)
    target = arrays["tsne_nonrobust"].astype(float)
    for ax, (key, stream) in zip(axes, PANELS.items()):
        _scatter(ax, aligned(arrays[key], target), arrays["labels"], record["class_names"])
        ax.set_title(style.STREAMS[stream] + _neighbours(profile, stream))
    note = f"AT + FSR, {records.setting(profile, 'ema')}, seed 0, {len(arrays['labels']):,} images under PGD-20;\n"
    return style.finish(figure, note + "t-SNE keeps neighbourhoods: distances between groups mean nothing")
