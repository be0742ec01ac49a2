"""F9: the FSR module, drawn by code."""

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from fsr.plots import style

LINE, AUX = "#333333", "#777777"


class Box(NamedTuple):
    """A rounded box: centre and size in units of the drawing (100 x 54), text, fill."""

    x: float
    y: float
    width: float
    height: float
    text: str
    fill: str


BOXES = (
    Box(6, 27, 10.5, 10, "backbone\nup to the\nchosen stage", "#EDEDED"),
    Box(31, 27, 13, 8, "separation $S$\n3 convolutions", "#DCEBF7"),
    Box(51, 27, 15, 8, "mask $m$\n$\\sigma\\,((r + noise)\\,/\\,\\tau)$", "#DCEBF7"),
    Box(66, 13, 13, 8, "recalibration $R$\n3 convolutions", "#FBE3D3"),
    Box(95, 40, 9, 10, "rest of the\nbackbone", "#EDEDED"),
)
HEADS = (
    Box(66, 50, 23, 4.8, "cross-entropy of $h(f^{+})$ with $y$", "white"),
    Box(43, 0, 24, 4.8, "cross-entropy of $h(f^{-})$ with $y'$", "white"),
    Box(85, 0, 23, 4.8, "cross-entropy of $h(\\tilde{f}^{\\,-})$ with $y$", "white"),
)
GATES: tuple[tuple[float, float, str], ...] = (
    (51, 40, "×"),
    (51, 13, "×"),
    (79, 13, "×"),
    (85, 13, "+"),
    (85, 40, "+"),
)
# Each path is a list of corners; the last one carries the arrow head.
PATHS: tuple[list[tuple[float, float]], ...] = (
    [(11.5, 27), (24.3, 27)],
    [(19, 27), (19, 40), (49.2, 40)],
    [(19, 27), (19, 13), (49.2, 13)],
    [(37.7, 27), (43.3, 27)],
    [(51, 31.2), (51, 38.2)],
    [(51, 22.8), (51, 14.8)],
    [(58.7, 27), (79, 27), (79, 14.8)],
    [(52.8, 40), (83.2, 40)],
    [(52.8, 13), (59.3, 13)],
    [(72.7, 13), (77.2, 13)],
    [(80.8, 13), (83.2, 13)],
    [(57, 13), (57, 6), (85, 6), (85, 11.2)],
    [(85, 14.8), (85, 38.2)],
    [(86.8, 40), (90.3, 40)],
)
AUX_PATHS: tuple[list[tuple[float, float]], ...] = (
    [(66, 40), (66, 47.5)],
    [(54.5, 13), (54.5, 6), (43, 6), (43, 2.5)],
    [(85, 20), (92, 20), (92, 2.5)],
)
LABELS: tuple[tuple[float, float, str], ...] = (
    (15.2, 28.8, "$f$"),
    (40.4, 28.8, "$r$"),
    (53, 34.3, "$m$"),
    (54.6, 19.6, "$1-m$"),
    (74, 28.8, "$1-m$"),
    (58.5, 42, "$f^{+}$  robust"),
    (38, 14.8, "$f$"),
    (38, 41.8, "$f$"),
    (56, 15, "$f^{-}$"),
    (48.5, 8.3, "non-robust"),
    (86.2, 30, "$\\tilde{f}^{\\,-}$  recalibrated"),
    (88.6, 42.3, "$\\tilde f$"),
)


def _box(ax: Axes, box: Box, edge: str, dashed: bool = False) -> None:
    corner = (box.x - box.width / 2, box.y - box.height / 2)
    patch = FancyBboxPatch(
        corner, box.width, box.height, boxstyle="round,pad=0,rounding_size=1.2", facecolor=box.fill, edgecolor=edge,
        linewidth=0.9, linestyle=(0, (3, 2)) if dashed else "-", zorder=2,
    )  # fmt: skip
    ax.add_patch(patch)
    ax.text(box.x, box.y, box.text, ha="center", va="center", fontsize=6.6, zorder=3)


def _path(ax: Axes, corners: list[tuple[float, float]], colour: str, dashed: bool = False) -> None:
    dash = (0, (3, 2)) if dashed else "-"
    xs, ys = zip(*corners, strict=True)
    ax.plot(xs[:-1], ys[:-1], color=colour, linewidth=0.9, linestyle=dash, zorder=1, solid_capstyle="round")
    arrow: dict[str, Any] = {
        "arrowstyle": "-|>",
        "color": colour,
        "linewidth": 0.9,
        "linestyle": dash,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", xy=corners[-1], xytext=corners[-2], arrowprops=arrow | {"mutation_scale": 8}, zorder=1)


@style.styled
def module_diagram(profile: str = "") -> Figure:
    """The module as the method section states it: separation above, recalibration below, one addition at the end.

    Drawn from no record, so it is the same for every profile.  Source: Kim et al. 2023 and the authors' code.
    """
    fig = style.figure(4.0)
    ax = fig.add_subplot()
    style.blank(ax)
    ax.set(xlim=(0, 100), ylim=(-3.5, 53.5), aspect="equal")
    for box in BOXES:
        _box(ax, box, LINE)
    for box in HEADS:
        _box(ax, box, AUX, dashed=True)
    for x, y, sign in GATES:
        ax.add_patch(Circle((x, y), 1.7, facecolor="white", edgecolor=LINE, linewidth=0.9, zorder=2))
        ax.text(x, y, sign, ha="center", va="center_baseline", fontsize=8.5, zorder=3)
    for corners in PATHS:
        _path(ax, corners, LINE)
    for corners in AUX_PATHS:
        _path(ax, corners, AUX, dashed=True)
    for x, y, text in LABELS:
        ax.text(x, y, text, ha="left" if "recalibrated" in text else "center", va="center", fontsize=7.5)
    note = "dashed: one auxiliary head $h$ (pool, linear),\nused by the training losses only;\n"
    ax.text(1, 50.5, note + "$y'$ = most probable wrong class", ha="left", va="center", fontsize=6.6, color=AUX)
    return fig
