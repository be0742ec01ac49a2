"""F8: the features before and after recalibration, as t-SNE."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.linalg import orthogonal_procrustes

from fsr import experiments
from fsr.plots import records, style

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
    """A dot per image in its class's colour, and the class's name where it lies densest."""
    taken: list[np.ndarray] = []
    for label in np.unique(labels)[: len(style.CLASSES)]:
        part, colour = points[labels == label], style.CLASSES[label]
        ax.scatter(part[:, 0], part[:, 1], s=4, color=colour, linewidths=0, alpha=0.65, rasterized=True)
        taken.append(densest(part, taken, np.ptp(points, axis=0) * (0.2, 0.06)))
        x, y = taken[-1]
        text = ax.text(x, y, classes[label], color=colour, ha="center", va="center", fontsize=7.5, zorder=5)
        text.set(fontweight="bold", path_effects=[withStroke(linewidth=2.5, foreground="white")])
    ax.set(xticks=[], yticks=[])
    ax.margins(0.09)
    ax.spines[:].set_visible(True)


def feature_space(profile: str) -> Figure:
    """F8: t-SNE of pooled f- and recalibrated f- of adversarial images, the second turned onto the first."""
    record, arrays = records.analysis(profile, experiments.main_pair(profile)[1], "features")
    shares = records.frame(profile, "T7", attack="pgd20", checkpoint="ema", probe="knn", seed=0).set_index("stream")
    figure, (axes,) = style.panels(1, 2, 3.9)
    for ax, stream in zip(axes, ("nonrobust", "recalibrated")):
        points = aligned(arrays[f"tsne_{stream}"], arrays["tsne_nonrobust"])
        _scatter(ax, points, arrays["labels"], record["class_names"])
        share = shares["accuracy"].get(stream)
        known = "" if share is None else f": {100 * share:.1f} % by nearest neighbours"
        ax.set_title(style.STREAMS[stream] + known)
    note = f"AT + FSR, {records.setting(profile, 'ema')}, seed 0, {len(arrays['labels']):,} images under PGD-20;\n"
    return style.finish(figure, note + "t-SNE keeps neighbourhoods: distances between groups mean nothing")
